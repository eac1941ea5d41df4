"""Largest error of group norm against the definition in float64, as the mean grows over the spread.

python benchmarks/accuracy.py                prints, and writes results/accuracy.csv
"""

import csv
from pathlib import Path

import torch
from torch.nn import functional as F

from normlab import functional, reference

RESULTS = Path(__file__).parent / "results" / "accuracy.csv"
SHAPE, GROUPS = (4, 64, 32, 32), 4
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    rows = []
    for offset in (0, 10, 100, 1000, 10_000):
        torch.manual_seed(0)
        values = torch.randn(SHAPE) + offset
        truth = reference.normalize(values, f"n (g={GROUPS} c) ... -> n g")
        for name, memory_format in FORMATS.items():
            x = values.contiguous(memory_format=memory_format)
            errors = (
                float((norm(x, GROUPS).double() - truth).abs().max())
                for norm in (F.group_norm, functional.group_norm)
            )
            rows.append([offset, name, *(f"{e:.1e}" for e in errors), torch.__version__])
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mean_over_std", "format", "torch_error", "normlab_error", "torch"])
        writer.writerows(rows)
    for row in rows:
        print(*(str(cell).ljust(14) for cell in row))


if __name__ == "__main__":
    main()
