"""One self-contained HTML page from the runs of a comparison: it loads nothing."""

import base64
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.lab.analysis import LAST_EPOCHS, Analysis, analyse
from normlab.lab.report import charts, comparison, draw, run_parts, sections, sentences, tables

if TYPE_CHECKING:
    from normlab.lab.results import Result
    from normlab.lab.runs import Run

__all__ = ["ReportError", "build"]

_HERE = Path(__file__).parent


class ReportError(ValueError):
    """A page that cannot be written; names the file and what to do."""


def build(
    runs: Sequence["Run"],
    damaged: Iterable[tuple[Any, str]],
    *,
    title: str,
    note: str,
    out: Path,
    by: str = "samples",
    last: int = LAST_EPOCHS,
) -> Path:
    """Writes the page at `out`, at once or not at all, and returns where it is.

    Args:
        runs: in any order and any state; those without a result are listed.
        damaged: folder and reason of each run that could not be read.
        title: the question.
        note: what a reader has to know to judge the answer.
        by: what error curves are against at first: samples, epochs or steps.
        last: epochs at the end whose median is a run's result.

    Raises:
        ReportError: `out` cannot be written.
    """
    page = render(analyse(runs, damaged, last=last), runs, title=title, note=note, by=by)
    write(Path(out), page)
    return Path(out)


def write(out: Path, page: str) -> None:
    """Writes the page at once or not at all.

    Raises:
        ReportError: `out` cannot be written.
    """
    try:
        _write(out, page)
    except OSError as error:
        raise ReportError(
            f"cannot write the report to {out}: {error.strerror or error}; "
            "choose a file in a folder you may write to"
        ) from error


def render(
    a: Analysis,
    runs: Sequence["Run"],
    *,
    title: str,
    note: str = "",
    watch: str = "",
    by: str = "samples",
) -> str:
    """The page as text.

    Args:
        runs: those that `a` was made from.
        by: what error curves are against at first: samples, epochs or steps.
        watch: version of a served page, which asks its server for a newer one; "" never asks.
    """
    files = ("page.css", "figure.css", "page.js")
    page, marks, script = ((_HERE / name).read_text(encoding="utf-8") for name in files)
    style = page + marks
    template, markup = _template()
    return template.render(
        title=" ".join(title.split()),
        note=" ".join(note.split()),
        headline=sentences.headline(a),
        figure=comparison.headline_figure(a),
        sections=sections.sections(a, runs, versions(runs), by),
        last=a.last,
        swatch=lambda css: markup(charts.swatch(css)),
        safe=lambda svg: markup(draw.checked(svg)),
        watch=watch,
        style=markup(style),
        style_hash=digest(style),
        script=markup(script),
        script_hash=digest(script),
    )


@functools.cache
def _template() -> tuple[Any, Any]:
    """The page to fill in, and the type of text that it takes as it is."""
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
    return environment.get_template("page.html.j2"), Markup


def versions(runs: "Iterable[Run | Result]") -> dict[str, str]:
    """What the runs recorded of their machine; several values where they differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run_parts.environment(Path(run.path)).items():
            if isinstance(value, str | int | float):
                found.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in found.items()}


def digest(text: str) -> str:
    """SHA-256 as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
