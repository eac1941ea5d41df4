"""What a page is made of: sections of sentences, figures and tables, in their order.

An analysis adds one to the page with a function `section(a, runs) -> Section | None` in a file of
its own and a line in `sections` below. It gets runs in any state; None leaves the section out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis
from normlab.lab.report.tables import Table

if TYPE_CHECKING:
    from normlab.lab.report.run_parts import RunPart
    from normlab.lab.runs import Run

__all__ = ["Figure", "Section", "sections"]


@dataclass(frozen=True)
class Figure:
    """A drawing with the numbers it shows.

    Args:
        title: what is drawn, in a few words; also the name of its downloads.
        svg: one element `svg` with a viewBox, built as XML so that its text is escaped. A `title`
            in a mark is what hover and keyboard show of it.
        table: the numbers drawn.
        note: how to read it.
        narrow: the same for a phone, 360 wide; "" shrinks `svg`.
        panels: instead of `svg`, several drawings side by side, each with its heading.
        choices: instead of `panels`, some of these to choose from, each under its name.
        chosen: the name of those shown at first, and without script.
        asks: the words before the names.
        legend: colour class and name of each line.
    """

    title: str
    svg: str
    table: Table
    note: str = ""
    narrow: str = ""
    panels: Sequence[tuple[str, str]] = ()
    legend: Sequence[tuple[str, str]] = ()
    choices: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    chosen: str = ""
    asks: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page that a reader can fold.

    Args:
        id: a word, the end of links to it; unique on the page.
        sentences: what was found, as plain text; `more` is the same at length, folded.
        folded: tables that are looked up rather than read.
        unfolded: whether it is open at first.
    """

    id: str
    title: str
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    more: Sequence[str] = ()
    folded: Sequence[Table] = ()
    runs: "Sequence[RunPart]" = ()
    unfolded: bool = True


def sections(
    a: Analysis, runs: "Sequence[Run]", versions: dict[str, str], by: str = "samples"
) -> list[Section]:
    """All sections that have something to say, in the order of the page.

    Args:
        by: what error curves are against at first: samples, epochs or steps.
    """
    # imported here, since each of them imports Section from above
    from normlab.lab.report import (
        comparison,
        confusion,
        conversion,
        costs,
        divisions,
        gates,
        judged,
        pairs,
        probes,
        published,
        run_parts,
        shifts,
    )

    made = (
        comparison.errors(a, runs),
        pairs.section(a, runs),
        comparison.learning(a, runs, by),
        judged.section(a, runs),
        shifts.section(a, runs),
        divisions.batches(a, runs),
        divisions.section(a, runs),
        conversion.section(a, runs),
        gates.section(a, runs),
        probes.section(a, runs),
        confusion.section(a, runs),
        costs.section(a, runs),
        published.section(a, runs),
        run_parts.section(a, runs),
        comparison.setting(a, versions),
        comparison.damaged(a, runs),
    )
    # what most runs are about comes first
    found = [section for section in made if section]
    return sorted(found, key=lambda s: not (a.is_about_conversions and s.id == "conversion"))
