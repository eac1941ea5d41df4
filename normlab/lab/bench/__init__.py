"""What one norm costs: ours, torch's own and torch's compiled, against a copy of the tensor.

A call is a forward and a backward pass of y = activation(norm(x) + residual) in training, into
fresh tensors, as in a network. torch's is written as networks write it: the residual and ReLU in
place.
"""

import functools
import importlib.util
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normlab import functional, norms
from normlab.lab.bench.case import FORMATS, Case, read_shape
from normlab.lab.bench.results import BenchError, Row, append, check_file, ratios, rows, setting
from normlab.lab.bench.timing import Call, Progress, Timer, alternate
from normlab.lab.environment import presentable
from normlab.ops import ACTIVATIONS

__all__ = [
    "BenchError",
    "Case",
    "Row",
    "Timer",
    "alternate",
    "append",
    "candidates",
    "check_file",
    "measure",
    "read_shape",
    "rows",
]

# Reads and writes of the whole tensor there must be if statistics stay in cache: forward x, y;
# backward x, dy, dx; a residual is read, and its gradient written. The copy's own are 2.
ACCESSES = {"forward": 2, "forward+backward": 5}
COMPILED = "torch.compile"

# the same call of torch.nn.functional and of normlab.functional
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "batch": lambda f, x, n, **more: f.batch_norm(
        x, n.running_mean, n.running_var, n.weight, n.bias, True, n.momentum, n.eps, **more
    ),
    "group": lambda f, x, n, **more: f.group_norm(x, n.num_groups, n.weight, n.bias, n.eps, **more),
    "layer": lambda f, x, n, **more: f.group_norm(x, 1, n.weight, n.bias, n.eps, **more),
    "instance": lambda f, x, n, **more: f.instance_norm(
        x, None, None, n.weight, n.bias, True, n.momentum, n.eps, **more
    ),
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functools.partial(F.relu, inplace=True),
    "leaky_relu": functools.partial(F.leaky_relu, inplace=True),
}


def candidates(case: Case, *, compile: bool = True) -> dict[str, Call]:
    """What takes turns: "copy", "normlab", and where torch has the norm "torch", "torch.compile".

    A call is one forward and backward pass, of `copy` one copy. The first call compiles. Whatever
    was compiled for the case before is dropped.

    Args:
        compile: with torch.compile, if there is the compiler it needs.
    """
    return _calls(_Given(case), compile and not why_not_compiled(case.device))


