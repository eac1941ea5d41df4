"""Training step of a network with each norm, as multiples of the step with torch's batch norm.

All networks live in one process and take turns, so that a slow moment of the machine hits all;
figures are medians of ratios within a round.

    python benchmarks/norm_in_network.py         prints, and appends to results/norm_in_network.csv
"""

import argparse
import csv
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from normlab import norms
from normlab.lab import models

RESULTS = Path(__file__).parent / "results" / "norm_in_network.csv"


def stepper(address: str, norm: str, shape: tuple[int, ...]):
    """A function that makes one training step."""
    torch.manual_seed(0)
    model = models.build(address, 10, norm=norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    x, labels = torch.randn(shape), torch.randint(0, 10, shape[:1])

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet:8")
    parser.add_argument("--shape", default="32x3x12x12")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = tuple(map(int, arguments.shape.split("x")))
    steps = {name: stepper(arguments.model, name, shape) for name in norms.available()}
    for step in steps.values():
        step()
    rounds = [{n: seconds(step) for n, step in steps.items()} for _ in range(arguments.rounds)]
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["model", "shape", "threads", "rounds", "norm", "ratio_to_torch_bn",
                             "milliseconds", "machine", "torch"])  # fmt: skip
        for name in steps:
            ratio = statistics.median(r[name] / r["torch_bn"] for r in rounds)
            milliseconds = 1000 * statistics.median(r[name] for r in rounds)
            print(f"{name:16} {ratio:5.2f}   {milliseconds:7.2f} ms")
            writer.writerow([arguments.model, arguments.shape, arguments.threads, arguments.rounds,
                             name, f"{ratio:.3f}", f"{milliseconds:.3f}", platform.machine(),
                             torch.__version__])  # fmt: skip


if __name__ == "__main__":
    main()
