"""Look after runs: what there is, which fulfil a condition, how two differ, and remove some.

Does not import torch.
"""

import dataclasses
import fnmatch
import operator
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normlab.lab import results
from normlab.lab.experiment import Experiment, did_you_mean
from normlab.lab.runs import Run, RunError, find

SHOWN = ("name", "state", "epoch", "error", "seconds", "age", "cause", "path")
_FIELDS = tuple(f.name for f in dataclasses.fields(Experiment))


class ManageError(ValueError):
    """A condition, an order or a removal that is not possible; says why."""


def found_in(folders: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs that are, or lie in, some folders, and the damaged ones with the reason.

    Raises:
        RunError: a folder cannot be read.
    """
    found, damaged = [], []
    for path in folders:
        if (path / "experiment.json").exists():
            try:
                found.append(Run.open(path))
            except RunError as error:
                damaged.append((path, str(error)))
            continue
        inside, broken = find(path)
        found += inside
        damaged += broken
    return found, damaged


def facts(run: Run) -> dict[str, Any]:
    """What can be asked of a run: the fields of its experiment, and how far it has come.

    The keys besides fields: name, state, epoch (the last that ended), error (validation, percent,
    of the best epoch), seconds (of training), age (seconds since its state changed), cause, path.
    """
    status, read = run.status, results.read(run)
    errors = [e.validation_error for e in read.epochs if e.validation_error is not None]
    return {
        **dataclasses.asdict(run.experiment),
        "name": run.experiment.name,
        "state": status["state"],
        "epoch": max((e.epoch for e in read.epochs), default=0),
        "error": min(errors, default=None),
        "seconds": sum(e.seconds or 0.0 for e in read.epochs),
        "age": _age(status.get("updated")),
        "cause": str(status.get("cause", "")),
        "path": str(run.path),
    }


def _age(updated: Any) -> float | None:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(updated)).total_seconds()
    except (TypeError, ValueError):
        return None


def select(
    rows: Iterable[dict[str, Any]], conditions: Sequence[str], sort: str | None = None
) -> list[dict[str, Any]]:
    """The facts of runs that fulfil all conditions, in order.

    Args:
        rows: what `facts` says of each run.
        conditions: as norm=group, norm=group*, seed!=0, error<10, norm_batch_size=none.
        sort: what to order by, the smallest first; with a minus before it, the largest.

    Raises:
        ManageError: a condition that cannot be understood.

    >>> rows = [{"norm": "group", "error": 9.0}, {"norm": "batch", "error": None}]
    >>> [row["norm"] for row in select(rows, ["error<10"])]
    ['group']
    """
    tests = [_condition(text) for text in conditions]
    kept = [row for row in rows if all(test(row) for test in tests)]
    if sort is None:
        return kept
    key = _known(sort.removeprefix("-"))
    valued = [row for row in kept if row[key] is not None]
    others = [row for row in kept if row[key] is None]
    return sorted(valued, key=lambda row: row[key], reverse=sort.startswith("-")) + others


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _condition(text: str) -> Callable[[dict[str, Any]], bool]:
    match = re.fullmatch(r"([\w-]+)\s*(!=|<=|>=|=|<|>)\s*(.*)", text, re.S)
    if not match:
        raise ManageError(f"a condition is like norm=group, seed!=0 or error<10, not {text!r}")
    key, sign, wanted = _known(match[1]), match[2], match[3]
    if sign in _ORDERS:
        try:
            limit = float(wanted)
        except ValueError:
            raise ManageError(f"{text!r}: {sign} takes a number, got {wanted!r}") from None
        return lambda row: _is_number(row[key]) and _ORDERS[sign](row[key], limit)
    return lambda row: _equals(row[key], wanted) == (sign == "=")


def _equals(value: Any, wanted: str) -> bool:
    if _is_number(value):
        try:
            return value == float(wanted)
        except ValueError:
            return False
    if isinstance(value, str):
        return fnmatch.fnmatchcase(value, wanted)
    return str(value).lower() == wanted.lower()  # true, false, none


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _known(name: str) -> str:
    key = name.replace("-", "_")
    if key not in (*SHOWN, *_FIELDS):
        raise ManageError(f"runs have no {name!r}{did_you_mean(key, (*SHOWN, *_FIELDS))}")
    return key


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, by field."""
    return {k: (one[k], other[k]) for k in _FIELDS if one[k] != other[k]}


def remove(run: Run) -> None:
    """Delete a run's folder, if all in it is ours and no process uses it.

    It is renamed first, so that a removal that is killed leaves no half of a run, and the rest goes
    with the next one.

    Raises:
        ManageError: it is a link, or holds something that no run writes.
        RunInUse: a process trains it.
    """
    path = run.path
    if path.is_symlink():
        raise ManageError(f"{path} is a link; delete it by hand, or give the folder it leads to")
    with run.claim():
        _check_contents(path)
        aside = path.parent / f".removed-{secrets.token_hex(8)}"
        try:
            os.rename(path, aside)
        except OSError as error:
            raise RunError(f"{path}: cannot be removed: {error.strerror}") from error
    for leftover in path.parent.iterdir():
        if _REMOVED.fullmatch(leftover.name) and not leftover.is_symlink():
            shutil.rmtree(leftover)


def _check_contents(top: Path) -> None:
    for folder, folders, files in os.walk(top, followlinks=False):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise ManageError(f"{path} is a link; nothing of the run was removed")
            if not _OURS.fullmatch(path.relative_to(top).as_posix()):
                raise ManageError(f"{path} is not of normlab; nothing of the run was removed")


_REMOVED = re.compile(r"\.removed-[0-9a-f]{16}")
_CHECKPOINT = r"(\.tmp-)?[\d-]+(/(tensors\.safetensors|state\.json|manifest\.json))?"
_OURS = re.compile(
    r"(experiment|environment|status)\.json|metrics\.jsonl|lock|claim|\.tmp-[0-9a-f]{16}"
    rf"|checkpoints(/(best|last)(/{_CHECKPOINT})?)?"
    r"|tensorboard(/events\.out\.tfevents\.[^/]+)?"
)
