"""The part of the page that is one run's own: configuration, machine, curve, checkpoints."""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.lab.analysis import Analysis, Result
from normlab.lab.report import curves, tables
from normlab.lab.report.sections import Figure, Section

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_MAX_BYTES = 1_000_000  # of a file that is read for the page
_MAX_TEXT = 2_000  # characters of a run's text on the page


@dataclass(frozen=True)
class RunPart:
    """One run: its name, what became of it, lines under a heading each, and its curve."""

    id: str
    name: str
    outcome: str
    texts: Sequence[tuple[str, Sequence[str]]]
    figure: Figure | None


def section(a: Analysis, runs: "Sequence[Run]") -> Section | None:
    """All runs, each with what is known of it."""
    if not a.results:
        return None
    folders = {(r.path, r.name): r for r in a.results}
    events = {}
    for run in runs:
        key = str(run.path), run.experiment.name
        if key in folders:
            events[key] = _events(run)
    parts = [_part(i, r, events.get((r.path, r.name), [])) for i, r in enumerate(a.results, 1)]
    return Section(
        "runs",
        "Runs",
        tables=[tables.unfinished(a)],
        folded=[tables.runs(a)],
        runs=parts,
    )


def environment(folder: Path) -> dict[str, Any]:
    """What a run recorded of its machine; nothing if that is missing or damaged."""
    return _object(folder / "environment.json")


def _part(number: int, r: Result, events: Sequence[Mapping[str, Any]]) -> RunPart:
    folder = Path(r.path)
    start = [e for e in events if e.get("event") == "start"][:1]
    epochs = [e for e in events if e.get("event") == "epoch"][-1:]
    error = r.outcome if r.error is None else f"{r.error:.2f} % validation error"
    settings = dataclasses.asdict(r.experiment).items()
    texts = (
        ("Configuration", _lines((k, v) for k, v in settings if v is not None)),
        ("Machine", _lines(environment(folder).items())),
        ("At the start", _lines(p for e in start for p in e.items() if p[0] != "event")),
        ("Last epoch", _lines(p for e in epochs for p in e.items() if p[0] != "event")),
        ("Checkpoints", _lines(_checkpoints(folder / "checkpoints"))),
        ("Cause", [tables.clean(r.cause, _MAX_TEXT)] if r.cause else []),
    )
    shown = [(title, lines) for title, lines in texts if lines]
    return RunPart(f"run-{number}", r.name, error, shown, curves.run_curve(r))


def _lines(values: Iterable[tuple[str, Any]]) -> list[str]:
    """A name and its value a line."""
    return [f"{tables.clean(str(k))}: {tables.clean(_value(v))}" for k, v in values]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    return json.dumps(value, ensure_ascii=False)


def _checkpoints(folder: Path) -> list[tuple[str, str]]:
    """SHA-256 of the weights of the newest checkpoint of each kind, as its manifest says."""
    found = []
    try:
        manifests = sorted(folder.glob("*/*/manifest.json"), key=lambda p: p.parent.name)
    except OSError:
        return []
    for path in manifests:
        files = _object(path).get("files")
        entry = files.get("tensors.safetensors") if isinstance(files, dict) else None
        if isinstance(entry, dict) and isinstance(digest := entry.get("sha256"), str):
            found.append((f"{path.parent.parent.name}, step {path.parent.name}", digest))
    return list({name.partition(",")[0]: (name, digest) for name, digest in found}.values())


def _events(run: "Run") -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a half-written line: the analysis has warned of it
        try:
            return run.events()
        except (ValueError, OSError):  # it was read before, so it changed under us
            return []


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's contents; nothing if it is missing or damaged, for no number depends on it."""
    try:
        with open(path, encoding="utf-8") as file:
            read = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
