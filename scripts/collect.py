"""A row for every run in a folder, to keep beside experiments/LOG.md.

    python scripts/collect.py runs/cifar_seven --split train validation test > results.csv

Without --split the rows hold the validation error, as the report does; with it, also accuracy and
F1 scores of the last checkpoint on each split, in percent.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

from normlab.lab import analysis, evaluate
from normlab.lab.runs import Run, find

FIELDS = ("data", "model", "norm", "batch_size", "norm_batch_size", "epochs", "seed")
SCORES = ("accuracy", "micro_f1", "macro_f1")


def row(run: Run, splits: list[str]) -> dict[str, object]:
    """The setting and the results of one run."""
    result = analysis.read(run)
    described = {name: getattr(run.experiment, name) for name in FIELDS}
    errors = {"validation_error": result.error, "train_error": result.train_error}
    cells = {"run": result.name, "state": result.state, **described, **errors}
    if splits and result.error is not None:
        scores, _ = evaluate.evaluate(run, splits, "last", torch.device("cpu"))
        cells |= {f"{split}_{name}": scores[split][name] for split in splits for name in SCORES}
    return {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in cells.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--split", nargs="*", default=[])
    arguments = parser.parse_args()
    rows = [row(run, arguments.split) for run in find(arguments.runs)[0]]
    columns = list(dict.fromkeys(name for cells in rows for name in cells))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda r: (r["norm"], r["batch_size"], r["seed"])))


if __name__ == "__main__":
    main()
