"""One sample through a model: what enters each norm, and how far outputs moved."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normlab.surgery.batches import in_evaluation
from normlab.surgery.layers import SurgeryError


class Agreement(NamedTuple):
    """How outputs after compare with those before, in evaluation.

    Args:
        relative: |after - before| / |before|, over all floating outputs; NaN if they cannot be
            compared, as when a detector finds other boxes.
        largest: of |after - before|.
        top1: share of samples with the same largest output; None unless the first is (N, classes).
    """

    relative: float
    largest: float
    top1: float | None

    def __str__(self) -> str:
        if self.relative != self.relative:
            return "outputs cannot be compared: their number or shapes differ"
        top1 = "" if self.top1 is None else f", same top-1 for {100 * self.top1:.1f} %"
        moved = f"{self.relative:.2g} of their norm, {self.largest:.2g} at most"
        return f"outputs differ by {moved}{top1}"


def compare(before: Any, after: Any) -> Agreement:
    """Two outputs of a model, whatever their structure."""
    old, new = _floats(before), _floats(after)
    if not old or [t.shape for t in old] != [t.shape for t in new]:
        return Agreement(float("nan"), float("nan"), None)
    moved = [(a.double() - b.double()) for a, b in zip(new, old)]
    size = sum(float(b.double().square().sum()) for b in old) ** 0.5
    distance = sum(float(d.square().sum()) for d in moved) ** 0.5
    relative = distance / size if size else float(distance > 0)
    largest = max(float(d.abs().max()) if d.numel() else 0.0 for d in moved)
    top1 = None
    if old[0].dim() == 2 and old[0].shape[1] > 1 and len(old[0]):
        top1 = float((old[0].argmax(1) == new[0].argmax(1)).double().mean())
    return Agreement(relative, largest, top1)


def run_sample(
    model: nn.Module, sample_input: Any, layers: Iterable[nn.Module] = ()
) -> tuple[Any, dict[int, tuple[int, ...]]]:
    """The output in evaluation, and by id of each layer the shape of what entered it first.

    A tuple is the arguments, a dict the named ones, anything else the only argument. Modes,
    buffers and the state of random numbers are as before after.

    Raises:
        SurgeryError: the model does not take the sample.
    """
    shapes: dict[int, tuple[int, ...]] = {}

    def see(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            shapes.setdefault(id(layer), tuple(args[0].shape))

    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        with in_evaluation(model), _buffers_kept(model), torch.random.fork_rng(_devices(model)):
            return _call(model, sample_input), shapes
    except (RuntimeError, TypeError, ValueError) as error:
        raise SurgeryError(f"sample_input does not pass through the model: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, sample_input: Any) -> Any:
    if isinstance(sample_input, dict):
        return model(**sample_input)
    return model(*sample_input) if isinstance(sample_input, tuple) else model(sample_input)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    versions = [buffer._version for buffer, _ in before]
    try:
        yield
    finally:
        for (buffer, value), version in zip(before, versions):
            if buffer._version != version:
                buffer.copy_(value)


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


def _floats(output: Any) -> list[Tensor]:
    return [
        t.detach() for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
    ]
