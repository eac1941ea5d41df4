"""What is measured on a network besides its error."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from normlab import functional, ops
from normlab import pattern as patterns
from normlab.lab.experiment import ExperimentError, did_you_mean
from normlab.layer import Norm
from normlab.surgery import Shrunk

PER_EPOCH = 8  # probes at most,
EVERY = 64  # and steps at least between two: all layers of a ResNet-8 then cost 3 % of the time
PERCENTILES = (1, 20, 80, 99)  # of Wu and He 2018, figure 6
MAX_VALUES = 2**12  # that percentiles are taken of: of normal ones, 1 and 99 are then off by 2.5 %
FEATURES = "features"  # what enters the last linear layer

_LAST_AXIS = (nn.LayerNorm, nn.RMSNorm, nn.Linear)  # hold channels there, others on axis 1
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, Norm, Shrunk)


class _Watched(NamedTuple):
    """A layer, and which of its values are recorded: "input", "output" or "features"."""

    name: str
    layer: nn.Module
    place: str


class Recorder:
    """Records chosen layers at some training steps, in the passes the training makes anyway.

    Hooks are there during those steps only. They read, so that the training has the same bits with
    them and without. What is recorded, of one forward pass and the gradients that follow:

        percentiles, mean, var   of the values that enter a norm, leave another layer, or are the
                                 features; percentiles of at most 4,096 values, from the same
                                 places each time
        dead             share of channels of the output (features: of them) that are 0 everywhere
        gradient_norm    of the layer's parameters (features: of the linear layer's)
        noise            what the batch's means stray from the running means, root mean square
                         over channels, in running standard deviations
        gap              log(running variance / batch variance), root mean square over channels

    Noise and gap are of norms that keep statistics over the batch; norms in slices have one for
    each slice. A layer called several times is recorded at its first call.

    Args:
        probe: globs of names with commas between; a glob chooses layers without parts, and a name
            any layer. "features" is the input of the last linear layer. None chooses nothing.

    Raises:
        ExperimentError: a name that chooses nothing.
    """

    def __init__(self, model: nn.Module, probe: str | None) -> None:
        self._watched = list(_chosen(model, probe)) if probe is not None else []
        self._found: dict[str, dict[str, Any]] = {}
        self._missed: set[str] = set()

    def due(self, step: int, num_batches: int) -> bool:
        """Whether a step of the training, 0 and up, is recorded; an epoch has `num_batches`."""
        return bool(self._watched) and step % max(EVERY, math.ceil(num_batches / PER_EPOCH)) == 0

    @contextmanager
    def watching(self, step: int, num_batches: int) -> Iterator[None]:
        """Record what passes through the layers while entered, if the step is due."""
        if not self.due(step, num_batches):
            yield
            return
        hooks: list[Any] = []
        try:
            for watched in self._watched:
                hooks += self._hooks(watched)
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> list[dict[str, Any]]:
        """What was recorded since the last call, with the gradients of now, in the model's order.

        Warns once of a layer that the forward pass did not call.
        """
        found, self._found = self._found, {}
        if not found:
            return []
        taken = []
        for watched in self._watched:
            if watched.name not in found:
                self._warn(watched.name)
                continue
            gradient = _gradient_norm(watched.layer)
            about = {} if gradient is None else {"gradient_norm": gradient}
            fields = {"layer": watched.name, "place": watched.place}
            taken.append({**fields, **found[watched.name], **about})
        return taken

    def _warn(self, name: str) -> None:
        if name not in self._missed:
            self._missed.add(name)
            warnings.warn(
                f"probe: the forward pass never called {name}, so nothing of it is recorded",
                stacklevel=4,
            )

    def _hooks(self, watched: _Watched) -> list[Any]:
        name, layer, place = watched

        def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if name not in self._found:
                x = _tensor(args[0] if args else next(iter(kwargs.values()), None), watched)
                dead = _dead(x, 1) if place == FEATURES else {}
                self._found[name] = {**_distribution(x), **_batch_statistics(layer, x), **dead}

        def after(_: nn.Module, args: tuple, output: Any) -> None:
            axis = -1 if isinstance(layer, _LAST_AXIS) else 1
            if place == "output" and name not in self._found:
                y = _tensor(output, watched)
                self._found[name] = {**_distribution(y), **_dead(y, axis)}
            elif place == "input" and "dead" not in self._found[name]:
                self._found[name] |= _dead(_tensor(output, watched), axis)

        hooks: list[Any] = []
        if place != "output":
            hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        if place != FEATURES:
            hooks.append(layer.register_forward_hook(after))
        return hooks


def _chosen(model: nn.Module, probe: str) -> Iterator[_Watched]:
    """The layers in the order of the model, the features last."""
    wanted = [part.strip() for part in probe.split(",") if part.strip()]
    if not wanted:
        raise ExperimentError(f"probe: {probe!r} names no layer; leave it out to record none")
    layers: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    del layers[""]
    first: dict[int, str] = {}
    for name, layer in layers.items():
        first.setdefault(id(layer), name)
    names: set[str] = set()
    for part in wanted:
        if part == FEATURES:
            continue
        leaves = (n for n, m in layers.items() if isinstance(m, _NORMS) or not list(m.children()))
        found = [part] if part in layers else [n for n in leaves if fnmatchcase(n, part)]
        if not found:
            raise ExperimentError(
                f"probe: no layer is called {part!r}{did_you_mean(part, [*layers, FEATURES])}"
            )
        names |= {first[id(layers[name])] for name in found}
    for name in layers:
        if name in names:
            place = "input" if isinstance(layers[name], _NORMS) else "output"
            yield _Watched(name, layers[name], place)
    if FEATURES in wanted:
        linear = [m for m in layers.values() if isinstance(m, nn.Linear)]
        if not linear:
            raise ExperimentError(
                "probe: features are the input of the last linear layer, and this network has "
                "none; name the layer"
            )
        yield _Watched(FEATURES, linear[-1], FEATURES)


def _tensor(value: Any, watched: _Watched) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach()
    what = value.dtype if isinstance(value, Tensor) else type(value).__name__
    raise ExperimentError(
        f"probe: the {watched.place} of {watched.name} is to be a floating-point tensor, not "
        f"{what}; name a layer inside or after it"
    )


def _distribution(x: Tensor) -> dict[str, Any]:
    """Percentiles, mean and variance; nothing of nothing."""
    if not x.numel():
        return {}
    x = x.float() if x.element_size() < 4 else x
    mean = x.mean()
    return {
        "percentiles": dict(zip(map(str, PERCENTILES), percentiles(x))),
        "mean": mean.item(),
        "var": (x - mean).square_().mean().item(),
    }


def percentiles(x: Tensor) -> list[float]:
    """PERCENTILES of the values, between two of them by proportion; of all or of MAX_VALUES.

    >>> percentiles(torch.arange(101.0))
    [1.0, 20.0, 80.0, 99.0]
    """
    values = x.flatten()
    if values.numel() > MAX_VALUES:
        values = values[_places(values.numel()).to(values.device)]
    with np.errstate(invalid="ignore"):  # between two infinities is NaN, which is recorded as null
        return np.percentile(values.cpu().double().numpy(), PERCENTILES).tolist()


@lru_cache(maxsize=256)
def _places(count: int) -> Tensor:
    """MAX_VALUES places among `count`: one at random in each of as many equal stretches.

    At random, for equal distances would meet the same columns of every image.
    """
    random = np.random.Generator(np.random.PCG64(0)).random(MAX_VALUES)
    return torch.from_numpy(((np.arange(MAX_VALUES) + random) * (count / MAX_VALUES)).astype("i8"))


def _dead(y: Tensor, axis: int) -> dict[str, float]:
    """Share of channels that are 0 everywhere; nothing where there are no channels."""
    if y.dim() < 2 or not y.numel():
        return {}
    others = tuple(i for i in range(y.dim()) if i != axis % y.dim())
    alive = y.any(others)
    return {"dead": 1 - alive.double().mean().item()}


def _batch_statistics(layer: Any, x: Tensor) -> dict[str, float]:
    """Noise and gap; nothing unless there are running statistics of some batch."""
    mean, var = (getattr(layer, f"running_{key}", None) for key in ("mean", "var"))
    kept = layer.pattern if isinstance(layer, Norm) else functional.PER_CHANNEL
    pooled = isinstance(layer, Norm | nn.modules.batchnorm._BatchNorm)
    if not pooled or mean is None or var is None or "n" in patterns.parse(kept).kept:
        return {}
    if layer.num_batches_tracked is not None and not layer.num_batches_tracked:
        return {}
    count = patterns.geometry(kept, x.shape).count
    means, variances = _statistics(x, kept)
    mean, var = (t.cpu().double().numpy() for t in (mean, var))
    with np.errstate(all="ignore"):  # what is not finite is recorded as null
        std = np.sqrt(np.maximum(var, 0) + layer.eps)
        found = {"noise": _root_mean_square((means - mean) / std)}
        if count > 1:
            spread = np.sqrt(variances * (count / (count - 1)) + layer.eps)
            found["gap"] = _root_mean_square(2 * np.log(std / spread))
    return found


def _statistics(x: Tensor, pattern: str) -> tuple[np.ndarray, ...]:
    """Mean and biased variance, (slices, C) in float64: one for each group that shares them."""
    geometry = patterns.geometry(pattern, x.shape)
    sizes = [
        s if axis in geometry.channels else kept
        for axis, (s, kept) in enumerate(zip(geometry.split, geometry.broadcast))
    ]
    last = tuple(range(-len(geometry.channels), 0))
    found = []
    for statistic in ops.moments(x, pattern, True):
        aligned = statistic.cpu().double().numpy().reshape(geometry.broadcast)
        spread = np.moveaxis(np.broadcast_to(aligned, sizes), geometry.channels, last)
        found.append(spread.reshape(-1, x.shape[1]))
    return tuple(found)


def _root_mean_square(values: np.ndarray) -> float:
    return math.sqrt(np.square(values).mean())


def _gradient_norm(layer: nn.Module) -> float | None:
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    if not gradients:
        return None
    return math.sqrt(sum(float(g.detach().float().norm()) ** 2 for g in gradients))
