"""Tables in plain text."""

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their widest cell.

    >>> table(["layer", "to"], [["bn1", "group"]])
    ['layer  to', 'bn1    group']
    """
    return aligned([titles, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same without titles."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
