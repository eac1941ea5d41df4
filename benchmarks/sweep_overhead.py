"""What a sweep costs beside the training itself: seconds a run, in workers that are warm.

Runs are as small as the lab has them, one after the other in one worker. Overhead is the time
between the ends of two runs, as the sweep hears of them, less what the run's own events say was
spent on training and validating. The first run, in which the worker starts and imports torch, is
told apart.

    python benchmarks/sweep_overhead.py            prints, and appends to results/sweep_overhead.csv
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.schedule import Schedule
from normlab.lab.sweep import Activity, run_all

RESULTS = Path(__file__).parent / "results" / "sweep_overhead.csv"
TINY = Experiment(data="digits", num_train=64, num_validation=32, batch_size=16, epochs=2)
NORMS = ("batch", "group", "layer", "instance", "none")


def measured(root: Path, number: int) -> tuple[float, list[float]]:
    """Seconds until the first run has ended, and the overhead of each of the others in seconds."""
    experiments = [TINY.replace(norm=NORMS[i % 5], seed=i // 5) for i in range(number)]
    ends: dict[str, float] = {}

    def watch(activity: Activity) -> None:
        for run_id in activity.states:
            ends.setdefault(run_id, time.perf_counter())

    start = time.perf_counter()
    outcome = run_all(
        experiments, root, compute=Compute(device="cpu"), schedule=Schedule(jobs=1), watch=watch
    )
    assert outcome.count("finished") == number
    overheads = []
    for before, run in zip(outcome.runs, outcome.runs[1:]):
        epochs = [e for e in run.events() if e["event"] == "epoch"]
        trained = sum(e["seconds_train"] + e["seconds_validation"] for e in epochs)
        overheads.append(ends[run.experiment.id] - ends[before.experiment.id] - trained)
    return ends[experiments[0].id] - start, overheads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, overheads = measured(Path(folder), arguments.runs)
    row = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # of everything on the machine
        "runs": arguments.runs,
        "first_run_seconds": round(first, 2),
        "overhead_median_seconds": round(statistics.median(overheads), 3),
        "overhead_worst_seconds": round(max(overheads), 3),
    }
    print(row)
    if arguments.dry:
        return
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
