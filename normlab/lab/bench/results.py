"""What a benchmark found: rows, kept in CSV with all they depend on."""

import csv
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from normlab.lab.environment import describe_environment

# variables that change how memory is handed out, and with it the time of every fresh tensor
_ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_ALLOC", "PYTORCH_CUDA_ALLOC")


class BenchError(ValueError):
    """A measurement that makes no sense as asked."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate under one setting; None, an empty cell, where a figure does not apply.

    Args:
        model: address of the network; empty for a norm alone.
        candidate: copy, normlab, torch, torch.compile; for a network also "as written"
            and "normlab fused".
        passes: forward, or forward+backward.
        copies: time in copies of the tensor, the median of ratios within a round.
        gb_per_second: what had to be moved, by `ACCESSES` of the tensor, per median second.
        ratio_to_torch: time in those of torch's own norm, the median within a round; low and high
            are its quartiles.
        ratio_to_written: the same in steps of the network as written.
        milliseconds: median over rounds.
        norms_milliseconds: the norm layers of the network alone, together.
        bytes_saved: kept for the backward pass, without parameters.
        num_disturbed: samples of the setting kept though the process waited for a core.
        note: why there is nothing.
        allocator: variables that are set; default if none.
    """

    model: str = ""
    shape: str
    norm: str
    activation: str = "none"
    residual: bool = False
    dtype: str
    memory_format: str
    passes: str
    candidate: str
    milliseconds: float | None = None
    copies: float | None = None
    gb_per_second: float | None = None
    ratio_to_torch: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratio_to_written: float | None = None
    norms_milliseconds: float | None = None
    bytes_saved: int | None = None
    rounds: int
    num_disturbed: int | None
    note: str = ""
    device: str
    threads: int
    machine: str
    allocator: str
    torch: str | None
    normlab: str | None


COLUMNS = tuple(field.name for field in fields(Row))


def rows(measured: Iterable[Row]) -> list[dict[str, Any]]:
    """The cells of each row by column, as they stand in a CSV."""
    return [{name: _cell(value) for name, value in asdict(row).items()} for row in measured]


def check_file(file: Path) -> None:
    """Raise unless rows can be appended to a file, which need not be there.

    Raises:
        BenchError: it has other columns, or its folder is not there.
    """
    if not file.parent.is_dir() or file.is_dir():
        raise BenchError(f"{file} cannot be written: it is a folder, or its folder is not there")
    if not file.exists() or not file.stat().st_size:
        return
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        header = next(csv.reader(opened), [])
    if tuple(header) != COLUMNS:
        raise BenchError(f"{file} has other columns, so no rows can be added; choose another file")


def append(measured: Iterable[Row], file: Path) -> None:
    """Add rows to a CSV, after a header where it is new."""
    new = not file.exists() or not file.stat().st_size
    with file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows(measured))


def setting(device: str) -> dict[str, Any]:
    """The columns that tell the machine and its settings."""
    found = describe_environment(device)
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else found["processor"],
        "allocator": _allocator(),
        "torch": found["torch"],
        "normlab": found["normlab"],
    }


def ratios(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios within a round."""
    found = [s / b for s, b in zip(seconds, base)]
    if len(found) == 1:
        return found[0], found[0], found[0]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return low, middle, high


def _allocator() -> str:
    # of a preloaded library the name is told, not its folder
    found = {k: v for k, v in os.environ.items() if k.startswith(_ALLOCATORS)}
    names = {k: ":".join(Path(p).name for p in v.split(":")) for k, v in found.items()}
    return " ".join(f"{k}={v}" for k, v in sorted(names.items())) or "default"


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else value
