"""Own images listed in a table: csv:FILE with the columns path, label and, if you like, split.

Paths start from the folder of the file. Labels are names, or numbers from 0. A split is train,
validation (also val or valid) or test; without the column all are training images. Other columns
are ignored.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.listed import Listing, lines, numbered
from normlab.lab.data.paths import SPLIT_NAMES, shown
from normlab.lab.data.pictures import ENDINGS

_SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def load(what: str, split: str) -> Dataset | None:
    """The images of one split.

    Raises:
        DataError: no such file, no such table, or a path out of its folder; names the line.
    """
    if not what:
        raise DataError("csv needs a file: csv:FILE")
    file = Path(what)
    train = _listing(file, "train")
    if not len(train.paths):
        raise DataError(f"{shown(file)} lists no training images; expected at least one")
    numbers, classes = numbered(train)
    listing = train if split == "train" else _listing(file, split)
    return listing.dataset(numbers, classes) if len(listing.paths) else None


def _listing(file: Path, split: str) -> Listing:
    rows = ((line, path, label) for line, path, label, of in _rows(file) if of == split)
    return Listing.of(file, file.parent, rows)


def _rows(file: Path) -> Iterator[tuple[int, str, str, str]]:
    """Number of the line, path, label and split."""
    reader = csv.reader(lines(file), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        path, label, split = _columns(header, shown(file))
        for row in reader:
            where = f"{shown(file)}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} cells, the header has {len(header)}; put text with "
                    "commas in quotes"
                )
            of = "train" if split is None else row[split].strip()
            if of not in _SPLITS:
                raise DataError(f"{where}: split {of[:40]!r} is none of {', '.join(_SPLITS)}")
            if not row[label].strip():
                raise DataError(f"{where}: no label; write one, or leave out the line")
            yield reader.line_num, row[path], row[label].strip(), _SPLITS[of]
    except csv.Error as error:
        raise DataError(
            f"{shown(file)}:{reader.line_num}: {error}; is a quote not closed there or before?"
        ) from error


def _columns(header: list[str], where: str) -> tuple[int, int, int | None]:
    """Which columns are path, label and split."""
    if not any(header):
        raise DataError(f"{where} has no header; its first line must be path,label or the like")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the header has {twice[0]!r} twice; name each column once")
    lacking = [name for name in ("path", "label") if name not in header]
    if not lacking:
        split = header.index("split") if "split" in header else None
        return header.index("path"), header.index("label"), split
    came = f"{where}: no column {lacking[0]!r}, the first line is {','.join(header)[:80]!r}"
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(f"{came}; separate columns by commas")
    if any(cell.lower().endswith(ENDINGS) for cell in header):
        raise DataError(f"{came}; begin with a header: path,label")
    raise DataError(f"{came}; name the columns path and label")
