"""Images as rows of numbers in a CSV file, and tables written as CSV: in and out of prediction."""

import csv
import math
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normlab.lab.data.dataset import DataError

_MAX_BYTES = 2**30
_NUMBER = re.compile(r"\s*\+?0*[0-9]{1,3}\s*")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_csv(path: str | Path, shape: Sequence[int]) -> Tensor:
    """Images from a CSV file without header: C*H*W whole numbers 0 to 255 a row, channel first.

    Args:
        path: the file; a byte order mark, CRLF and empty lines are accepted.
        shape: (C, H, W).

    Returns:
        uint8, (N, C, H, W).

    Raises:
        DataError: names file, line and what is wrong there.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a CSV file of pixels")
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path} has more than {_MAX_BYTES:,} bytes; split it into several files")
    try:
        # An open file: given a path, loadtxt would unpack archives and fetch URLs.
        with path.open(encoding="utf-8-sig") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no rows: an error below
            rows = np.loadtxt(file, np.uint8, delimiter=",", comments=None, ndmin=2)
    except (ValueError, OverflowError, DeprecationWarning) as error:
        raise _first_error(path, shape, error) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the file") from error
    if not rows.size:
        raise DataError(f"{path} is empty; expected {math.prod(shape)} numbers a line")
    if rows.shape[1] != math.prod(shape):
        raise _first_error(path, shape, None)
    return torch.from_numpy(rows).view(len(rows), *shape)


def _first_error(path: Path, shape: Sequence[int], cause: Exception | None) -> DataError:
    """Read again, slowly, to say where and why."""
    expected = math.prod(shape)
    size = "×".join(map(str, shape))
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError:
                return DataError(f"{where}: not UTF-8 text; save it as plain CSV")
            if "\0" in line:
                return DataError(
                    f"{where}: a NUL byte; this is no CSV file, or UTF-16: save as UTF-8"
                )
            if not line.strip():
                continue
            cells = line.split(",")
            wrong = next((k for k, c in enumerate(cells) if not _is_pixel(c)), None)
            if wrong is not None:
                return DataError(f"{where}: {_explain(cells, wrong, number, line)}")
            if len(cells) != expected:
                label = "; remove the column of labels" if len(cells) == expected + 1 else ""
                return DataError(
                    f"{where}: {len(cells)} numbers, expected {expected} ({size}){label}"
                )
    return DataError(f"{path}: not a table of whole numbers ({cause}); save it as plain CSV")


def _is_pixel(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell)) and int(cell) <= 255


def _explain(cells: list[str], wrong: int, number: int, line: str) -> str:
    cell = cells[wrong]
    came = f"column {wrong + 1} is {cell[:40]!r}, expected a whole number 0 to 255"
    if number == 1 and all(re.search("[A-Za-z]", c) for c in cells):
        return f"{came}; the first line looks like a header, remove it"
    if len(cells) == 1 and re.search(r"\d\s*[;\t| ]\s*\d", line):
        return f"{came}; separate the numbers by commas"
    if ";" in line:
        return f"{came}; use commas between numbers, not semicolons, and no decimal commas"
    if '"' in cell:
        return f"{came}; remove the quotes"
    return f"{came}; save the pixels unscaled"


def write_csv(
    path: str | Path, rows: Iterable[Sequence[Any]], header: Sequence[str] | None = None
) -> None:
    """Write a table, whole or not at all; text that a spreadsheet would run gets a quote before it.

    Raises:
        DataError: the file cannot be written; what was there is unchanged.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if header is not None:
                writer.writerow([_harmless(cell) for cell in header])
            writer.writerows([_harmless(cell) for cell in row] for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; name another file") from error
    finally:
        part.unlink(missing_ok=True)


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
