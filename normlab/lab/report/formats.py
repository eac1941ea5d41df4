"""The numbers of a report for other tools: Markdown, CSV and strict JSON."""

import csv
import dataclasses
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.lab import report
from normlab.lab.analysis import Analysis, Difference, Group, Result, Series
from normlab.lab.conversions import networks
from normlab.lab.environment import presentable
from normlab.lab.experiment import Experiment
from normlab.lab.published import PUBLISHED, SECOND_HAND, SOURCES, Published
from normlab.lab.report import (
    confusion,
    conversion,
    divisions,
    figures,
    gates,
    judged,
    markdown,
    pairs,
    published,
    sentences,
    tables,
)
from normlab.lab.report.markdown import as_markdown
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from normlab.lab.runs import Run

__all__ = ["FORMATS", "as_csv", "as_json", "as_markdown", "export", "table_as_csv"]

VERSION = 1  # of the JSON; grows when a key changes its meaning
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def export(
    a: Analysis,
    format: str,
    *,
    title: str,
    out: Path | None,
    folder: Path,
    by: str = "samples",
    runs: "Sequence[Run]" = (),
) -> list[Path]:
    """Print the analysis in a format, or write it; what the command line calls.

    Args:
        format: one of FORMATS, or of figures.FORMATS.
        out: a file; for figures, and for a file of CSV per table, a folder. None: text is printed,
            figures go to the folder figures in `folder`. Markdown has its images beside it.
        runs: those of the analysis, for what layers gave; Markdown that is written draws it.
        by: what error curves among the figures are against: samples, epochs or steps.

    Returns:
        The files written.

    Raises:
        ReportError: one cannot be written, or there is nothing to draw.
    """
    if format in figures.FORMATS:
        return figures.save(a, out or folder / "figures", format, by=by)
    if out is None:
        sys.stdout.write(FORMATS[format](a, title))
        return []
    if format == "csv" and (out.is_dir() or not out.suffix):
        return _write_tables(a, out)
    if format == "md":
        return markdown.write(a, title, out, runs=runs)
    report.write(out, FORMATS[format](a, title))
    return [out]


