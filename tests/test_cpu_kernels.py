"""The CPU kernels follow the definition, and it is they that ran; sizes reach every branch.

`CASES` say what each size is there for. Other tests of kernels take theirs, and `KINDS`, from here:
a kernel is compiled once, in seconds, and then kept on disk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from oracle import assert_within, sample
from torch import Tensor

from normlab import reference
from normlab.ops import cpu, eager
from normlab.ops.cpu import plan, sums, team
from normlab.pattern import geometry

GROUP, LAYER, INSTANCE = "n (g=2 c) ... -> n g", "n c ... -> n", "n c ... -> n c"
BATCH, GHOST, BATCH_GROUP = "n c ... -> c", "(b n=2) c ... -> b c", "n (g=2 c) ... -> g"
POSITION = "n c h w -> n h w"


class Case(NamedTuple):
    """A geometry, and the family of kernels that takes it."""

    family: str
    pattern: str
    shape: tuple[int, ...]
    channels_last: bool = False
    center: bool = True


class Kind(NamedTuple):
    """What kernels are compiled for."""

    dtype: torch.dtype
    activation: str
    has_residual: bool

    @property
    def wide(self) -> torch.dtype:
        """What elements are computed in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


class Inputs(NamedTuple):
    """Of a norm, and the gradient of its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    dy: Tensor


BLOCK, ITEM = sums.BLOCK, plan.ITEM
CASES = {
    "group, rows of 16": Case("planes", GROUP, (3, 6, 4, 4)),
    "batch, rows of 49": Case("planes", BATCH, (5, 3, 7, 7)),
    "ghost batch, rows of 15": Case("planes", GHOST, (4, 3, 3, 5)),
    "instance, rows of 17": Case("planes", INSTANCE, (2, 5, 17)),
    "instance, rows of 3": Case("planes", INSTANCE, (4, 5, 3)),
    "batch group, rows of 33": Case("planes", BATCH_GROUP, (3, 4, 3, 11)),
    "batch, 2 items of many samples": Case("planes", BATCH, (ITEM // 49 + 70, 2, 7, 7)),
    "batch, 3 items of long samples": Case("planes", BATCH, (50, 2, 700)),
    "layer, 3 rows an item": Case("planes", LAYER, (2, 7, ITEM // 3 - 400)),
    "layer, 2 items a row": Case("planes", LAYER, (2, 3, ITEM + 3600)),
    "instance, 2 whole items a row": Case("planes", INSTANCE, (2, 3, 2 * ITEM)),
    "batch, an item of 1 position": Case("planes", BATCH, (2, 2, ITEM + 1)),
    "instance, a block of 1 position": Case("planes", INSTANCE, (1, 3, BLOCK + 1)),
    "group of a volume": Case("planes", GROUP, (2, 4, 3, 4, 5)),
    "rms of planes": Case("planes", GROUP, (3, 4, 5, 5), center=False),
    "lines of an image that are kept": Case("planes", "n c h w -> n h", (3, 1, 4, 9)),
    "1 channel": Case("rows", BATCH, (300, 1)),
    "3 channels, 2 chunks and a rest": Case("rows", BATCH, (2, 3, 80, 80), True),
    "3 channels, less than a row": Case("rows", BATCH, (1, 3, 4, 4), True),
    "7 channels": Case("rows", INSTANCE, (2, 7, 9, 9), True),
    "24 channels": Case("rows", GROUP, (2, 24, 6, 6), True),
    "191 channels, 2 chunks and a rest": Case("rows", LAYER, (1, 191, 10, 20), True),
    "192 channels, 2 chunks": Case("rows", BATCH_GROUP, (2, 192, 10, 10), True),
    "200 channels, ghost batch": Case("rows", GHOST, (4, 200, 9, 10), True),
    "256 channels, 2 chunks": Case("rows", INSTANCE, (2, 256, 12, 12), True),
    "batch of vectors": Case("rows", BATCH, (37, 5)),
    "batch group of vectors": Case("rows", BATCH_GROUP, (5, 36)),
    "sequence": Case("rows", GROUP, (2, 6, 35), True),
    "volume": Case("rows", GROUP, (2, 6, 3, 4, 5), True),
    "rms of rows": Case("rows", GROUP, (3, 4, 5, 5), True, center=False),
    "positions that are kept": Case("rows", "n c h w -> n h", (3, 5, 4, 7), True),
    "layer of vectors": Case("lines", LAYER, (9, 33)),
    "layer of 3 values": Case("lines", LAYER, (9, 3)),
    "group of vectors, 38 chunks": Case("lines", "n (g=3 c) ... -> n g", (300, 51)),
    "lines of 2 blocks": Case("lines", LAYER, (3, BLOCK + 905)),
    "1100 lines": Case("lines", LAYER, (1100, 48)),
    "position": Case("lines", POSITION, (2, 15, 3, 5), True),
    "rms of lines": Case("lines", LAYER, (5, 50), center=False),
}
# of each family a small and a large one, where a test needs no more
SOME = {
    name: CASES[name]
    for name in (
        "batch, rows of 49", "batch, 2 items of many samples", "layer, 3 rows an item",
        "layer, 2 items a row", "24 channels", "3 channels, 2 chunks and a rest",
        "200 channels, ghost batch", "group of vectors, 38 chunks", "lines of 2 blocks",
    )
}  # fmt: skip
FLOAT = Kind(torch.float32, "silu", True)
SHORT = Kind(torch.bfloat16, "silu", True)
HALF = Kind(torch.float16, "relu", False)
DOUBLE = Kind(torch.float64, "tanh", False)
KINDS = [FLOAT, SHORT, HALF, DOUBLE]

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_cases = pytest.mark.parametrize("case", SOME.values(), ids=SOME)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.dtype)[6:])


def lay(x: Tensor, channels_last: bool) -> Tensor:
    """A tensor of the same values with channels last in memory or in their place."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def make(
    case: Case,
    kind: Kind,
    change: Callable[[Tensor], Tensor] | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Inputs:
    """Normal values, x changed by a function; dy is 0 where relu has its kink."""
    x, residual, dy = (sample(*case.shape, seed=seed) for seed in range(3))
    x = (change(x) if change else x).to(kind.dtype)
    weight, bias = (sample(case.shape[1], seed=seed, dtype=kind.wide) for seed in (3, 4))
    if kind.activation == "relu":
        z = reference.normalize(
            x, case.pattern, weight, bias, center=case.center, statistics=statistics
        )
        dy = dy * (z.abs() > 1e-4)
    x, residual, dy = (lay(t.to(kind.dtype), case.channels_last) for t in (x, residual, dy))
    return Inputs(x, weight, bias, residual if kind.has_residual else None, dy)


