"""Is one run by two processes as much faster as it should be? One thread each, in turns.

    python benchmarks/processes.py        adds rows to results/processes.csv

Needs CIFAR-10 as data/cifar10/train.npz. The time is that of the second epoch, so that starting up
is not in it; the ratio is the median over rounds of one process's time to two's.
"""

import csv
import os
import statistics
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from normlab.lab.compute import Compute
from normlab.lab.environment import describe_environment
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run
from normlab.lab.train import train

RESULTS = Path(__file__).parent / "results" / "processes.csv"
COLUMNS = [
    "norm", "seconds_one", "seconds_two", "ratio", "lowest", "highest", "rounds", "torch",
    "processor",
]  # fmt: skip
ROUNDS = 3
SMALL = Experiment(
    data="npz:data/cifar10", model="cifar_resnet:20", num_train=2048, num_validation=64,
    batch_size=64, epochs=2, augment="crop_flip",
)  # fmt: skip
WAYS = {
    "group": SMALL.replace(norm="group"),
    "batch, per worker": SMALL.replace(norm="batch", norm_batch_size=32),
    "batch, of all": SMALL.replace(norm="batch"),
}


def seconds(e: Experiment, processes: int) -> float:
    """Of the second epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder), e)
        train(run, compute=Compute(device="cpu", processes=processes))
        return [event["seconds_train"] for event in run.events() if event["event"] == "epoch"][-1]


def main() -> None:
    torch.set_num_threads(1)
    about = describe_environment()
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        for name, e in WAYS.items():
            pairs = [(seconds(e, 1), seconds(e, 2)) for _ in range(ROUNDS)]
            ratios = sorted(one / two for one, two in pairs)
            one, two = (statistics.median(times) for times in zip(*pairs))
            row = [one, two, statistics.median(ratios), ratios[0], ratios[-1]]
            row = [f"{value:.3f}" for value in row]
            writer.writerow([name, *row, ROUNDS, about["torch"], about["processor"]])
            print(f"{name:18} one {row[0]} s, two {row[1]} s, {row[2]} ({row[3]} to {row[4]})")


if __name__ == "__main__":
    main()