def measure(
    case: Case,
    rounds: int = 15,
    *,
    compile: bool = True,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> list[Row]:
    """A row for each candidate; for torch.compile without figures where it is wanted and cannot be.

    Args:
        progress: called after every round with rounds done and rounds in all.
        timer: None is that of the case's device.
    """
    given = _Given(case)
    why_not = why_not_compiled(case.device) if compile else ""
    calls = _calls(given, compile and not why_not)
    if COMPILED in calls:
        try:
            calls[COMPILED]()
        except Exception as error:  # whatever a compiler and its tools may raise
            del calls[COMPILED]
            why_not = presentable(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    timer = timer or Timer.of(case.device)
    seconds = alternate(calls, rounds, timer=timer, progress=progress)
    here = setting(case.device)
    found = []
    for name, taken in seconds.items():
        row = _row(case, name, here, rounds, timer.num_disturbed)
        figures = _figures(case, name, seconds)
        if case.backward and name != "copy":
            figures["bytes_saved"] = bytes_saved(calls[name], given.parameters)
        found.append(Row(**row, milliseconds=1000 * statistics.median(taken), **figures))
    if why_not and given.in_torch:
        found.append(Row(**_row(case, COMPILED, here, rounds, timer.num_disturbed), note=why_not))
    return found


def why_not_compiled(device: str) -> str:
    """What torch.compile lacks on a device; empty if nothing."""
    if torch.device(device).type == "cuda":
        return "" if importlib.util.find_spec("triton") else "Triton is not installed"
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    return "" if shutil.which(compiler) else f"there is no C++ compiler ({compiler})"


def bytes_saved(call: Call, own: Iterable[Tensor]) -> int:
    """Bytes autograd keeps during a call, each storage once.

    Args:
        own: tensors that are not counted: parameters, buffers.
    """
    addresses = {t.untyped_storage().data_ptr() for t in own}
    storages: dict[int, Tensor] = {}  # the tensors are kept, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        call()
    return sum(t.untyped_storage().nbytes() for at, t in storages.items() if at not in addresses)


class _Given:
    """The tensors of a case, and its norm computed by either."""

    def __init__(self, case: Case) -> None:
        self.case = case
        place: Any = {"device": case.device, "dtype": getattr(torch, case.dtype)}
        memory_format = FORMATS[case.memory_format][len(case.shape)]

        def tensor(seed: int) -> Tensor:
            generator = torch.Generator(case.device).manual_seed(seed)
            values = torch.randn(case.shape, generator=generator, device=case.device)
            return values.to(**place).contiguous(memory_format=memory_format)

        self.x = tensor(0).requires_grad_(case.backward)
        self.dy = tensor(1)
        self.residual = tensor(2).requires_grad_(case.backward) if case.residual else None
        self.layer = norms.norm(
            case.norm, case.shape[1], activation=case.activation, momentum=0.1, **place
        )
        self.parameters = [*self.layer.parameters(), *self.layer.buffers()]
        cls, options = norms.parse(case.norm)
        sliced = "norm_batch_size" in options
        self.function = None if sliced else _FUNCTIONS.get(cls.name)

    @property
    def in_torch(self) -> bool:
        """Whether torch has the norm too."""
        return self.function is not None

    def ours(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if self.function is None:
            return self.layer(x, residual)
        return self.function(
            functional, x, self.layer, activation=self.case.activation, residual=residual
        )

    def theirs(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert self.function is not None
        y = self.function(F, x, self.layer)
        if residual is not None:
            y += residual
        name = self.case.activation
        return _IN_PLACE.get(name, ACTIVATIONS[name][0])(y)

    def step(self, function: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        """One pass, or two; all that comes of it is let go."""
        if not self.case.backward:
            with torch.no_grad():
                function(self.x, self.residual)
            return
        wanted = [self.x, *self.layer.parameters()]
        wanted += [] if self.residual is None else [self.residual]
        torch.autograd.grad(function(self.x, self.residual), wanted, self.dy)


def _calls(given: _Given, compile: bool) -> dict[str, Call]:
    copy = torch.empty_like(given.x, requires_grad=False)
    source = given.x.detach()
    calls: dict[str, Call] = {
        "copy": lambda: copy.copy_(source),
        "normlab": functools.partial(given.step, given.ours),
    }
    if given.in_torch:
        calls["torch"] = functools.partial(given.step, given.theirs)
    if given.in_torch and compile:
        torch.compiler.reset()  # else the cases before count towards the limit of recompilations
        # the full graph, or what is timed might in part not be compiled
        compiled = torch.compile(given.theirs, fullgraph=True, dynamic=False)
        calls[COMPILED] = functools.partial(given.step, compiled)
    return calls


def _row(
    case: Case, name: str, here: dict[str, Any], rounds: int, num_disturbed: int | None
) -> dict[str, Any]:
    """The columns that say what was measured."""
    return {
        "shape": "x".join(map(str, case.shape)),
        "norm": case.norm,
        "activation": case.activation,
        "residual": case.residual,
        "dtype": case.dtype,
        "memory_format": case.memory_format,
        "passes": case.passes,
        "candidate": name,
        "rounds": rounds,
        "num_disturbed": num_disturbed,
        **here,
    }


def _figures(case: Case, name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The columns that follow from all candidates' times."""
    accesses = 2 if name == "copy" else ACCESSES[case.passes]
    if case.residual and name != "copy":
        accesses += 1 + case.backward
    size = getattr(torch, case.dtype).itemsize * torch.Size(case.shape).numel()
    figures = {
        "copies": ratios(seconds[name], seconds["copy"])[1],
        "gb_per_second": accesses * size / statistics.median(seconds[name]) / 1e9,
    }
    if "torch" in seconds and name != "copy":
        to_torch = ratios(seconds[name], seconds["torch"])
        figures.update(zip(("ratio_low", "ratio_to_torch", "ratio_high"), to_torch))
    return figures