def run(given: Inputs, case: Case, kind: Kind, eps: float = 1e-5) -> tuple[Tensor, ...]:
    """Statistics, y, dx, dweight, dbias and, if there is a residual, its gradient."""
    *inputs, dy = given
    y, statistics = cpu.normalize(*inputs, case.pattern, eps, case.center, kind.activation)
    gradients = cpu.normalize_backward(
        dy, *inputs, statistics, case.pattern, case.center, kind.activation
    )
    return statistics, y, *gradients[: 3 + kind.has_residual]


def define(
    given: Inputs, case: Case, kind: Kind, eps: float = 1e-5, **options: Any
) -> list[Tensor]:
    """What `run` ought to find, but for the statistics."""
    inputs = [t.detach().double().requires_grad_() for t in given[:4] if t is not None]
    y = reference.normalize(
        inputs[0], case.pattern, *inputs[1:3], eps=eps, activation=kind.activation,
        residual=inputs[3] if kind.has_residual else None, center=case.center, **options,
    )  # fmt: skip
    return [y, *torch.autograd.grad(y, inputs, given.dy.double())]


def assert_right(found: Any, truth: Any, kind: Kind, ratio: float = 0.0) -> None:
    """y and gradients; those by parameters have the precision elements are computed in."""
    for i, (actual, expected) in enumerate(zip(found, truth, strict=True)):
        assert_within(actual, expected, dtype=kind.wide if i in (2, 3) else None, ratio=ratio)


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of every kernel that is started from now on."""
    start, started = team.run, []

    def counted(kernel, block, num_threads):
        started.append(num_threads)
        start(kernel, block, num_threads)

    monkeypatch.setattr(team, "run", counted)
    return started


@every_kind
@every_case
def test_kernels_follow_the_definition(case, kind, monkeypatch):
    launches = count_launches(monkeypatch)
    given = make(case, kind)
    _, *found = run(given, case, kind)
    assert_right(found, define(given, case, kind), kind)
    assert len(launches) == 2


@every_case
def test_cases_are_of_the_family_they_name(case):
    task = cpu._task("forward", make(case, FLOAT).x, case.pattern, "silu", None)
    assert task.family == case.family


@every_kind
@every_case
def test_statistics_are_those_of_the_definition(case, kind):
    *inputs, _ = make(case, kind)
    _, (mean, var, rstd) = cpu.normalize(*inputs, case.pattern, 1e-5, case.center, kind.activation)
    true_mean, true_var = reference.moments(inputs[0], case.pattern, center=case.center)
    assert_within(mean, true_mean, dtype=kind.wide, size=float(true_var.max()) ** 0.5)
    assert_within(var, true_var, dtype=kind.wide)
    assert_within(rstd, (true_var + 1e-5).rsqrt(), dtype=kind.wide)


@every_kind
@every_case
def test_rebuild_gives_the_bits_of_the_forward_pass(case, kind, monkeypatch):
    launches = count_launches(monkeypatch)
    *inputs, _ = make(case, kind)
    y, statistics = cpu.normalize(*inputs, case.pattern, 1e-5, case.center, kind.activation)
    assert torch.equal(cpu.rebuild(*inputs, statistics, case.pattern, kind.activation), y)
    assert len(launches) == 2


@pytest.mark.parametrize("missing", [["weight"], ["bias"], ["weight", "bias"]], ids="+".join)
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float32", "float16"])
@some_cases
def test_missing_parameters_are_one_and_zero(case, kind, missing):
    given = make(case, kind)
    neutral = {"weight": torch.ones_like(given.weight), "bias": torch.zeros_like(given.bias)}
    without = run(given._replace(**dict.fromkeys(missing)), case, kind)
    stated = run(given._replace(**{name: neutral[name] for name in missing}), case, kind)
    assert all(map(torch.equal, without, stated))


@every_kind
@every_case
def test_given_statistics_are_constants(case, kind, monkeypatch):
    launches = count_launches(monkeypatch)
    kept = geometry(case.pattern, case.shape).statistics
    mean, var = sample(*kept, seed=5), sample(*kept, seed=6).square() + 0.5
    x, *beside, dy = given = make(case, kind, statistics=(mean, var))
    how = (case.pattern, 1e-5, kind.activation)
    y = cpu.apply(x, mean, var, *beside, *how)
    gradients = cpu.apply_backward(dy, x, mean, var, *beside, *how)[: 3 + kind.has_residual]
    truth = define(given, case, kind, statistics=(mean, var))
    assert_right((y, *gradients), truth, kind)
    assert len(launches) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_statistics_move_as_in_plain_torch(dtype, monkeypatch):
    launches = count_launches(monkeypatch)
    statistics = sample(3, 37, dtype=torch.float64)
    running, expected = ([sample(37, dtype=dtype, seed=s) for s in (1, 2)] for _ in range(2))
    cpu.track(*running, statistics, 0.3, 1.25)
    eager.track(*expected, statistics, 0.3, 1.25)
    for actual, wanted in zip(running, expected):
        assert_within(actual, wanted)
    assert launches == [1]


def apart(x: Tensor, axis: int, width: int) -> Tensor:
    """x far from 0, but for some 0 in front along an axis."""
    x = x + 1e4
    x.narrow(axis, 0, width).zero_()
    return x


OFFSETS = {
    "mean 1e3": lambda x: x + 1e3,
    "mean 1e4": lambda x: x + 1e4,
    "channels apart": lambda x: x + 1e4 * torch.arange(x.shape[1]).view(-1, *[1] * (x.dim() - 2)),
    "first value apart": lambda x: x - 1e4 * (torch.arange(x.numel()) == 0).view(x.shape),
    "samples apart": lambda x: apart(x, 0, len(x) // 2),
    "border of 0": lambda x: apart(x, -1, max(1, x.shape[-1] // 8)),
    "rising": lambda x: x + torch.linspace(0, 1e4, x.numel()).view(x.shape),
}


@pytest.mark.parametrize("change", OFFSETS.values(), ids=OFFSETS)
@some_cases
def test_an_offset_costs_no_more_than_its_digits(case, change):
    """N1, and values that a shift by one of them would not help"""
    given = make(case, FLOAT, change)
    mean, var = reference.moments(given.x, case.pattern)
    ratio = float((mean.abs() / (var + 1e-5).sqrt()).max())
    _, *found = run(given, case, FLOAT)
    assert_right(found, define(given, case, FLOAT), FLOAT, ratio)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e4, 6e4])
@every_kind
@some_cases
def test_statistics_of_constants_are_exact(case, kind, value):
    """N2: so y is exactly the bias"""
    given = make(case, kind, lambda x: torch.full_like(x, value))
    (mean, var, _), y, dx, *_ = run(given, case, kind)
    assert (mean == given.x.flatten()[0].double()).all()
    assert not var.any()
    assert dx.isfinite().all()
    if kind is HALF:  # the others' activations round
        bias = given.bias.relu().half().view(-1, *[1] * (y.dim() - 2))
        assert torch.equal(y, bias.expand_as(y))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [FLOAT, SHORT, HALF], ids=["float32", "bfloat16", "float16"])
@some_cases
def test_a_bad_value_spoils_its_group_and_no_other(case, kind, bad):
    """N7"""
    place = tuple(size // 2 for size in case.shape)
    spoiled = torch.zeros(case.shape)
    spoiled[place] = bad
    given = make(case, kind)
    given.x[place] = bad
    spoiled = reference.normalize(spoiled, case.pattern).isnan()
    (_, y, dx, *_), (truth, expected, *_) = run(given, case, kind), define(given, case, kind)
    assert y[spoiled].isnan().all()
    assert dx[spoiled].isnan().all()
    assert_within(y[~spoiled], truth[~spoiled])
    assert_within(dx[~spoiled], expected[~spoiled])


@pytest.mark.parametrize(
    ("size", "eps"),
    [
        pytest.param(1e-40, 1e-5, id="denormal"),
        pytest.param(1e-30, 1e-12, id="tiny"),
        pytest.param(1e-30, 0.0, id="tiny, no eps"),
        pytest.param(1e-18, 1e-36, id="eps of its size"),
        pytest.param(1e18, 1e-5, id="squares near the end of the range"),
        pytest.param(1e30, 1e-5, id="squares beyond it"),
        pytest.param(1e37, 1e-5, id="sums beyond it"),
    ],
)
@some_cases
def test_tiny_and_huge_values_are_right(case, size, eps):
    """N5, N6"""
    given = make(case, FLOAT, lambda x: x.double() * size)
    _, *found = run(given, case, FLOAT, eps)
    assert_right(found, define(given, case, FLOAT, eps), FLOAT)


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        pytest.param((0, 6, 3, 3), GROUP, id="no samples"),
        pytest.param((2, 6, 0), LAYER, id="no positions"),
        pytest.param((2, 0, 3), LAYER, id="no channels"),
        pytest.param((4, 6, 1, 1), INSTANCE, id="one value per channel"),
        pytest.param((1, 6), BATCH, id="one sample of a vector"),
        pytest.param((4, 1), LAYER, id="one channel"),
        pytest.param((2, 4, 3, 5), "n c h w -> c w", id="four runs"),
    ],
)
def test_what_has_no_kernel_is_computed_in_plain_torch(shape, pattern, monkeypatch):
    launches = count_launches(monkeypatch)
    case = Case("none", pattern, shape)
    given = make(case, FLOAT)
    _, *found = run(given, case, FLOAT)
    assert_right(found, define(given, case, FLOAT), FLOAT)
    assert launches == []
