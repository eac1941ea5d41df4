"""What the lab costs over a bare PyTorch loop on the same network and data: time and peak memory.

Epochs of both loops alternate in one process, so that a slow minute of the machine hits both; the
figure is the median of their ratios. Memory is measured in processes of their own, one a loop.

    python benchmarks/lab_overhead.py            prints, and appends to results/lab_overhead.csv
"""

import argparse
import csv
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from normlab.lab import data, models
from normlab.lab.compute import Compute
from normlab.lab.data import loader
from normlab.lab.experiment import Experiment
from normlab.lab.interrupt import Interrupt
from normlab.lab.processes import Group
from normlab.lab.runs import Run
from normlab.lab.train import _Session, train

RESULTS = Path(__file__).parent / "results" / "lab_overhead.csv"
EXPERIMENTS = {
    "relit_digits": Experiment(norm="torch_bn"),
    "cifar10, augmented": Experiment(
        data="npz:data/cifar10", norm="torch_bn", augment="crop_flip", num_train=4096,
        num_validation=500, batch_size=64,
    ),
}  # fmt: skip
CPU, ON_CPU = torch.device("cpu"), Compute(device="cpu")


class BareLoop:
    """What one would write by hand: float tensors in memory, one loss, one step."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        how = {"limit": experiment.num_train, "image_size": experiment.image_size}
        images = data.load(experiment.data, "train", **how)
        self.x = images.images.float()
        self.x = (self.x - self.x.mean((0, 2, 3), keepdim=True)) / self.x.std((0, 2, 3)).view(
            1, -1, 1, 1
        )
        self.y = images.labels
        torch.manual_seed(0)
        self.model = models.build(experiment.model, len(images.classes), norm=experiment.norm)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
        )

    def epoch(self) -> None:
        self.model.train()
        total = 0.0
        for indices in torch.randperm(len(self.y)).split(self.experiment.batch_size):
            if len(indices) < self.experiment.batch_size:
                break
            x = self.x[indices]
            if self.experiment.augment != "none":
                pad = x.shape[-1] // 8
                top, left = torch.randint(0, 2 * pad + 1, (2,)).tolist()
                x = F.pad(x, (pad,) * 4)[
                    :, :, top : top + self.x.shape[2], left : left + self.x.shape[3]
                ]
                x = x.flip(-1) if torch.rand(()) < 0.5 else x
            logits = self.model(x.expand(-1, 3, -1, -1))
            loss = F.cross_entropy(logits, self.y[indices])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()


class LabLoop:
    """The lab's own loop, one epoch at a time, without its validation."""

    def __init__(self, experiment: Experiment, root: Path) -> None:
        self.session = _Session(Run.create(root, experiment), ON_CPU, Group(0, 1, CPU))
        self.session._end_epoch = self._restart  # validation is work the bare loop does not do
        places = self.session.batches.places((0, 0), 1_000)
        self.rest = loader.stream(self.session.batches, places, workers=0)

    def epoch(self) -> None:
        self.session._run_epoch(self.rest, Interrupt(), lambda progress: None)

    def _restart(self) -> None:
        self.session.at.batch = 0


def seconds(loop: BareLoop | LabLoop) -> float:
    start = time.perf_counter()
    loop.epoch()
    return time.perf_counter() - start


def time_ratio(experiment: Experiment, rounds: int) -> tuple[float, float]:
    """Median of lab / bare, and the bare seconds per epoch."""
    with tempfile.TemporaryDirectory() as folder:
        bare, lab = BareLoop(experiment), LabLoop(experiment, Path(folder))
        bare.epoch(), lab.epoch()
        pairs = [(seconds(lab), seconds(bare)) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs)


def peak_bytes(name: str, which: str) -> int:
    """Peak resident memory of a process that trains for two epochs."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", which, "--experiment", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


def run_for_memory(which: str, experiment: Experiment) -> None:
    if which == "bare":
        loop = BareLoop(experiment)
        loop.epoch(), loop.epoch()
    elif which == "lab":
        with tempfile.TemporaryDirectory() as folder:
            train(Run.create(Path(folder), experiment.replace(epochs=2)), compute=ON_CPU)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", choices=["bare", "lab"])
    parser.add_argument("--experiment", choices=list(EXPERIMENTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        run_for_memory(arguments.memory, EXPERIMENTS[arguments.experiment])
        return
    rows = []
    for name in [arguments.experiment] if arguments.experiment else EXPERIMENTS:
        ratio, bare = time_ratio(EXPERIMENTS[name], arguments.rounds)
        memory = peak_bytes(name, "lab") / peak_bytes(name, "bare")
        rows.append([name, arguments.rounds, f"{bare:.3f}", f"{ratio:.3f}", f"{memory:.3f}",
                     platform.machine(), torch.__version__])  # fmt: skip
        print(f"{name}: time {ratio:.3f}, peak memory {memory:.3f} of a bare loop's")
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["experiment", "rounds", "bare_seconds_per_epoch", "time_ratio",
                             "peak_memory_ratio", "machine", "torch"])  # fmt: skip
        writer.writerows(rows)


if __name__ == "__main__":
    main()
