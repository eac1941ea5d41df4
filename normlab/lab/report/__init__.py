"""One self-contained HTML page from the runs of a comparison: no script, no network."""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.lab.analysis import Analysis, analyse
from normlab.lab.report import charts, sentences, tables

if TYPE_CHECKING:
    from normlab.lab.runs import Run

__all__ = ["ReportError", "build"]

_HERE = Path(__file__).parent
_MAX_ENVIRONMENT = 1_000_000  # bytes


class ReportError(ValueError):
    """A page that cannot be written; names the file and what to do."""


def build(
    runs: Sequence["Run"],
    damaged: Iterable[tuple[Any, str]],
    *,
    title: str,
    note: str,
    out: Path,
) -> Path:
    """Writes the page at `out`, at once or not at all, and returns where it is.

    Args:
        runs: in any order and any state; those without a result are listed.
        damaged: folder and reason of each run that could not be read.
        title: the question.
        note: what a reader has to know to judge the answer.

    Raises:
        ReportError: `out` cannot be written.
    """
    page = render(analyse(runs, damaged), versions(runs), title=title, note=note)
    out = Path(out)
    try:
        _write(out, page)
    except OSError as error:
        raise ReportError(
            f"cannot write the report to {out}: {error.strerror or error}; "
            "choose a file in a folder you may write to"
        ) from error
    return out


def render(a: Analysis, versions: Mapping[str, str], *, title: str, note: str) -> str:
    """The page as text."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError('the report needs jinja2: pip install "normlab[lab]"') from error

    def shown(value: Any) -> Any:
        return value if isinstance(value, Markup) else tables.clean(str(value), 5000)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    colours = charts.colour_classes(a)
    return environment.get_template("page.html.j2").render(
        a=a,
        title=" ".join(title.split()),
        note=" ".join(note.split()),
        headline=sentences.headline(a),
        findings=[*sentences.about_batch_norm(a), *sentences.caveats(a)],
        in_words=tables.in_words(a),
        tables=tables,
        versions=versions,
        figures=[
            ("wide", Markup(charts.error_by_batch(a, 720, 400))),
            ("narrow", Markup(charts.error_by_batch(a, 360, 340))),
        ],
        panels=[(name, Markup(svg)) for name, svg in charts.error_curves(a)],
        legend=[(s.label, Markup(charts.swatch(colours[s.label]))) for s in a.series],
        off_scale=charts.off_scale(a) if len(a.xs) > 1 else [],
        spread=sentences.spread,
        num_counted=sum(r.error is not None for r in a.results),
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def versions(runs: Iterable["Run"]) -> dict[str, str]:
    """What the runs recorded of their machine; several values where they differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in _environment(Path(run.path) / "environment.json").items():
            if isinstance(value, str | int | float):
                found.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}


def _environment(path: Path) -> dict[str, Any]:
    """The file's contents; nothing if it is missing or damaged, for no number depends on it."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(path, encoding="utf-8") as file:
            read = json.loads(file.read(_MAX_ENVIRONMENT))
        return read if isinstance(read, dict) else {}
    return {}


def _write(out: Path, page: str) -> None:
    """Written aside, then renamed: whoever reads `out` sees the old page or the new one."""
    handle, aside = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}-", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, out)
    except BaseException:
        os.unlink(aside)
        raise


def _umask() -> int:
    """The process's mask for new files, which mkstemp ignores."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
