"""The CPU kernels read and write inside their tensors, and refuse those that do not fit (S22)."""

import ctypes
import mmap
import multiprocessing
import sys

import pytest
import torch
from oracle import STRIDED
from test_cpu_kernels import (
    BATCH,
    CASES,
    DOUBLE,
    FLOAT,
    GROUP,
    LAYER,
    POSITION,
    SHORT,
    Case,
    assert_right,
    count_launches,
    define,
    every_case,
    make,
    run,
)

from normlab.ops import cpu
from normlab.ops.cpu import memory, plan, team, words

both_kinds = pytest.mark.parametrize("kind", [FLOAT, SHORT], ids=["float32", "bfloat16"])


@pytest.fixture
def planned_anew():
    """What was planned under other constants is forgotten, before and after."""
    cpu._planned.cache_clear()
    yield
    cpu._planned.cache_clear()


def stream_all(change=setattr):
    """Write around the caches wherever a kernel can: where rows are whole lines, or always."""
    can = plan.is_streamed
    change(plan, "is_streamed", lambda family, *size: family != "rows" or can(family, *size))
    change(cpu, "STREAMED", 0)
    cpu._planned.cache_clear()


def streams(case, kind):
    x = make(case, kind).x
    return bool(cpu._task("forward", x, case.pattern, "silu", x).block[words.STREAM])


@both_kinds
@every_case
def test_writing_around_the_caches_changes_no_bit(case, kind, planned_anew, monkeypatch):
    """Planes and lines of odd sizes begin where 64 bytes may not be written in one."""
    given = make(case, kind)
    expected = run(given, case, kind)
    stream_all(monkeypatch.setattr)
    assert all(map(torch.equal, run(given, case, kind), expected))


def test_cases_of_every_family_are_written_around_the_caches(planned_anew, monkeypatch):
    stream_all(monkeypatch.setattr)
    for kind in (FLOAT, SHORT):
        rows = [streams(c, kind) for c in CASES.values() if c.family == "rows"]
        assert any(rows)
        assert not all(rows)
        assert all(streams(c, kind) for c in CASES.values() if c.family != "rows")


