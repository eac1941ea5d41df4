"""Images a second that reach the training loop, against torchvision's ImageFolder and DataLoader.

Photographs of ImageNet at 224 pixels with the augmentation of the group norm paper: a random part,
mirrored or not, with other brightness, contrast and saturation. Both sides read the same files with
the same number of workers and take turns in one process; figures are medians over the rounds.
"prepared" adds on our side what torchvision does in its workers, and we on the device of the
network: colours and normalization, here on the CPU of the parent. Ratios are torchvision's cost
over ours, of the clock and of the processor (user and system time of parent and workers); where
other programs run, the latter is the steadier.

Memory is what parent and workers hold together in the middle of an epoch (proportional set size):
beside the processes themselves, workers x 2 batches wait in shared memory.

    python benchmarks/input_pipeline.py ../shared/data/imagenet-samples            prints
    python benchmarks/input_pipeline.py ../shared/data/imagenet-samples --keep     and keeps rows
"""

import argparse
import csv
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torchvision import datasets, transforms

from normlab.lab import data
from normlab.lab.data.batches import Batches
from normlab.lab.data.loader import stream
from normlab.lab.tasks.classification import Input

RESULTS = Path(__file__).parent / "results" / "input_pipeline.csv"
SIZE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
Epoch = Callable[[], Iterator[Any]]


def repeated(source: Path, folder: Path, times: int) -> None:
    """The same photographs under several names; links would be refused."""
    for picture in source.glob("*/*"):
        target = folder / picture.parent.name
        target.mkdir(exist_ok=True)
        for k in range(times):
            shutil.copy(picture, target / f"{k}_{picture.name}")


def ours(folder: Path, workers: int) -> Epoch:
    """uint8 images, and for each its change of colours."""
    address = f"folder:{folder}"
    images = data.load(address, "train", image_size=SIZE, view="centre", validation=0.001)
    batches = Batches(images, BATCH, seed=0, augment="imagenet")
    return lambda: stream(batches, batches.places((0, 0), 1), workers=workers)


def prepared(epoch: Epoch) -> Epoch:
    """The same as the network sees them."""
    scale = [tuple(255 * x for x in statistic) for statistic in (MEAN, STD)]
    input = Input(scale[0], scale[1], (3, SIZE, SIZE), ())
    return lambda: (input.prepare(b.images, CPU, b.colour) for b in epoch())


def torchvisions(folder: Path, workers: int) -> Epoch:
    """float32 images, normalized."""
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images = datasets.ImageFolder(str(folder), change)
    return lambda: iter(
        torch.utils.data.DataLoader(
            images, BATCH, shuffle=True, num_workers=workers, drop_last=True
        )
    )


def cost(epoch: Epoch) -> tuple[float, float]:
    """Seconds an image, of the clock and of the processor in parent and workers."""
    start, busy = time.perf_counter(), sum(os.times()[:4])
    count = BATCH * sum(1 for _ in epoch())
    return (time.perf_counter() - start) / count, (sum(os.times()[:4]) - busy) / count


def mebibytes(epoch: Epoch, batches: int = 6) -> float:
    """What this process and those it started hold after so many batches."""
    running = epoch()
    for _ in range(batches):
        next(running)
    parent = os.getpid()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sum(_proportional(pid) for pid in (parent, *children))


def _proportional(pid: int | str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def row(folder: Path, workers: int, rounds: int) -> dict[str, Any]:
    mine, theirs = ours(folder, workers), torchvisions(folder, workers)
    sides = {"ours": mine, "ours_prepared": prepared(mine), "torchvision": theirs}
    costs = [{name: cost(side) for name, side in sides.items()} for _ in range(rounds)]
    speeds = {name: statistics.median(1 / c[name][0] for c in costs) for name in sides}
    busy = {name: statistics.median(1000 * c[name][1] for c in costs) for name in sides}
    ratios = {
        f"{name}_{kind}": statistics.median(c["torchvision"][k] / c[name][k] for c in costs)
        for name in ("ours", "ours_prepared")
        for k, kind in enumerate(("ratio", "processor_ratio"))
    }
    return {
        "workers": workers,
        "rounds": rounds,
        **{f"{name}_images_per_second": f"{value:.0f}" for name, value in speeds.items()},
        **{f"{name}_processor_milliseconds": f"{value:.2f}" for name, value in busy.items()},
        **{name: f"{value:.2f}" for name, value in ratios.items()},
        "ours_mebibytes": f"{mebibytes(mine):.0f}",
        "torchvision_mebibytes": f"{mebibytes(theirs):.0f}",
        "waiting_mebibytes": f"{workers * 2 * BATCH * 3 * SIZE * SIZE / 2**20:.1f}",
        "load_average": f"{os.getloadavg()[0]:.1f}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, help="folder with a folder per class")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=10, help="copies of each photograph")
    parser.add_argument("--keep", action="store_true", help="append to results/input_pipeline.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the parent's; DataLoader gives each worker one, too
    with tempfile.TemporaryDirectory() as folder:
        repeated(arguments.photographs, Path(folder), arguments.times)
        rows = [row(Path(folder), workers, arguments.rounds) for workers in arguments.workers]
    for found in rows:
        print(*(f"{key}={value}" for key, value in found.items()), sep="  ")
    if arguments.keep:
        new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
