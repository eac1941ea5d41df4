"""The Triton kernels against the definition: interpreted on the CPU, and on a GPU if there is one.

Small tensors go to every family of kernels: to `whole` by its own schedule, to `long` and `split`
by one that gives them small tiles, so that loops, chunks and masks all take part.
"""

import dataclasses
import inspect
import warnings

import pytest
import torch
from oracle import STRIDED, assert_within, sample

from normlab import reference
from normlab.functional import PER_CHANNEL
from normlab.ops import device, eager
from normlab.ops.device import SlowPathWarning
from normlab.ops.eager import ACTIVATIONS

pytest.importorskip("triton")
from triton_kernels import Kernels, without_patching_twice

PATTERNS = {
    "group": "n (g=2 c) ... -> n g",
    "layer": "n c ... -> n",
    "instance": "n c ... -> n c",
    "batch": "n c ... -> c",
    "ghost batch": "(b n=2) c ... -> b c",
    "batch group": "n (g=2 c) ... -> g",
}
FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPE = (4, 6, 5, 7)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
every_family = pytest.mark.parametrize("family", ["whole", "long", "split"], indirect=True)
either_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def loaded(request):
    return Kernels(request.param)


@pytest.fixture
def kernels(loaded, monkeypatch):
    without_patching_twice(monkeypatch)
    monkeypatch.setattr(loaded.module, "_failed", set())
    return loaded


@pytest.fixture
def family(request, kernels, monkeypatch):
    """Everything goes to one family of kernels, in tiles of 4·32 or 2·64 values."""
    schedule, name = kernels.module.schedule, request.param
    cut = schedule.split

    def small(view, itemsize, programs):
        tile = dataclasses.replace(cut(view, itemsize, programs).tile, channels=4, positions=32)
        tiles = schedule.cdiv(view.values, 32)
        steps = 2 if programs == schedule.MANY else 1
        return schedule.Split(
            tile, schedule.cdiv(view.num_channels, 4), schedule.cdiv(tiles, steps), steps
        )

    if name != "whole":
        monkeypatch.setattr(schedule, "whole", lambda *_, **__: None)
    tile = schedule.Tile(1, 2, 64, 1, 4) if name == "long" else None
    monkeypatch.setattr(schedule, "long", lambda *_, **__: tile)
    monkeypatch.setattr(schedule, "split", small)
    return name