class Guarded:
    """Allocates tensors flush against a page that may not be touched, full of NaN."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end

    def empty(self, shape, dtype=torch.float32, **options):
        if options:
            return torch.zeros(shape, dtype=dtype, **options)
        shape = torch.Size(shape if isinstance(shape, tuple) else (shape,))
        size = shape.numel() * dtype.itemsize
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        area = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for guard in (start, start + mmap.PAGESIZE + pages):
            if _protect(guard, mmap.PAGESIZE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = mmap.PAGESIZE + (pages - size if self.at_end else 0)
        flat = torch.frombuffer(area, dtype=dtype, count=shape.numel(), offset=offset)
        return flat.fill_(float("nan")).view(shape)

    def empty_like(self, x, **options):
        if options:
            return _empty_like(x, **options)
        order = sorted(range(x.dim()), key=lambda axis: (-x.stride(axis), axis))
        dense = self.empty(tuple(x.shape[axis] for axis in order), dtype=x.dtype)
        return dense.permute(*(order.index(axis) for axis in range(x.dim())))

    def copy(self, x):
        return None if x is None else self.empty_like(x).copy_(x)


_empty, _empty_like = torch.empty, torch.empty_like
_protect = ctypes.CDLL(None, use_errno=True).mprotect if sys.platform == "linux" else None


def run_all_guarded(family: str) -> None:
    """Every case of a family, in memory with guards; says which before it may die."""
    _protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    cases = [(kind, case) for kind in (FLOAT, SHORT, DOUBLE) for case in CASES.values()]
    cases = [(kind, case) for kind, case in cases if case.family == family]
    expected = [run(make(case, kind), case, kind) for kind, case in cases]
    cpu.SMALL = 0
    cpu._planned.cache_clear()
    for streaming in (False, True):
        if streaming:
            stream_all()
        for at_end in (True, False):
            guarded = Guarded(at_end)
            for num_threads in (1, 5):
                torch.set_num_threads(num_threads)
                for (kind, case), wanted in zip(cases, expected):
                    print(case, kind, f"{streaming=} {at_end=} {num_threads=}", flush=True)
                    given = make(case, kind)
                    given = type(given)(*map(guarded.copy, given))
                    torch.empty, torch.empty_like = guarded.empty, guarded.empty_like
                    memory.scratch = lambda size, guarded=guarded: guarded.empty(
                        max(size, 1), dtype=torch.float64
                    )
                    found = run(given, case, kind)
                    torch.empty, torch.empty_like = _empty, _empty_like
                    assert all(map(torch.equal, found, wanted))


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect is called as on Linux")
@pytest.mark.parametrize("family", ["planes", "rows", "lines"])
def test_no_byte_outside_a_tensor_is_touched(family):
    """Nor is anything read that nobody wrote: memory is NaN before, and results are the same."""
    process = multiprocessing.get_context("spawn").Process(target=run_all_guarded, args=(family,))
    process.start()
    process.join(100)
    process.kill()
    process.join()
    assert process.exitcode == 0


@both_kinds
@every_case
def test_every_element_is_written(case, kind, monkeypatch):
    given = make(case, kind)
    expected = run(given, case, kind)

    def poisoned(allocate):
        return lambda *args, **options: allocate(*args, **options).fill_(float("nan"))

    monkeypatch.setattr(memory, "scratch", poisoned(memory.scratch))
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    assert all(map(torch.equal, run(given, case, kind), expected))


@pytest.mark.parametrize("pattern", [GROUP, BATCH, POSITION])
@pytest.mark.parametrize("name", ["x", "residual", "dy"])
@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_strides_change_no_value_and_formats_are_those_of_x(view, name, pattern, monkeypatch):
    """N12 to N15"""
    launches = count_launches(monkeypatch)
    case = Case("any", pattern, (4, 6, 3, 5))
    given = make(case, FLOAT)
    given = given._replace(**{name: view(getattr(given, name))})
    before = [t.clone() for t in given]
    _, *found = run(given, case, FLOAT)
    assert_right(found, define(given, case, FLOAT), FLOAT)
    assert len(launches) == 2
    assert all(map(torch.equal, given, before)), "an input was modified"
    y, dx, _, _, dresidual = found
    like = torch.empty_like(given.x).stride()
    assert all(t.stride() == like for t in (y, dx, dresidual))


FAMILIES = {
    "planes": Case("planes", BATCH, (4, 6, 3, 5)),
    "rows": Case("rows", GROUP, (4, 6, 3, 5), True),
    "lines": Case("lines", LAYER, (4, 6)),
}
MISFITS = {
    "weight of 5": ("weight", lambda t: t[:5]),
    "weight of 1, which broadcasts": ("weight", lambda t: t[:1]),
    "weight without data": ("weight", lambda t: t.to("meta")),
    "bias of 7": ("bias", lambda t: torch.cat([t, t[:1]])),
    "bias without data": ("bias", lambda t: t.to("meta")),
    "residual of 3 samples": ("residual", lambda t: t[:3]),
    "residual of 1 sample, which broadcasts": ("residual", lambda t: t[:1]),
    "residual transposed": ("residual", lambda t: t.transpose(0, 1)),
    "residual without data": ("residual", lambda t: t.to("meta")),
    "dy of 3 samples": ("dy", lambda t: t[:3]),
    "dy of 1 sample, which broadcasts": ("dy", lambda t: t[:1]),
    "dy transposed": ("dy", lambda t: t.transpose(0, 1)),
    "dy without data": ("dy", lambda t: t.to("meta")),
    "statistics of fewer": ("statistics", lambda t: t[:, :1]),
    "statistics of more": ("statistics", lambda t: torch.cat([t, t], 1)),
    "statistics without rstd": ("statistics", lambda t: t[:2]),
    "statistics in float32": ("statistics", lambda t: t.float()),
    "statistics without data": ("statistics", lambda t: t.to("meta")),
}


@pytest.fixture
def nothing_starts(monkeypatch):
    """A kernel that starts fails the test, and does no harm."""
    monkeypatch.setattr(team, "run", lambda *_: pytest.fail("a kernel was started"))


@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(("name", "change"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_before_the_launch(name, change, case, request):
    given = make(case, FLOAT)._asdict()
    how = (case.pattern, True, "silu")
    _, statistics = cpu.normalize(*list(given.values())[:4], case.pattern, 1e-5, True, "silu")
    given["statistics"] = statistics
    given[name] = change(given[name])
    *inputs, dy, statistics = given.values()
    request.getfixturevalue("nothing_starts")
    calls = [lambda code: code.normalize_backward(dy, *inputs, statistics, *how)]
    if name in ("weight", "bias", "residual"):
        calls.append(lambda code: code.normalize(*inputs, case.pattern, 1e-5, True, "silu"))
    # a tensor without data makes an operator a question about shapes
    for code in (cpu,) if "meta" in str(given[name].device) else (cpu, torch.ops.normlab):
        for call in calls:
            with pytest.raises(RuntimeError, match=f"expected {name}"):
                call(code)


@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("code", [cpu, torch.ops.normlab], ids=["function", "operator"])
def test_statistics_given_for_another_shape_are_refused_before_the_launch(
    code, case, nothing_starts
):
    x, *beside, dy = make(case, FLOAT)
    mean, var = torch.zeros(2, 3), torch.ones(2, 3)
    how = (case.pattern, 1e-5, "silu")
    for call in (
        lambda: code.apply(x, mean, var, *beside, *how),
        lambda: code.apply_backward(dy, x, mean, var, *beside, *how),
    ):
        with pytest.raises(RuntimeError, match="expected statistics"):
            call()


@pytest.mark.parametrize("which", ["running_mean", "running_var", "statistics"])
def test_running_statistics_of_other_sizes_are_refused_before_the_launch(which, nothing_starts):
    given = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}
    given["statistics"] = torch.ones(3, 6, dtype=torch.float64)
    given[which] = given[which][..., :3]
    with pytest.raises(RuntimeError, match="size"):
        cpu.track(*given.values(), 0.1, 1.0)


@pytest.mark.parametrize("which", ["running_mean", "running_var", "statistics"])
def test_running_statistics_of_mixed_types_are_moved_in_plain_torch(which, nothing_starts):
    given = {"running_mean": torch.zeros(6), "running_var": torch.zeros(6)}
    given["statistics"] = torch.ones(3, 6, dtype=torch.float64)
    given[which] = given[which].to(torch.float16)
    cpu.track(*given.values(), 0.5, 2.0)
    assert (given["running_mean"] == 0.5).all()
    assert (given["running_var"] == 1).all()


def test_huge_pages_are_asked_for_inside_an_output_only(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *call: asked.append(call))
    y = memory.empty_like(torch.empty(memory.HUGE + 100, dtype=torch.uint8)[1:])
    memory.empty_like(torch.empty(memory.HUGE - 1, dtype=torch.uint8))
    ((start, size, _),) = asked
    assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    assert y.data_ptr() <= start < start + size <= y.data_ptr() + y.nbytes


def test_huge_pages_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("NORMLAB_HUGE_PAGES", "0")
    memory._madvise.cache_clear()
    try:
        assert memory._madvise() is None
    finally:
        memory._madvise.cache_clear()
