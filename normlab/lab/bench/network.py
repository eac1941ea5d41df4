"""What norms cost in a network: its training step, and its norm layers alone.

The network as written, with torch's batch norm, is what all are compared with. A step is forward
pass, loss and backward pass, without optimizer; ours is taken as it is and with activations and
additions fused into the norms. The layers alone are replayed one after the other
on tensors of the sizes they see, forward and backward each.
"""

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab import norms
from normlab.lab import models
from normlab.lab.address import resolve
from normlab.lab.bench import bytes_saved
from normlab.lab.bench.case import FORMATS, check_names, check_norm
from normlab.lab.bench.results import BenchError, Row, ratios, setting
from normlab.lab.bench.timing import Call, Progress, Timer, alternate
from normlab.layer import Norm
from normlab.surgery import fuse

Key = tuple[str, str]  # candidate and norm
Seen = tuple[str, Tensor, Tensor]  # name of a layer, x, dy

AS_WRITTEN, FUSED = "as written", "normlab fused"
_NUM_CLASSES = 10

# torch's own layer in place of one of ours; batch norm's is that of the network as written
_TORCH: dict[str, Callable[[Any], nn.Module]] = {
    "group": lambda n: nn.GroupNorm(n.num_groups, n.num_channels, eps=n.eps),
    "layer": lambda n: nn.GroupNorm(1, n.num_channels, eps=n.eps),
    "instance": lambda n: nn.InstanceNorm2d(n.num_channels, eps=n.eps, affine=True),
}