def _write_tables(a: Analysis, folder: Path) -> list[Path]:
    """runs.csv, and a file for each table."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise report.ReportError(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another"
        ) from error
    texts = {"runs": as_csv(a)}
    for table in all_tables(a):
        name = "-".join(re.findall(r"[a-z0-9]+", table.title.lower()))[:60] or "table"
        while name in texts:
            name += "-2"
        texts[name] = table_as_csv(table)
    files = [folder / f"{name}.csv" for name in texts]
    for file, text in zip(files, texts.values()):
        report.write(file, text)
    return files


def as_csv(a: Analysis, title: str = "") -> str:
    """A row for each run: every field of its experiment, then what it measured."""
    rows = [_run(r, a) for r in a.results]
    fields = [f"experiment.{f.name}" for f in dataclasses.fields(Experiment)]
    columns = ["run", "outcome", *fields, *_NUMBERS, "epochs", "path", "cause"]
    flat = [
        {
            **{k: v for k, v in row.items() if k != "experiment"},
            **{f"experiment.{k}": v for k, v in row["experiment"].items()},
            "epochs": len(row["epochs"]),
        }
        for row in rows
    ]
    return _csv([columns, *([row.get(c) for c in columns] for row in flat)])


def table_as_csv(table: Table) -> str:
    """One table; cells that are one number are numbers with a plain minus."""
    return _csv([table.columns, *table.rows])


def as_json(a: Analysis, title: str = "") -> str:
    """Everything: runs with their epochs, groups, differences, and all tables as text.

    Numbers are unrounded; what was not measured or is not finite is null.
    """
    content = {
        "version": VERSION,
        "title": clean(title or "Runs", 1000),
        "axis": a.x_field,
        "last_epochs": a.last,
        "headline": sentences.headline(a),
        "findings": [*sentences.about_batch_norm(a), *sentences.caveats(a)],
        "runs": [_run(r, a) for r in a.results],
        "groups": [
            {"norm": s.norm, "series": s.label, "x": x, **_group(g)}
            for s in a.series
            for x, g in s.groups.items()
        ],
        "differences": [_compared(row) for row in a.differences()],
        "differences_paired": [_compared(row) for row in a.paired()],
        "pairs": [_pair(p) for p in pairs.pairs(a)],
        "conversions": _conversions(a),
        "published": [_published(p) for p in PUBLISHED],
        "tables": [dataclasses.asdict(table) for table in all_tables(a)],
        "damaged": [{"path": clean(p), "reason": clean(why)} for p, why in a.damaged],
    }
    return json.dumps(_strict(content), indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Analysis, str], str]] = {
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def all_tables(a: Analysis) -> list[Table]:
    """Every table of the report, empty ones left out."""
    found = (
        tables.errors(a),
        tables.differences(a),
        tables.paired(a),
        tables.last_epochs(a),
        divisions.by_groups(a),
        divisions.by_size(a),
        *divisions.matrices(a),
        *conversion.tables(a),
        pairs.table(a),
        judged.table(a),
        *gates.tables(a),
        tables.cost(a),
        confusion.pairs(a),
        confusion.images(a),
        *confusion.matrices(a),
        *published.every(a),
        tables.unfinished(a),
        tables.damaged(a),
    )
    return [table for table in found if table.rows]


_NUMBERS = (
    "error",
    "train_error",
    "error_before",
    "lowest_error",
    "seconds",
    "seconds_step",
    "bytes_saved",
    "bytes_peak",
    "num_parameters",
    "num_train",
    "num_validation",
)


def _run(r: Result, a: Analysis) -> dict[str, Any]:
    repeated = any(r is other for other in a.repeated)
    return {
        "run": clean(r.name),
        "path": clean(r.path, 1000),
        "outcome": "repeated" if repeated else clean(r.outcome),
        "cause": clean(r.cause, 1000),
        "experiment": presentable(dataclasses.asdict(r.experiment)),
        **{name: getattr(r, name) for name in _NUMBERS},
        "epochs": [dataclasses.asdict(e) for e in r.epochs],
        "confusion": dataclasses.asdict(r.confusion) if r.confusion else None,
    }


def _group(g: Group) -> dict[str, Any]:
    return {
        "seeds": len(g.errors),
        "mean": g.mean,
        "std": g.std,
        "half": g.half,
        "errors": {str(seed): error for seed, error in g.by_seed.items()},
        "lost": dict(g.lost),
    }


def _compared(row: tuple[Series, Series, int, Difference]) -> dict[str, Any]:
    series, reference, x, d = row
    said = clean(sentences.sentence(series.label, reference.label, x, d), 1000)
    return {"series": series.label, "reference": reference.label, "x": x, **_difference(d)} | {
        "sentence": said
    }


def _pair(p: pairs.Pair) -> dict[str, Any]:
    """Of the paired t-test; p_holm is adjusted for all pairs at one x, and judged by."""
    return {
        "series": p.series.label,
        "other": p.other.label,
        "x": p.x,
        **_difference(p.difference),
        "p": p.difference.p,
        "p_holm": p.p,
        "significant": None if p.p is None else p.significant,
        "sentence": clean(p.words, 1000),
    }


def _difference(d: Difference) -> dict[str, Any]:
    return {
        "value": d.value,
        "half": d.half,
        "effect": d.effect,
        "seeds": list(d.num_seeds),
        "significant": None if d.half is None else d.significant,
    }


def _conversions(a: Analysis) -> list[dict[str, Any]]:
    found = []
    for network in networks(a):
        for way in network.ways:
            loss = network.loss(way)
            found.append(
                {
                    "network": network.label,
                    "way": way.label,
                    "norm": way.norm,
                    "source_norm": way.source_norm,
                    "before": {str(seed): error for seed, error in way.before.items()},
                    "loss": _difference(loss) if loss else None,
                    "after": {str(x): _group(g) for x, g in way.after.items()},
                }
            )
    return found


def _published(p: Published) -> dict[str, Any]:
    rows = [
        {"what": n.what, "values": n.values, "norm": n.norm, "at": n.at, "mark": p.mark(n)}
        for n in p.numbers
    ]
    return {
        "id": p.id,
        "title": p.title,
        "source": SOURCES[p.source],
        "setting": p.setting,
        "columns": p.columns,
        "rows": rows,
        "mark": SECOND_HAND if p.second_hand else "",
    }


def _strict(value: Any) -> Any:
    """Only what JSON has: null for NaN and infinity, text as text for every key."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(v) for v in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A number as it is; text that a spreadsheet would run gets a quote before it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    text = clean(str(value), 1000)
    plain = text.replace("−", "-")
    if _is_number(plain):
        return plain
    return f"'{text}" if text.startswith(_FORMULA) else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and text.strip() == text and "_" not in text
    except ValueError:
        return False
