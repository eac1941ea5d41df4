"""Norm + activation, forward and backward: ours against torch's pairs, over the shapes of networks.

Ours and torch's, batch and group norm, take turns in one process with a copy of the tensor; figures
are medians of ratios within a round. `copies` is the time in copies, `of_fastest` in those of the
faster of torch's two, `of_batch` in those of torch's batch norm.

    python benchmarks/kernels.py                    the shapes below, both formats, 1 and 2 threads
    python benchmarks/kernels.py --shape 8x256x56x56 --threads 1 --dtype bfloat16

Rows are appended to results/kernels_cpu.csv. Where memory comes from matters for large tensors: run
it again with MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_MAX_=0 for what is left without page
faults.
"""

import argparse
import csv
import math
import statistics
from pathlib import Path

import torch

from normlab.lab.bench import Case, Timer, alternate, candidates, read_shape
from normlab.lab.bench.results import setting

RESULTS = Path(__file__).parent / "results" / "kernels_cpu.csv"
STAGES = ("256x56x56", "512x28x28", "1024x14x14", "2048x7x7")  # of a ResNet-50
SHAPES = [
    *(f"{n}x{map_}" for n in (2, 8, 32) for map_ in STAGES),
    "8x64x112x112", "32x64x112x112",  # the stem of a ResNet
    "2x320x64x64", "2x640x32x32", "2x1280x16x16", "1x128x256x256",  # diffusion
    "2x32x32x64x64", "2x64x24x24x24",  # 3-D medical
    "1x64x8x56x56", "2x256x4x28x28",  # video
    "8x60x61x61", "4x96x37x37",  # not powers of two
    "2x64x16x16", "2x64x8x8", "2x64x4x4",  # small
]  # fmt: skip
COLUMNS = ["shape", "megabytes", "memory_format", "dtype", "activation", "residual", "passes",
           "threads", "by", "norm", "milliseconds", "copies", "of_fastest", "of_batch", "rounds",
           "num_disturbed", "machine", "allocator", "torch", "normlab"]  # fmt: skip


def measured(shape: str, norms: list[str], rounds: int, **options) -> list[dict]:
    """A row for each norm by ours and by torch."""
    calls, timer = {}, Timer()
    for norm in norms:
        for by, call in candidates(Case(read_shape(shape), norm, **options), compile=False).items():
            calls[(by, "" if by == "copy" else norm)] = call
    seconds = alternate(calls, rounds, timer=timer)
    theirs = [taken for (by, _), taken in seconds.items() if by == "torch"]
    fastest = [min(round_) for round_ in zip(*theirs)]

    def of(taken: list[float], base: list[float]) -> str:
        return f"{statistics.median(t / b for t, b in zip(taken, base)):.3f}"

    batch = seconds.get(("torch", "batch"))
    here = setting("cpu")
    size = math.prod(read_shape(shape)) * getattr(torch, options["dtype"]).itemsize
    return [
        {
            "shape": shape, "megabytes": f"{size / 1e6:.2f}", **options, "by": by, "norm": norm,
            "passes": "forward+backward" if options["backward"] else "forward",
            "milliseconds": f"{1000 * statistics.median(taken):.4f}",
            "copies": of(taken, seconds[("copy", "")]),
            "of_fastest": of(taken, fastest), "of_batch": of(taken, batch) if batch else "",
            "rounds": rounds, "num_disturbed": timer.num_disturbed, **here,
        }
        for (by, norm), taken in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=SHAPES)
    parser.add_argument("--norm", nargs="+", default=["group:32", "batch"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--memory-format", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--activation", nargs="+", default=["relu"])
    parser.add_argument("--residual", action="store_true")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    new = not given.out.exists()
    with given.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        for threads in given.threads:
            torch.set_num_threads(threads)
            for shape, memory_format, dtype, activation in (
                (s, m, d, a) for s in given.shape for m in given.memory_format
                for d in given.dtype for a in given.activation
            ):  # fmt: skip
                channels = read_shape(shape)[1]
                norms = [
                    n if n != "group:32" or channels % 32 == 0 else "group" for n in given.norm
                ]
                rows = measured(
                    shape, norms, given.rounds, memory_format=memory_format, dtype=dtype,
                    activation=activation, residual=given.residual,
                    backward=not given.forward_only,
                )  # fmt: skip
                writer.writerows(rows)
                file.flush()
                shown = "  ".join(
                    f"{r['by'][:4]} {r['norm'][:5]} {r['copies']:>6} ({r['of_fastest']})"
                    for r in rows[1:]
                )
                print(f"{shape:16} {memory_format:13} {threads} {dtype} {activation}  {shown}")


if __name__ == "__main__":
    main()
