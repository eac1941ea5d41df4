"""How a batch enters a model: which part of it is the input, which the labels, on which device."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normlab.surgery.layers import SurgeryError

Forward = Callable[[nn.Module, Any], Any]

# names that data sets give to these parts of a dict
_INPUTS = ("image", "images", "input", "inputs", "pixel_values", "video", "x")
_LABELS = ("label", "labels", "target", "targets", "y")


def batches(
    loader: Iterable[Any], max_batches: int | None, device: torch.device | str | None
) -> Iterator[Any]:
    """The batches of a loader, at most so many, on a device; None leaves them where they are."""
    for batch in islice(loader, max_batches):
        yield batch if device is None else moved(batch, device)


def check_loader(loader: Any, max_batches: int | None, sweeps: str) -> None:
    """Raise unless a loader can be read as often as needed; `sweeps` says for what."""
    if max_batches is not None and max_batches < 1:
        raise SurgeryError(f"max_batches must be at least 1, got {max_batches}; None reads all")
    if isinstance(loader, Iterator):
        raise SurgeryError(
            f"{sweeps}, and a {type(loader).__name__} can be read once; give a DataLoader or a list"
        )


def run(model: nn.Module, batch: Any, forward: Forward | None) -> Any:
    """The model's output for a batch."""
    return model(input_of(batch)) if forward is None else forward(model, batch)


def input_of(batch: Any) -> Any:
    """A tensor is the input, a tuple or list starts with it, a dict has it under a usual name.

    Raises:
        SurgeryError: anything else.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    if isinstance(batch, Mapping):
        found = [key for key in _INPUTS if key in batch]
        if len(found) == 1:
            return batch[found[0]]
        has = f"a dict with {', '.join(map(repr, batch))}"
    else:
        has = f"a {type(batch).__name__}"
    raise SurgeryError(
        f"expected batches that are a tensor, (input, ...) or a dict with one of "
        f"{', '.join(_INPUTS)}; got {has}. Say what to do with one: "
        "forward=lambda model, batch: model(...)"
    )


def labels_of(batch: Any) -> Tensor | None:
    """The class of each sample, int64 (N,), where a batch has it in its usual place."""
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in _LABELS if key in batch), None)
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        labels = batch[1]
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 1
    return labels if whole else None


def moved(batch: Any, device: torch.device | str) -> Any:
    """A batch of tensors in tuples, lists and dicts, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def bare(model: nn.Module, verb: str) -> nn.Module:
    """The network within torch.compile's and DistributedDataParallel's wrappers.

    Raises:
        SurgeryError: a scripted network, whose layers cannot be reached.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise SurgeryError(f"{verb} before torch.jit.script; layers of a script are out of reach")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return bare(model.module, verb)
    inner = getattr(model, "_orig_mod", None)
    return bare(inner, verb) if isinstance(inner, nn.Module) else model


@contextmanager
def in_evaluation(model: nn.Module, but: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Evaluation mode and no gradients, with some layers in training mode; all as before after.

    Modes are written past `train()` and its overrides, which may do more.
    """
    modules = [m for m in model.modules() if "training" in vars(m)]  # a script has it elsewhere
    before = [vars(module)["training"] for module in modules]
    try:
        for module in modules:
            vars(module)["training"] = False
        for module in but:
            vars(module)["training"] = True
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, before):
            vars(module)["training"] = mode
