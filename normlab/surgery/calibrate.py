"""Replace running statistics by those of a data set, the population's."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normlab.norms import DomainBatchNorm
from normlab.surgery.batches import Forward, bare, batches, check_loader, in_evaluation, run
from normlab.surgery.freeze import is_frozen
from normlab.surgery.layers import Site, SurgeryError, show_leaves, sites
from normlab.surgery.population import (
    Moments,
    check_tracked,
    gathered,
    is_distributed,
    is_tracked,
    set_statistics,
)

PASSES = ("exact", "one")


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    passes: str = "exact",
    max_batches: int | None = None,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
) -> nn.Module:
    """Set running statistics to mean and variance of all the data, and return the model.

    mean = Σ x / n,   var = Σ (x - mean)² / (n - 1),   over every value that enters a norm

    merged over batches in float64, never averaged over them: batches differ in their means, and an
    average of their variances lacks that part. Parameters, momentum, gradients and modes stay;
    layers other than norms are in evaluation mode meanwhile. num_batches_tracked becomes the number
    of batches read, as after torch.optim.swa_utils.update_bn. Frozen norms are left as they are.

    Args:
        loader: finite; its batches are a tensor, (input, ...) or a dict with "image", "input", ….
        passes: "exact" sets the norms one after another, in the order they run, each from what
            reaches it through norms already set: what evaluation needs, and the same however the
            data are split. It reads the loader once per norm and runs the network up to that norm:
            about half as many forward passes as there are norms. "one" reads it once, with every
            norm on the statistics of its batch (precise batch norm); behind the first norm, results
            then depend on the batches. That is why "exact" is the default; where it takes too long,
            lower `max_batches` first.
        max_batches: read at most so many; None is all.
        device: where batches go; None is where the first norm is.
        forward: what to do with a batch, `forward(model, batch)`; None is `model(input)`.

    Under torch.distributed the data of all processes count, each as much as it has, and all get the
    same statistics. Norms that no batch reaches, such as those of auxiliary heads, keep theirs. A
    norm that runs several times pools its inputs; its later ones are seen through the earlier.

    Raises:
        SurgeryError: no norm with running statistics, no data, statistics that are not finite, or
            a loader that cannot be read again for "exact". The model is as before.

    Source: Wu and Johnson 2021, https://arxiv.org/abs/2105.07576, section 3.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> data = torch.tensor([[1.0], [2.0], [6.0]])
    >>> calibrate(model, data.split(2))[0].running_var
    tensor([7.])
    """
    if passes not in PASSES:
        raise SurgeryError(f"passes is one of {', '.join(map(repr, PASSES))}, got {passes!r}")
    network = bare(model, "calibrate")
    layers = _layers(network)
    for site in layers:
        check_tracked(site.names[0], site.layer)
    first: Any = layers[0].layer
    device = first.running_mean.device if device is None else device
    if passes == "exact":
        need = f"exact calibration of {len(layers)} norms reads the data {len(layers)} times"
        check_loader(loader, max_batches, f'{need} (passes="one" once)')
    elif max_batches is not None and max_batches < 1:
        raise SurgeryError(f"max_batches must be at least 1, got {max_batches}; None reads all")
    data = _Data(network, loader, max_batches, device, forward)
    with _all_or_nothing(layers):
        (_exact if passes == "exact" else _one)(data, layers)
    return model


class _Data:
    """A network and what is run through it."""

    def __init__(self, network: nn.Module, loader: Iterable[Any], *how: Any) -> None:
        self.network, self.loader = network, loader
        self.max_batches, self.device, self.forward = how

    def sweep(self, limit: int | None = None) -> int:
        """Run all batches, or so many; how many there were."""
        num_batches = 0
        most = self.max_batches if limit is None else limit
        for batch in batches(self.loader, most, self.device):
            num_batches += 1
            try:
                run(self.network, batch, self.forward)
            except _Reached:
                continue
        return num_batches


class _Reached(BaseException):
    """The rest of a forward pass is not needed; no `except Exception` of a network stops it."""


def _layers(network: nn.Module) -> list[Site]:
    found = sites(network, is_tracked)
    free = [site for site in found if not is_frozen(site.layer)]
    if found and not free:
        raise SurgeryError(
            f"all {len(found)} norms with running statistics are frozen; unfreeze them first"
        )
    if not free:
        raise SurgeryError(
            f"0 norms keep running statistics, so there is nothing to calibrate; it has "
            f"{show_leaves(network)}"
        )
    return free


def _exact(data: _Data, layers: list[Site]) -> None:
    with in_evaluation(data.network):
        order = _order(data, layers)
        for step, index in enumerate(order):
            name, layer = layers[index].names[0], layers[index].layer
            calls = order[: step + 1].count(index)
            with _together(name):
                moments = Moments(layer)
                with _until(layer, moments, calls):
                    num_batches = data.sweep()
            _finish(name, layer, moments, num_batches)


def _one(data: _Data, layers: list[Site]) -> None:
    syncing = [s.names[0] for s in layers if isinstance(s.layer, nn.SyncBatchNorm)]
    if syncing and is_distributed():
        raise SurgeryError(
            f"{len(syncing)} SyncBatchNorm (first {syncing[0]}) wait for other processes in "
            'training mode, which may have other batches; use passes="exact"'
        )
    every = [Moments(site.layer) for site in layers]
    with in_evaluation(data.network, but=[site.layer for site in layers]):
        hooks = [_listen(site.layer, moments.add) for site, moments in zip(layers, every)]
        try:
            with _together("a forward pass"):
                num_batches = data.sweep()
        finally:
            for hook in hooks:
                hook.remove()
        if not sum(gathered(num_batches)):
            raise _empty()
        with torch.no_grad():
            for (names, layer), moments in zip(layers, every):
                _finish(names[0], layer, moments, num_batches)


def _finish(name: str, layer: nn.Module, moments: Moments, num_batches: int) -> None:
    """Merge over processes and write."""
    moments.over_ranks()
    if not moments.count:
        return
    if moments.count == 1:
        raise SurgeryError(f"{name}: one value per channel in all the data; its variance needs two")
    set_statistics(name, layer, moments.result(), sum(gathered(num_batches)))


def _order(data: _Data, layers: list[Site]) -> list[int]:
    """Which norm runs when, by the first batch of the first process that has one."""
    order: list[int] = []
    with _together("the first batch"):
        hooks = [
            _listen(site.layer, lambda x, index=index: order.append(index))
            for index, site in enumerate(layers)
        ]
        try:
            num_batches = data.sweep(limit=1)
        finally:
            for hook in hooks:
                hook.remove()
    found = gathered((num_batches, order))
    if not any(count for count, _ in found):
        raise _empty()
    order = next(order for count, order in found if count)
    if not order:
        raise SurgeryError(
            f"none of the {len(layers)} norms ran in the first batch (first {layers[0].names[0]}); "
            "forward= must run the model it is given"
        )
    return order


@contextmanager
def _until(layer: nn.Module, moments: Moments, calls: int) -> Iterator[None]:
    """Gather what enters a layer in its first calls of each forward pass, and stop there."""
    seen = 0

    def start(*_: Any) -> None:
        nonlocal seen
        seen = 0

    def take(x: Tensor) -> None:
        nonlocal seen
        seen += 1
        moments.add(x)
        if seen == calls:
            start()
            raise _Reached

    hook = _listen(layer, take)
    try:
        yield
    finally:
        hook.remove()


def _listen(layer: nn.Module, take: Any) -> Any:
    """Call back with every input of a layer."""

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if isinstance(layer, DomainBatchNorm) and layer.domain != layer.domains[0]:
            return  # what has the statistics of that domain is a layer within
        take(args[0] if args else next(iter(kwargs.values())))

    return layer.register_forward_pre_hook(hook, with_kwargs=True)


def _empty() -> SurgeryError:
    return SurgeryError("the loader has no batches, so there is nothing to calibrate with")


@contextmanager
def _together(what: str) -> Iterator[None]:
    """Raise in every process if one fails, as the others would wait for it."""
    if not is_distributed():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    causes = gathered(error and f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, cause in enumerate(causes):
        if cause:
            raise SurgeryError(f"process {rank} failed in {what}: {cause}")


@contextmanager
def _all_or_nothing(layers: list[Site]) -> Iterator[None]:
    """Put the statistics back if anything fails."""
    before = [
        (buffer, buffer.clone())
        for site in layers
        for buffer in site.layer.buffers(recurse=False)
        if buffer is not None
    ]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise
