"""What a checkpoint of a run in training holds, and going on from it."""

import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normlab.lab import checkpoint, optimizer
from normlab.lab.compute import Compute
from normlab.lab.data.dataset import Dataset
from normlab.lab.processes import Group
from normlab.lab.tasks.classification import Input
from normlab.lab.update import Update

_ROUNDING = ("threads", "channels_last", "compile")  # change no more than the last bits


class ResumeError(ValueError):
    """A checkpoint that was made under other conditions; says which."""


@dataclass
class Position:
    """Where a run stands; with the tensors, everything a checkpoint has to hold."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done in the epoch at hand
    step: int = 0
    loss: float = 0.0  # sum over the images of the epoch at hand
    wrong: int = 0
    seconds: float = 0.0
    best_error: float = math.inf
    best_epoch: int = 0
    validation_error: float | None = None
    bytes_peak: int = 0  # of a GPU's memory, while training


def conditions(
    group: Group, compute: Compute, train_set: Dataset, validation_set: Dataset
) -> dict[str, Any]:
    """What the bits of a result depend on besides the experiment."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": group.device.type,
        "processes": group.size,
        "channels_last": compute.channels_last,
        "compile": compute.compile,
        "images": f"{len(train_set)} and {len(validation_set)} in {len(train_set.classes)} classes "
        f"(digests {train_set.digest()} and {validation_set.digest()})",
    }


def save(
    folder: Path,
    update: Update,
    at: Position,
    *,
    num_events: int,
    input: Input,
    computed: dict[str, Any],
    complete: bool,
    keep: int,
) -> None:
    """Write a checkpoint.

    Args:
        complete: with all that training needs to go on; else the judged weights alone.
        keep: how many checkpoints stay in the folder.
    """
    network = update.model if complete else update.judged
    tensors = _named("model.", network.state_dict())
    state: dict[str, Any] = {
        "position": {k: v for k, v in asdict(at).items() if v != math.inf},
        "num_events": num_events,
        "input": asdict(input),
        "computed": computed,
    }
    if complete:
        tensors |= optimizer.state_tensors(update.optimizer)
        if update.average is not None:
            tensors |= _named("average.", update.average.model.state_dict())
        if update.scaler.is_enabled():
            state["scaler"] = update.scaler.state_dict()
    checkpoint.save(folder, at.step, tensors, state, keep=keep)


def resume(
    folder: Path, update: Update, computed: dict[str, Any], allowed: tuple[str, ...]
) -> tuple[Position, int] | None:
    """Go back to the newest checkpoint: where it stands, and after how many events; None if none.

    Args:
        allowed: conditions that may be others than they were.

    Raises:
        ResumeError: others are.

    Warns:
        UserWarning: conditions are others, so that the result will not be the same to the bit.
    """
    if checkpoint.is_empty(folder):
        return None
    tensors, state, _ = checkpoint.load(folder)
    _check_conditions(folder, state["computed"], computed, allowed)
    update.model.load_state_dict(_below("model.", tensors))
    optimizer.load_state_tensors(update.optimizer, tensors)
    if update.average is not None:
        update.average.model.load_state_dict(_below("average.", tensors))
    if update.scaler.is_enabled():
        update.scaler.load_state_dict(state["scaler"])
    return Position(**state["position"]), state["num_events"]


def _check_conditions(
    folder: Path, before: dict[str, Any], now: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    changed = [k for k, value in before.items() if k in now and now[k] != value]
    if not changed:
        return
    said = "; ".join(f"{key} was {before[key]}, is {now[key]}" for key in changed)
    refused = [key for key in changed if key not in (*_ROUNDING, *allowed)]
    if refused:
        raise ResumeError(
            f"{folder.parents[1]} was trained under other conditions: {said}; go back to them, "
            f"or say --allow-change {' '.join(refused)}"
        )
    warnings.warn(
        f"{folder.parents[1]}: resumed under other conditions ({said}); "
        "the result will not be the same to the bit",
        stacklevel=4,
    )


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
