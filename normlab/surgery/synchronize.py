"""Batch norms that share statistics between processes, and ones that no longer do."""

from typing import Any

from torch import nn

from normlab import nn as ours
from normlab.checks import check_joinable
from normlab.layer import Norm
from normlab.surgery.batches import bare
from normlab.surgery.layers import Site, SurgeryError, Where, matches, show_leaves, sites
from normlab.surgery.rules import kind

# exact classes, whose state is that of a SyncBatchNorm
_LOCAL = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(ours.BatchNorm1d, ours.BatchNorm2d, ours.BatchNorm3d),
)
_WAS = "_local_class"  # what a layer was before it was synchronized


def synchronize(
    model: nn.Module, process_group: Any = None, *, where: Where | None = None
) -> nn.Module:
    """Let the batch norms of a model share statistics with other processes; returns the model.

    mean = Σ n_i mean_i / Σ n_i over processes i, and var likewise: those of the joined batch

    Layers stay themselves: parameters, hooks and optimizer are untouched. Norms of the catalogue
    whose pattern drops n are told to synchronize; torch.nn's BatchNorm1d to 3d and SyncBatchNorm
    become `normlab.nn.SyncBatchNorm`, which also runs on the CPU. Statistics are shared in
    training, where torch.distributed is at work; a process may have fewer samples, or none, but
    all must call the layers alike.

    Args:
        process_group: of torch.distributed; None is the one a layer has, or all processes.
        where: names as in `normlab.convert`; None is every batch norm.

    Raises:
        SurgeryError: no batch norm is there, or one of a class that cannot; nothing is changed.

    Source: torch.nn.SyncBatchNorm.

    >>> model = synchronize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    >>> isinstance(model[1], nn.SyncBatchNorm)
    True
    """
    for _, layer in _chosen(model, where):
        state: Any = vars(layer)
        state["process_group"] = process_group or state.get("process_group")
        if isinstance(layer, Norm):
            layer.synchronize = True
            continue
        if type(layer) in _LOCAL:
            state[_WAS] = type(layer)
        layer.__class__ = ours.SyncBatchNorm
        state.setdefault("activation", None)
        state.setdefault("recompute", False)
    return model


def unsynchronize(model: nn.Module, *, where: Where | None = None) -> nn.Module:
    """Let every process keep to its own statistics again; returns the model.

    Args:
        where: as in `synchronize`.

    Raises:
        SurgeryError: no batch norm is there, or a SyncBatchNorm that was none before: for how many
            axes its batch norm is meant it does not say; convert it to "batch".

    >>> model = synchronize(nn.Sequential(nn.BatchNorm2d(8)))
    >>> type(unsynchronize(model)[0]).__name__
    'BatchNorm2d'
    """
    found = _chosen(model, where)
    syncing = [s for s in found if isinstance(s.layer, nn.SyncBatchNorm)]
    if unknown := [s.names[0] for s in syncing if _WAS not in vars(s.layer)]:
        raise SurgeryError(
            f"{len(unknown)} SyncBatchNorm (first {unknown[0]!r}) were made as such and have no "
            'other class to go back to; use normlab.convert(model, "batch")'
        )
    for _, layer in found:
        if isinstance(layer, Norm):
            layer.synchronize = False
        elif isinstance(layer, nn.SyncBatchNorm):
            layer.__class__ = vars(layer).pop(_WAS)
    return model


def _chosen(model: nn.Module, where: Where | None) -> list[Site]:
    """Every batch norm that can, or a sentence about those that cannot."""
    network = bare(model, "synchronize")
    every = [s for s in sites(network, _uses_batch) if matches(s, where)]
    if not every:
        chosen = f" where {where!r}" if where is not None else ""
        raise SurgeryError(f"no batch norm{chosen}; it has {show_leaves(network)}")
    problems = [f"  {s.names[0]}: {why}" for s in every if (why := _problem(s.layer))]
    if problems:
        raise SurgeryError(
            f"{len(problems)} of {len(every)} batch norms cannot be synchronized; convert them "
            "first, or leave them out with where=:\n" + "\n".join(problems)
        )
    return every


def _uses_batch(layer: nn.Module) -> bool:
    is_torchs = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return is_torchs or (isinstance(layer, Norm) and layer.mixes_samples)


def _problem(layer: Any) -> str:
    """Why a batch norm cannot be synchronized; empty if it can."""
    if type(layer) is not kind(layer):
        return f"is a {type(layer).__name__}: frozen or parametrized"
    if not isinstance(layer, Norm):
        known = type(layer) in (*_LOCAL, nn.SyncBatchNorm, ours.SyncBatchNorm)
        return "" if known else f"is a {type(layer).__name__}, which does more than normalize"
    if not layer.can_synchronize:
        return f"norm {layer.name!r} takes its statistics otherwise"
    try:
        check_joinable(layer.pattern)
    except ValueError as error:
        return str(error)
    return ""
