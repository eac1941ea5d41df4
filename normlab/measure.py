"""What `bench` does once its flags are read: cases, progress, tables, rows of a CSV."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from normlab.launch import UsageError, find_device

if TYPE_CHECKING:
    from normlab.lab.bench import Case, Row
    from normlab.lab.bench.network import Network

_TORCHS_CHOICE = tyro.conf.arg(help_behavior_hint="(default: torch's choice)")
_OF_ONE_NORM = ("shape", "activation", "residual")  # not asked of a network
_OF_A_NETWORK = ("batch_size", "image_size")


@dataclass(frozen=True)
class Request:
    """What is measured; where several values are given, each.

    Args:
        shape: Of the tensor, N x C x ..., as in 8x256x56x56.
        norm: Names, as for training.
        activation: Applied last, as relu, silu or gelu.
        residual: Add a tensor before the activation.
        model: Measure a network's training step in place of one norm, as torchvision:resnet50.
        batch_size: Images a step.
        image_size: Height and width of the images, in pixels.
        dtype: float32, bfloat16, float16 or float64.
        memory_format: contiguous or channels_last.
        threads: Cores to use.
        device: cpu, cuda or cuda:N; None: a GPU if any.
        forward_only: Leave out the backward pass.
        compile: Also torch's norm under torch.compile, if there is a compiler; not for networks.
        rounds: Samples of each candidate.
    """

    shape: tuple[str, ...] = ("8x256x56x56",)
    norm: tuple[str, ...] = ("group", "batch")
    activation: str = "none"
    residual: bool = False
    model: str | None = None
    batch_size: int = 8
    image_size: int = 128
    dtype: tuple[str, ...] = ("float32",)
    memory_format: tuple[str, ...] = ("contiguous",)
    threads: Annotated[tuple[int, ...], _TORCHS_CHOICE] = ()
    device: str | None = None
    forward_only: bool = False
    compile: bool = True
    rounds: int = 15


def run(request: Request, out: Path | None) -> int:
    """Measure, print, append to a CSV as soon as a case is done, and return the exit code."""
    _check(request)
    import torch

    from normlab.lab import bench
    from normlab.lab.bench import tables
    from normlab.lab.report import console

    cases = _cases(request, str(find_device(request.device)))
    if out is not None:
        bench.check_file(out)
    shown = Console()
    before = torch.get_num_threads()
    rows: list[Row] = []
    try:
        for threads, case in itertools.product(request.threads or (before,), cases):
            torch.set_num_threads(threads)
            rows = _measure(case, request)
            if out is not None:
                bench.append(rows, out)
            heading = tables.heading(rows)
            shown.print(heading, style="bold", markup=False, highlight=False, soft_wrap=True)
            console.print_tables(shown, [tables.table(rows)])
            for sentence in tables.sentences(rows):
                shown.print(sentence, markup=False, highlight=False)
    except KeyboardInterrupt:
        kept = f"; what was measured is in {out}" if out is not None and rows else ""
        shown.print(f"interrupted{kept}", markup=False)
        return 130
    finally:
        torch.set_num_threads(before)
    shown.print(f"\n{tables.legend(rows)}", style="dim", markup=False, highlight=False)
    if out is not None:
        shown.print(f"rows: {out}", markup=False, soft_wrap=True)
    return 0


def _check(request: Request) -> None:
    """Raise where flags do not go together, before torch is loaded."""
    for name in ("shape", "norm", "dtype", "memory_format"):
        if not getattr(request, name):
            raise UsageError(f"--{name.replace('_', '-')} needs at least one value")
    if request.rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {request.rounds}")
    if min(request.threads, default=1) < 1:
        raise UsageError(f"threads must be at least 1, got {min(request.threads)}")
    defaults = {field.name: field.default for field in fields(Request)}
    idle, why = (
        (_OF_A_NETWORK, "goes with --model only")
        if request.model is None
        else (_OF_ONE_NORM, "does not go with --model")
    )
    for name in idle:
        if getattr(request, name) != defaults[name]:
            raise UsageError(f"--{name.replace('_', '-')} {why}; leave it out")


def _cases(request: Request, device: str) -> list["Case | Network"]:
    """Everything to measure, checked before the first is."""
    from normlab.lab.bench import Case, read_shape
    from normlab.lab.bench.network import Network

    found: list[Case | Network] = []
    for dtype, memory_format in itertools.product(request.dtype, request.memory_format):
        shared: dict[str, Any] = {
            "dtype": dtype,
            "memory_format": memory_format,
            "device": device,
            "backward": not request.forward_only,
        }
        if request.model is not None:
            sizes = request.batch_size, request.image_size
            found.append(Network(request.model, request.norm, *sizes, **shared))
            continue
        fused = request.activation, request.residual
        for shape, norm in itertools.product(request.shape, request.norm):
            found.append(Case(read_shape(shape), norm, *fused, **shared))
    return found


def _measure(case: "Case | Network", request: Request) -> list["Row"]:
    from normlab.lab import bench
    from normlab.lab.bench.network import Network, measure_network
    from normlab.lab.report.tables import clean

    if isinstance(case, Network):
        with _watching(clean(case.model)) as watch:
            return measure_network(case, request.rounds, progress=watch)
    with _watching(clean(case.norm)) as watch:
        return bench.measure(case, request.rounds, compile=request.compile, progress=watch)


@contextmanager
def _watching(name: str) -> Iterator[Any]:
    """Show rounds on a terminal, drawn between samples: a thread that draws would disturb them."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        console=console,
        disable=not console.is_terminal,
        auto_refresh=False,
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=None)
        progress.refresh()
        yield lambda done, total: progress.update(task, completed=done, total=total, refresh=True)