@every_family
@either_format
@every_pattern
def test_every_family_follows_the_definition(kernels, pattern, memory_format, family):
    x = sample(*SHAPE).to(memory_format=memory_format)
    kernels.assert_follow(x, pattern, residual=sample(*SHAPE, seed=4), activation="silu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@either_format
@every_pattern
def test_half_precision_follows_the_definition(kernels, pattern, memory_format, dtype):
    x = sample(*SHAPE, dtype=dtype).to(memory_format=memory_format)
    residual = sample(*SHAPE, dtype=dtype, seed=4)
    kernels.assert_follow(x, pattern, residual=residual, activation="relu")


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_follows_the_definition(kernels, activation, residual):
    given = sample(*SHAPE, seed=4) if residual else None
    kernels.assert_follow(
        sample(*SHAPE) * 3, PATTERNS["group"], residual=given, activation=activation
    )


@pytest.mark.parametrize("value", [-1e4, -100.0, -3.0, -0.25, 0.0, 1e-6, 0.25, 3.0, 100.0, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_right_far_out_and_at_their_kinks(kernels, activation, value):
    """The bias decides where on the activation every value lies."""
    x, weight, bias = sample(2, 4, 6), torch.zeros(4), torch.full((4,), value)
    given = (x, weight, bias, None)
    y, statistics = kernels.normalize(*given, PATTERNS["layer"], 1e-5, True, activation)
    found = kernels.normalize_backward(
        torch.ones(2, 4, 6), *given, statistics, PATTERNS["layer"], True, activation
    )
    z = torch.full((4,), value, dtype=torch.float64, requires_grad=True)
    expected = reference.ACTIVATIONS[activation](z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    # near 0, too, digits are kept, but of 1 + erf; what float32 has no normal number for may be 0
    size = abs(value) if activation == "gelu" else expected[0].abs().item()
    assert_within(y, expected[0].expand_as(y), size=max(size, 1e-30))
    if value not in (-3.0, 0.0, 3.0):  # kinks, where torch and the definition may choose
        assert_within(found[2], 12 * slope.nan_to_num(), size=12)
    assert all(t.isfinite().all() for t in found[:3])


@pytest.mark.parametrize("center", [True, False], ids=["centred", "root mean square"])
@pytest.mark.parametrize(("weight", "bias"), [(False, False), (False, True), (True, False)])
@every_family
def test_weight_bias_and_mean_may_be_left_out(kernels, family, weight, bias, center):
    kernels.assert_follow(
        sample(2, 6, 9), PATTERNS["group"], weight=weight, bias=bias, center=center
    )


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        pytest.param((3, 1, 7), "n c ... -> n", id="one channel"),
        pytest.param((1, 5, 7), "n c ... -> c", id="one sample"),
        pytest.param((2, 6, 1, 1), "n (g=2 c) ... -> n g", id="groups of 3"),
        pytest.param((2, 14, 5), "n (g=2 c) ... -> n g", id="groups of 35"),
        pytest.param((63, 5), "n c ... -> c", id="63 rows: not a power of two"),
        pytest.param((2, 1536, 3), "n (g=32 c) ... -> n g", id="1536 channels"),
        pytest.param((2, 1536), "n c -> n", id="a row of 1536"),
        pytest.param((301, 20), "n c -> n", id="several short rows a program"),
        pytest.param((2, 9001), "n c -> n", id="a row in 16 warps"),
        pytest.param((1, 33001), "n c -> n", id="a row off the chip"),
        pytest.param((1, 1, 65537), "n c ... -> n c", id="65537 values per group"),
        pytest.param((1, 3, 301, 100), "n c ... -> n", id="90300 values per group"),
        pytest.param(
            (1, 4, 130, 70), "n (g=2 c) ... -> n g", id="18200 values in each of 2 groups"
        ),
        pytest.param((2, 6, 2, 3, 2, 2), "n (g=2 c) ... -> n g", id="six axes"),
        pytest.param((2, 4, 3, 5), "n c h w ->", id="everything averaged"),
        pytest.param((2, 4, 3, 5), "n c h w -> n h w", id="position norm"),
        pytest.param((2, 4, 3, 5), "n c h w -> n h", id="rows of positions"),
    ],
)
def test_every_size_is_right(kernels, shape, pattern):
    """N8"""
    kernels.assert_follow(sample(*shape), pattern)


@pytest.mark.parametrize("pattern", ["n c -> n", "n (g=3 c) -> n g"])
@every_family
def test_rows_go_to_every_family(kernels, family, pattern):
    kernels.assert_follow(sample(3, 21), pattern, activation="gelu")


def test_rows_share_a_program(kernels, monkeypatch):
    """Five tiles of rows each, the last of which is not full."""
    monkeypatch.setattr(kernels.module.schedule, "ENOUGH", 2)
    kernels.assert_follow(sample(142, 260), "n c -> n")


@either_format
def test_tiles_of_long_groups_fit_them(kernels, monkeypatch, memory_format):
    """With the tiles that groups get which are too large for the chip."""
    schedule = kernels.module.schedule
    monkeypatch.setattr(schedule, "FEW", 1)
    monkeypatch.setattr(schedule, "whole", lambda *_, **__: None)
    monkeypatch.setattr(schedule, "long", schedule.long.__wrapped__)  # remembers nothing
    x = sample(2, 42, 25, 20).to(memory_format=memory_format)
    kernels.assert_follow(x, "n (g=2 c) ... -> n g", activation="hardswish")


@pytest.mark.parametrize("shape", [(2, 6, 41, 50), (3, 20, 48, 8), (2, 3, 9, 10, 40)], ids=str)
def test_channels_last_of_every_size_is_right(kernels, shape):
    x = sample(*shape).movedim(1, -1).contiguous().movedim(-1, 1)
    for pattern in (PER_CHANNEL, "n c ... -> n"):
        kernels.assert_follow(x, pattern)


@pytest.mark.parametrize(
    ("pattern", "ratio"), [(PATTERNS["group"], 1e3), (PATTERNS["group"], 1e4), (PER_CHANNEL, 1e4)]
)
@every_family
def test_an_offset_costs_no_more_than_its_digits(kernels, family, pattern, ratio):
    """N1, N37"""
    kernels.assert_follow(sample(*SHAPE) + ratio, pattern, ratio=ratio)


@pytest.mark.parametrize("size", [1e-10, 1e15])
@every_family
def test_tiny_and_huge_values_are_right(kernels, family, size):
    """N5, N6"""
    kernels.assert_follow(sample(*SHAPE) * size, PER_CHANNEL)


@pytest.mark.parametrize("value", [3.3, 1e7])
@pytest.mark.parametrize("pattern", [PATTERNS["group"], PATTERNS["batch"]])
@every_family
def test_constants_become_exactly_the_bias(kernels, pattern, family, value):
    """N2"""
    x, weight, bias = torch.full(SHAPE, float(value)), sample(6, seed=1), sample(6, seed=2)
    y, (mean, var, _) = kernels.normalize(x, weight, bias, None, pattern, 1e-5, True, "none")
    assert torch.equal(y, bias.reshape(-1, 1, 1).expand_as(y))
    assert not var.any()
    assert torch.equal(mean, torch.full_like(mean, value))


@pytest.mark.parametrize(
    ("bad", "memory_format"), [(float("nan"), FORMATS[0]), (float("inf"), FORMATS[1])]
)
@pytest.mark.parametrize("pattern", [PATTERNS[name] for name in ("group", "batch", "instance")])
@every_family
def test_a_bad_value_spoils_its_group_and_no_other(kernels, pattern, family, memory_format, bad):
    """N7"""
    x, dy = sample(*SHAPE), sample(*SHAPE, seed=3)
    x[1, 2, 3, 4] = bad
    x = x.to(memory_format=memory_format)
    none = (None, None, None)
    y, statistics = kernels.normalize(x, *none, pattern, 1e-5, True, "relu")
    dx, *_ = kernels.normalize_backward(dy, x, *none, statistics, pattern, True, "relu")
    wide = x.double().requires_grad_()
    expected = reference.normalize(wide, pattern, activation="relu")
    (gradient,) = torch.autograd.grad(expected, wide, dy.double())
    spoiled = expected.isnan()
    assert 0 < spoiled.sum() < spoiled.numel()
    for actual, wanted in ((y, expected), (dx, gradient)):
        assert actual[spoiled].isnan().all()
        assert_within(actual[~spoiled], wanted[~spoiled])


@pytest.mark.parametrize("strided", STRIDED.values(), ids=STRIDED)
def test_strides_of_x_dy_and_residual_do_not_matter(kernels, strided):
    """N12, N13, N14"""
    x, dy, residual = (sample(4, 6, 3, 5, seed=seed) for seed in (0, 3, 4))
    group = {"pattern": PATTERNS["group"], "activation": "gelu_tanh"}
    kernels.assert_follow(strided(x), **group, dy=dy, residual=residual)
    kernels.assert_follow(x, **group, dy=strided(dy), residual=strided(residual))
    last = x.to(memory_format=torch.channels_last)
    kernels.assert_follow(last, **group, dy=strided(dy), residual=strided(residual))


@pytest.fixture
def poisoned():
    """Memory that is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def everything(kernels, x, pattern):
    """All outputs of all functions."""
    weight, bias = sample(x.shape[1], seed=1), sample(x.shape[1], seed=2)
    dy, residual = sample(*x.shape, seed=3), sample(*x.shape, seed=4)
    given = (x, weight, bias, residual)
    kept = [t.clone() for t in (dy, *given)]
    moments = kernels.moments(x, pattern, True)
    y, statistics = kernels.normalize(*given, pattern, 1e-5, True, "silu")
    mean, var, _ = statistics
    gradients = kernels.normalize_backward(dy, *given, statistics, pattern, True, "silu")
    rebuilt = kernels.rebuild(*given, statistics, pattern, "silu")
    applied = kernels.apply(x, mean, var, *given[1:], pattern, 1e-5, "silu")
    constant = kernels.apply_backward(dy, x, mean, var, *given[1:], pattern, 1e-5, "silu")
    assert all(map(torch.equal, kept, (dy, *given))), "an input was modified"
    return {
        "moments": moments, "normalize": [y, *statistics], "backward": gradients,
        "rebuild": [rebuilt], "apply": [applied], "apply_backward": constant,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "memory_format"), [*zip([PATTERNS["group"], PATTERNS["batch"]], FORMATS)]
)
@every_family
def test_all_of_the_output_is_written_in_the_same_bits_each_time(
    kernels, pattern, family, memory_format, poisoned
):
    """N15, N32: moments and y are also the same whichever function computes them."""
    x = sample(*SHAPE).to(memory_format=memory_format)
    first, second = everything(kernels, x, pattern), everything(kernels, x, pattern)
    for name, outputs in first.items():
        for once, again in zip(outputs, second[name]):
            assert once.isfinite().all(), name
            assert torch.equal(once, again), name
    y, mean, var, _ = first["normalize"]
    assert torch.equal(first["rebuild"][0], y)
    assert all(map(torch.equal, first["moments"], (mean, var)))


@either_format
@every_family
@pytest.mark.parametrize("pattern", [PER_CHANNEL, PATTERNS["group"]])
def test_given_statistics_are_constants(kernels, pattern, family, memory_format):
    x = sample(*SHAPE).to(memory_format=memory_format)
    mean, var = (sample(*reference.moments(x, pattern)[0].shape, seed=s) for s in (5, 6))
    var = var.square()
    weight, bias = sample(6, seed=1), sample(6, seed=2)
    residual, dy = sample(*SHAPE, seed=4), sample(*SHAPE, seed=3)
    how = (pattern, 1e-5, "gelu")
    y = kernels.apply(x, mean, var, weight, bias, residual, *how)
    found = kernels.apply_backward(dy, x, mean, var, weight, bias, residual, *how)
    wide = [t.double().requires_grad_() for t in (x, weight, bias, residual)]
    expected = reference.normalize(
        wide[0], pattern, *wide[1:3], residual=wide[3], activation="gelu", statistics=(mean, var)
    )
    assert_within(y, expected)
    for actual, wanted in zip(found, torch.autograd.grad(expected, wide, dy.double())):
        assert_within(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPE, torch.float64), ((4, 6, 1), torch.float32), ((0, 6, 5), torch.float32)],
    ids=["float64", "one value per statistic", "empty"],
)
def test_what_kernels_do_not_cover_goes_to_plain_torch(kernels, shape, dtype):
    x, pattern = sample(*shape, dtype=dtype), "n c ... -> n c"
    y, _ = kernels.normalize(x, None, None, None, pattern, 1e-5, True, "none")
    assert y.dtype == dtype
    assert_within(y, reference.normalize(x, pattern))


def test_functions_are_called_as_those_of_plain_torch(kernels):
    for name in kernels.module.__all__:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (kernels.module, eager))
        assert [*ours.parameters] == [*theirs.parameters], name


def test_a_pattern_without_kernel_warns(kernels):
    device.warn_slow.cache_clear()
    x, pattern = sample(*SHAPE), "n (g=2 c) ... -> n c"
    with pytest.warns(SlowPathWarning, match="no GPU kernel takes"):
        y, _ = kernels.normalize(x, None, None, None, pattern, 1e-5, True, "none")
    assert_within(y, reference.normalize(x, pattern))


def test_kernels_that_do_not_run_are_replaced_with_one_warning(kernels, monkeypatch):
    """F27"""

    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels.module.launch, "forward", broken)
    x, pattern = sample(*SHAPE), PATTERNS["group"]
    given = (x, None, None, None, pattern, 1e-5, True, "none")
    with pytest.warns(SlowPathWarning, match="do not run: RuntimeError: no compiler"):
        y, _ = kernels.normalize(*given)
    assert_within(y, reference.normalize(x, pattern))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(kernels.normalize(*given)[0], y)


def test_tensors_that_do_not_fit_are_refused(kernels):
    """S22"""
    x, pattern = sample(*SHAPE), PATTERNS["group"]
    _, statistics = kernels.normalize(x, None, None, None, pattern, 1e-5, True, "none")
    for dy in (sample(4, 6, 5, 1), sample(4, 6, 5, 8)):
        with pytest.raises(RuntimeError, match="shape"):
            kernels.normalize_backward(dy, x, None, None, None, statistics, pattern, True, "none")
    with pytest.raises(RuntimeError, match="shape"):
        kernels.normalize(x, sample(5), None, None, pattern, 1e-5, True, "none")


def test_elements_beyond_2_to_the_31_are_reached(loaded):
    """N36"""
    if loaded.place == "cpu" or torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs a GPU with 40 GB of free memory")
    x = torch.zeros(2**19 + 1, 4096, dtype=torch.bfloat16, device=loaded.place)
    x[-1] = sample(4096).to(x)
    for pattern in ("n c -> n", "n c -> c"):
        none = (None, None, None)
        y, statistics = loaded.module.normalize(x, *none, pattern, 1e-5, True, "none")
        dx, *_ = loaded.module.normalize_backward(x, x, *none, statistics, pattern, True, "none")
        mean, _, rstd = (s[-1:].cpu() if pattern == "n c -> n" else s.cpu() for s in statistics)
        assert_within(y[-1].cpu(), (x[-1].cpu().double() - mean) * rstd)
        assert dx[-1].any()
