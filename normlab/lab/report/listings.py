"""Tables that do not come from a comparison: scores of one run, data sets, the machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normlab.lab.report.tables import Table

_MAX_CLASSES = 20  # of a confusion matrix in a terminal

_SCORES = {
    "num_images": "images",
    "accuracy": "accuracy %",
    "error": "error %",
    "micro_f1": "micro-F1 %",
    "macro_f1": "macro-F1 %",
}


def scores(of_splits: Mapping[str, Mapping[str, Any]], classes: tuple[str, ...]) -> list[Table]:
    """The scores of each split in a row, then a confusion matrix for each."""
    rows = [
        [split, *(_number(values[key]) for key in _SCORES)] for split, values in of_splits.items()
    ]
    tables = [Table("Scores", ["set", *_SCORES.values()], rows)]
    if len(classes) > _MAX_CLASSES:
        return tables
    for split, values in of_splits.items():
        counts = zip(classes, values["confusion"])
        tables.append(
            Table(
                f"Confusion, {split}",
                ["true class", *classes],
                [[name, *map(str, row)] for name, row in counts],
                "Columns are the predicted classes; numbers are images.",
            )
        )
    return tables


def published(root: Path) -> Table:
    """The sets that can be downloaded, and whether their files are in the data folder."""
    from normlab.lab.data.published import SETS

    rows = []
    for name, archives in sorted(SETS.items()):
        there = all((root / path).is_file() for archive in archives for path in archive.members)
        size = sum(archive.size for archive in archives)
        rows.append([name, f"{size / 1e6:.0f}", "yes" if there else "no"])
    columns = ["set", "download MB", f"in {root}/"]
    return Table("Data sets", columns, rows, "Fetch one with: normlab data NAME")


def pairs(title: str, values: Mapping[str, Any]) -> Table:
    """Names and values, one pair a row."""
    return Table(title, ["what", "value"], [[k, str(v)] for k, v in values.items()])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
