"""Whether `diagnose` names planted faults and is quiet about healthy networks: a confusion table.

Small networks are trained for seconds on the embedded relit digits, sound or with a fault, and
diagnosed on 900 validation images in batches of 60, unless the fault is in the data.

    python benchmarks/diagnose.py            prints, and writes results/diagnose.csv
"""

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.lab import data, models
from normlab.surgery import findings
from normlab.surgery.diagnose import Diagnosis, diagnose

RESULTS = Path(__file__).parent / "results" / "diagnose.csv"
HEALTHY, BATCH_SIZE = "healthy", 60
SEEDS = (101, 102)


class Case(NamedTuple):
    """A network, what is wrong with it, how that was done, and the data it is judged on."""

    planted: str
    how: str
    model: nn.Module
    loader: list[tuple[Tensor, Tensor]]


def convolutions(width: int = 16) -> nn.Module:
    """Three convolutions with batch norm and ReLU, then a mean over positions."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
        conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def residual() -> nn.Module:
    """ResNet-8 for grey images."""
    model = models.build("cifar_resnet:8", 10)
    model[0] = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {"3 conv": convolutions, "ResNet-8": residual}
TRAIN, VALIDATION = "train", "validation"
SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "brighter": lambda x: x + 1,
    "half the contrast": lambda x: x / 2,
    "inverted": lambda x: -x,
    "noise": lambda x: x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
}


def load(split: str) -> tuple[Tensor, Tensor]:
    images = data.load("relit_digits", split)
    return (images.images.float() / 255 - 0.45) / 0.25, images.labels


DATA = {split: load(split) for split in (TRAIN, VALIDATION)}


def loader(split: str, order: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = (t[order] for t in DATA[split])
    return [(a, b) for a, b in zip(x.split(batch_size), y.split(batch_size)) if len(a) > 1]


def shuffled(split: str, seed: int, batch_size: int = BATCH_SIZE) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(DATA[split][1]), generator=torch.Generator().manual_seed(seed))
    return loader(split, order, batch_size)


def by_class(split: str, batch_size: int = BATCH_SIZE) -> list[tuple[Tensor, Tensor]]:
    return loader(split, DATA[split][1].argsort(stable=True), batch_size)


def train(model: nn.Module, seed: int, batch_size: int, epochs: int, rate: float = 0.1) -> None:
    """SGD with momentum 0.9 and one cycle of the learning rate, `rate` at batch 32."""
    top = rate * min(batch_size, 32) / 32
    steps = epochs * (len(DATA[TRAIN][1]) // batch_size + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=top, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, top, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for epoch in range(epochs):
        for x, y in shuffled(TRAIN, 1000 * seed + epoch, batch_size):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()


def update(model: nn.Module, given: list[tuple[Tensor, Tensor]]) -> None:
    """Move the running averages alone."""
    model.train()
    with torch.no_grad():
        for x, _ in given:
            model(x)
    model.eval()


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "running_var")]


def cases(build: Callable[[], nn.Module], seed: int) -> Iterator[Case]:
    """Sound networks, then one fault at a time."""
    sound = shuffled(VALIDATION, seed)

    def trained(batch_size: int = 32, epochs: int = 3, momentum: float = 0.1) -> nn.Module:
        torch.manual_seed(seed)
        model = build()
        for layer in norms(model):
            layer.momentum = momentum
        train(model, seed, batch_size, epochs)
        return model

    for batch_size in (4, 8, 16, 32, 64):
        model = trained(batch_size)
        yield Case(HEALTHY, f"batch {batch_size}", model, sound)
    model = trained()
    yield Case(HEALTHY, "training data", model, shuffled(TRAIN, seed)[:17])
    yield Case(HEALTHY, "200 images", model, sound[:4])
    yield Case(HEALTHY, "momentum 0.01", trained(8, 3, 0.01), sound)

    yield Case(findings.SMALL_BATCH, "batch 2", trained(2, 1), sound)
    yield Case(findings.STALE, "never updated", trained(32, 3, 0.0), sound)
    yield Case(findings.STALE, "momentum 0.001", trained(32, 3, 0.001), sound)
    moved = trained(32, 1)
    for layer in norms(moved):
        layer.momentum = 0.0
    train(moved, seed, 32, 2, rate=0.2)
    yield Case(findings.STALE, "momentum 0 half way", moved, sound)
    for steps in (3, 12):
        model = trained()
        for layer in norms(model):
            layer.reset_running_stats()
        update(model, shuffled(TRAIN, seed, 32)[:steps])
        yield Case(findings.STALE, f"{steps} steps", model, sound)

    model = trained()
    for name, change in SHIFTS.items():
        yield Case(findings.SHIFTED, name, model, [(change(x), y) for x, y in sound])
    yield Case(findings.BATCHES, "data by class", model, by_class(VALIDATION))
    yield Case(findings.BATCHES, "by class, batch 20", model, by_class(VALIDATION, 20))
    model = trained()
    update(model, by_class(TRAIN, 32))
    yield Case(findings.BATCHES, "averages by class too", model, by_class(TRAIN, 64))

    model = trained()
    norms(model)[1].running_var[3] = float("nan")
    yield Case(findings.NAN, "one variance", model, sound)
    for how, fill in (("weight and bias 0", (0.0, 0.0)), ("bias -20", (0.5, -20.0))):
        model = trained()
        layer = norms(model)[-2]
        with torch.no_grad():
            layer.weight[:5], layer.bias[:5] = fill
        update(model, shuffled(TRAIN, seed, 32))  # later norms have seen it, as after training
        yield Case(findings.DEAD, how, model, sound)


def row(network: str, seed: int, case: Case) -> dict[str, object]:
    start = time.perf_counter()
    found: Diagnosis = diagnose(case.model, case.loader)
    seconds = time.perf_counter() - start
    kinds = [f.kind for f in found.findings]
    ran = sorted((f for f in found.norms if f.has_running), key=lambda f: f.order)
    inverse, explained = findings.small_batch(ran[0])
    top1 = {f"top1_{name}": f"{s.top1:.1f}" for name, s in found.scores.items()}
    return {
        "network": network, "seed": seed, "planted": case.planted, "how": case.how,
        "found": kinds[0] if kinds else HEALTHY, "also": "; ".join(kinds[1:]),
        "largest_gap": f"{max(f.gap() for f in ran):.3f}",
        "largest_gap_over_chance": f"{max(f.gap() / findings.chance(f) for f in ran):.2f}",
        "largest_deviates": f"{max(map(findings.deviates, ran)):.1f}",
        "initial_share_explains": f"{max(findings.initial_share(f)[1] for f in ran):.3f}",
        "inverse_batch_at_first": f"{inverse:.3f}", "which_explains": f"{explained:.3f}", **top1,
        "seconds": f"{seconds:.2f}", "evidence": found.findings[0].evidence if kinds else "",
        "torch": torch.__version__,
    }  # fmt: skip


def print_confusion(rows: list[dict[str, object]]) -> None:
    """Rows are what was planted, columns what was named first."""
    kinds = list(dict.fromkeys([*(r["planted"] for r in rows), *(r["found"] for r in rows)]))
    width = max(map(len, kinds)) + 2
    print("planted \\ found".ljust(width), *(k.ljust(width) for k in kinds))
    for planted in kinds:
        counts = Counter(r["found"] for r in rows if r["planted"] == planted)
        print(planted.ljust(width), *(str(counts[k] or ".").ljust(width) for k in kinds))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for network, build in NETWORKS.items():
        for seed in SEEDS:
            for case in cases(build, seed):
                rows.append(row(network, seed, case))
                shown = ("network", "seed", "planted", "how", "found", "also", "largest_gap")
                print(*(str(rows[-1][key]).ljust(22) for key in shown), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print_confusion(rows)


if __name__ == "__main__":
    main()
