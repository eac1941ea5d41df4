"""Runs in a terminal: a list of them, and two side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.lab.report.tables import Table

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_RESULTS = ("state", "epoch", "error", "seconds", "age", "cause")


_WIDE = 120  # characters, from which there is room for what the name says in short


def listing(
    rows: Sequence[Mapping[str, Any]], damaged: Sequence[tuple[Path, str]], width: int
) -> list[Table]:
    """A line for every run; those that cannot be read in a table of their own.

    Args:
        rows: what `manage.facts` says of each.
        width: characters of the terminal.
    """
    chosen = {name: cell for name, cell in _COLUMNS.items() if width >= _WIDE or name not in _SAID}
    cells = [[cell(row) for cell in chosen.values()] for row in rows]
    tables = [Table(f"{len(rows)} run{'s' * (len(rows) != 1)}", list(chosen), cells)]
    causes = [[row["name"], row["cause"]] for row in rows if row["cause"]]
    if causes:
        tables.append(Table("Without a result", ["run", "cause"], causes))
    if damaged:
        broken = [[path.name, reason] for path, reason in damaged]
        tables.append(Table("Damaged, not listed", ["folder", "reason"], broken))
    return tables


def side_by_side(
    one: Mapping[str, Any], other: Mapping[str, Any], differences: Mapping[str, tuple[Any, Any]]
) -> list[Table]:
    """The settings in which two runs differ, and their results."""
    columns = ["", one["name"], other["name"]]
    settings = [[name, str(a), str(b)] for name, (a, b) in differences.items()]
    found = [[key, _shown(key, one[key]), _shown(key, other[key])] for key in _RESULTS]
    note = "" if settings else "They have all settings in common."
    return [
        Table("Settings that differ", columns, settings, note),
        Table("Results", columns, [row for row in found if any(row[1:])]),
    ]


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "run": lambda row: row["name"],
    "norm": lambda row: row["norm"],
    "batch": lambda row: _batch(row),
    "seed": lambda row: str(row["seed"]),
    "state": lambda row: row["state"],
    "epoch": lambda row: f"{row['epoch']}/{row['epochs']}",
    "best error %": lambda row: _shown("error", row["error"]),
    "trained": lambda row: _shown("seconds", row["seconds"]),
    "age": lambda row: _shown("age", row["age"]),
}
_SAID = ("norm", "batch", "seed")  # by the name


def _batch(row: Mapping[str, Any]) -> str:
    shared = row["norm_batch_size"]
    return f"{row['batch_size']}, {shared} share" if shared else str(row["batch_size"])


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("seconds", "age"):
        return _duration(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    """In the largest unit that is not more than it: clocks may differ, so nothing is below 0."""
    seconds = max(0.0, seconds)
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