@dataclass(frozen=True)
class Network:
    """A network and the norms it is measured with.

    Args:
        model: address; see `normlab.lab.models.build`.
        norms: see `normlab.norm`.
        image_size: height and width, in pixels.
        dtype: of images and parameters, by its name in torch.
        memory_format: contiguous or channels_last.
        backward: measure the backward pass too.

    Raises:
        BenchError, LookupError: sizes below 1, or names there are not.
    """

    model: str
    norms: tuple[str, ...] = ("group", "batch")
    batch_size: int = 8
    image_size: int = 128
    dtype: str = "float32"
    memory_format: str = "contiguous"
    device: str = "cpu"
    backward: bool = True

    def __post_init__(self) -> None:
        check_names(self.dtype, self.memory_format)
        for norm in self.norms:
            check_norm(norm)
        for name in ("batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch_size, 3, self.image_size, self.image_size


def measure_network(
    network: Network,
    rounds: int = 15,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> list[Row]:
    """A row for the network as written, then for each norm one by torch, if it has it, and by us.

    Args:
        progress: called after every round with rounds done and rounds in all, steps and layers
            alone counted alike.

    Raises:
        BenchError: the network does not take such images, with one of the norms.
        LookupError, ModelError: the network or a norm cannot be built.
    """
    built = build(network)
    x, labels = _images(network)
    for (_, norm), model in built.items():
        try:
            _step(model, x, labels, network.backward)
        except ValueError as error:  # such as one value per statistic
            raise BenchError(f"{network.model} with {norm}: {error}") from None
    built = with_fused(built, x)
    steps: dict[Key, Call] = {
        key: functools.partial(_step, model, x, labels, network.backward)
        for key, model in built.items()
    }
    seen = inputs_of_norms(built[AS_WRITTEN, "batch"], names_of_norms(built), x)
    alone: dict[Key, Call] = {
        key: functools.partial(_replay, model, seen, network.backward)
        for key, model in built.items()
        if key[0] != FUSED  # its layers alone are those of normlab
    }
    timer = timer or Timer.of(network.device)
    seconds = alternate(steps, rounds, timer=timer, progress=_part(progress, 0, 2))
    seconds_alone = alternate(alone, rounds, timer=timer, progress=_part(progress, 1, 2))
    written = seconds[AS_WRITTEN, "batch"]
    shared = {
        "model": network.model,
        "shape": "x".join(map(str, network.shape)),
        "dtype": network.dtype,
        "memory_format": network.memory_format,
        "passes": "forward+backward" if network.backward else "forward",
        "rounds": rounds,
        "num_disturbed": timer.num_disturbed,
        **setting(network.device),
    }
    found = []
    for (candidate, norm), taken in seconds.items():
        figures: dict[str, Any] = {}
        if (candidate, norm) in seconds_alone:
            taken_alone = seconds_alone[candidate, norm]
            figures["norms_milliseconds"] = 1000 * statistics.median(taken_alone)
        base = seconds.get(_torchs(norm))
        if base is not None:
            figures.update(zip(("ratio_low", "ratio_to_torch", "ratio_high"), ratios(taken, base)))
        if network.backward:
            model = built[candidate, norm]
            own = [*model.parameters(), *model.buffers()]
            figures["bytes_saved"] = bytes_saved(steps[candidate, norm], own)
        found.append(
            Row(
                candidate=candidate,
                norm=norm,
                milliseconds=1000 * statistics.median(taken),
                ratio_to_written=ratios(taken, written)[1],
                **figures,
                **shared,
            )
        )
    return found


def build(network: Network) -> dict[Key, nn.Module]:
    """The networks that take turns, by candidate and norm, ready to train.

    Raises:
        LookupError, ModelError: the network or a norm cannot be built.
    """
    found: dict[Key, nn.Module] = {}
    ours = {n: models.build(network.model, _NUM_CLASSES, norm=n) for n in network.norms}
    module, variant = resolve("models", network.model)
    found[AS_WRITTEN, "batch"] = module.build(variant, _NUM_CLASSES)
    for norm, model in ours.items():
        if norms.parse(norm)[0].name in _TORCH:
            found["torch", norm] = _with_torchs(
                models.build(network.model, _NUM_CLASSES, norm=norm)
            )
        found["normlab", norm] = model
    place: Any = {
        "device": network.device,
        "dtype": getattr(torch, network.dtype),
        "memory_format": FORMATS[network.memory_format][4],
    }
    return {key: model.to(**place).train() for key, model in found.items()}


def with_fused(built: dict[Key, nn.Module], x: Tensor) -> dict[Key, nn.Module]:
    """The same networks, each of ours followed by one with its norms fused."""
    few = x[:2, :, :64, :64].clone()  # to see what can be fused, and check it, these will do
    found = {}
    for (candidate, norm), model in built.items():
        found[candidate, norm] = model
        if candidate == "normlab":
            found[FUSED, norm] = fuse(copy.deepcopy(model), few)
    return found


def inputs_of_norms(model: nn.Module, names: list[str], x: Tensor) -> list[Seen]:
    """The name of each norm in the order they run, and tensors like what it gets."""
    seen: list[Seen] = []

    def see(name: str, inputs: tuple[Tensor, ...]) -> None:
        seen.append((name, torch.randn_like(inputs[0]), torch.randn_like(inputs[0])))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: see(name, inputs)
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def names_of_norms(built: dict[Key, nn.Module]) -> list[str]:
    """Where in a network the norms are that are exchanged."""
    ours = next(model for (candidate, _), model in built.items() if candidate == "normlab")
    return [name for name, module in ours.named_modules() if isinstance(module, Norm)]


def _with_torchs(model: nn.Module) -> nn.Module:
    """The same network with torch's layers in place of ours."""
    ours = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Norm)]
    for name, layer in ours:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, _TORCH[layer.name](layer))
    return model


def _torchs(norm: str) -> Key:
    """The network with torch's version of a norm."""
    cls, options = norms.parse(norm)
    if cls.name == "batch" and not options:
        return AS_WRITTEN, "batch"
    return "torch", norm


def _images(network: Network) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(network.shape, generator=generator)
    x = x.to(network.device, getattr(torch, network.dtype))
    labels = torch.randint(_NUM_CLASSES, (network.batch_size,), generator=generator)
    x = x.contiguous(memory_format=FORMATS[network.memory_format][4])
    return x, labels.to(network.device)


def _step(model: nn.Module, x: Tensor, labels: Tensor, backward: bool) -> None:
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(backward):
        loss = F.cross_entropy(model(x).float(), labels)
    if backward:
        loss.backward()


def _replay(model: nn.Module, seen: list[Seen], backward: bool) -> None:
    for name, x, dy in seen:
        layer = model.get_submodule(name)
        if not backward:
            with torch.no_grad():
                layer(x)
            continue
        x = x.detach().requires_grad_()
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def _part(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Progress of one part of several, told as that of the whole."""
    if progress is None:
        return None
    return lambda done, rounds: progress(part * rounds + done, parts * rounds)
