"""The tables of a comparison in a terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis
from normlab.lab.report import sentences, tables
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from rich.console import Console


def print_findings(console: "Console", a: Analysis) -> None:
    """Prints the tables that answer the question, and the answer in words."""
    print_tables(console, tables.results(a))
    for sentence in (*sentences.headline(a), *sentences.about_batch_norm(a)):
        console.print(clean(sentence, 5000), markup=False, highlight=False)


def print_tables(console: "Console", shown: Iterable[Table]) -> None:
    """Prints tables one below the other; text of runs is never read as markup or as a control."""
    try:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError as error:
        raise ImportError('tables need rich: pip install "normlab[lab]"') from error

    for table in shown:
        made = RichTable(
            title=Text(table.title, style="bold"),
            caption=Text(clean(table.note, 1000), style="dim") if table.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for name, numeric in zip(table.columns, table.numeric or [False] * len(table.columns)):
            made.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
        for row in table.rows:
            made.add_row(*(Text(cell) for cell in row))
        console.print(made)
