"""Values that break sums of squares, and sizes that break kernels; the oracle is the definition.

Ids are those of RELIABILITY. Each row runs a pattern forward and backward in float32.
"""

import pytest
import torch
from oracle import assert_all_within, assert_within, both_ways, sample

from normlab import functional, ops, reference
from normlab.ops import ACTIVATIONS

PATTERNS = {
    "group": "n (g=2 c) ... -> n g",
    "layer": "n c ... -> n",
    "instance": "n c ... -> n c",
    "batch": "n c ... -> c",
    "ghost batch": "(b n=2) c ... -> b c",
    "batch group": "n (g=2 c) ... -> g",
    "position": "n c h w -> n h w",
}
FORMATS = [torch.contiguous_format, torch.channels_last]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
either_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)


@pytest.mark.parametrize("std", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("ratio", [0, 1, 10, 300, 1e3, 1e4])
@either_format
@every_pattern
def test_an_offset_costs_no_more_than_its_digits(pattern, memory_format, ratio, std):
    """N1"""
    x = (sample(4, 6, 5, 5) + ratio) * std
    assert_all_within(x, pattern, ratio=ratio, memory_format=memory_format)


@pytest.mark.parametrize("ratio", [0, 300, 1e4])
def test_an_offset_costs_no_more_than_its_digits_in_volumes(ratio):
    """N1"""
    x = sample(2, 6, 3, 4, 5) + ratio
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        assert_all_within(x, PATTERNS["group"], ratio=ratio, memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0, 1, 3.3, -1e4, 1e7])
@either_format
@every_pattern
def test_constants_become_exactly_the_bias(pattern, memory_format, value, dtype):
    """N2"""
    x = torch.full((4, 6, 7, 7), value, dtype=dtype).contiguous(memory_format=memory_format)
    weight, bias = sample(6, dtype=dtype, seed=1), sample(6, dtype=dtype, seed=2)
    x.requires_grad_()
    y = functional.normalize(x, pattern, weight, bias)
    assert torch.equal(y, bias.reshape(-1, 1, 1).expand_as(y))
    (dx,) = torch.autograd.grad(y, x, sample(4, 6, 7, 7, dtype=dtype, seed=3))
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [1.0, 1e3, 1e6])
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [("n (g=6 c) ... -> n g", (4, 6, 1, 1)), ("n c -> n", (7, 1)), ("n c ... -> n c", (4, 6))],
)
def test_one_value_per_group_becomes_the_bias_without_gradients(pattern, shape, value):
    """N3"""
    x = sample(*shape) * value
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)  # strides that fit both formats
    y, dx, dweight, _ = next(both_ways(x, pattern, memory_format=torch.preserve_format))
    bias = sample(shape[1], seed=2).reshape(-1, *[1] * (len(shape) - 2))
    assert torch.equal(y, bias.expand_as(y))
    assert not dx.any()
    assert not dweight.any()


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("size", [1e-10, 1e-20, 1e-30, 1e-38, 1e-40])
@every_pattern
def test_tiny_values_are_right(pattern, size, eps):
    """N5"""
    assert_all_within(sample(4, 6, 5, 5) * size, pattern, eps=eps)


@pytest.mark.parametrize("size", [1e10, 1e15, 1e18, 1e25, 1e37])
@every_pattern
def test_huge_values_are_right(pattern, size):
    """N6"""
    assert_all_within(sample(4, 6, 5, 5) * size, pattern)


@pytest.mark.parametrize("activation", [*ACTIVATIONS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_pattern
def test_a_bad_value_spoils_its_group_and_no_other(pattern, bad, activation):
    """N7"""
    x = sample(4, 6, 5, 5)
    x[1, 2, 3, 4] = bad
    (y, dx, *_), (expected, expected_dx, *_) = both_ways(x, pattern, activation=activation)
    spoiled = torch.zeros(4, 6, 5, 5)
    spoiled[1, 2, 3, 4] = float("nan")
    spoiled = reference.normalize(spoiled, pattern).isnan()
    assert y[spoiled].isnan().all()
    assert_within(y[~spoiled], expected[~spoiled])
    assert dx[spoiled].isnan().all()
    assert_within(dx[~spoiled], expected_dx[~spoiled])


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        pytest.param((3, 1, 7), "n c ... -> n", id="one channel"),
        pytest.param((1, 5, 7), "n c ... -> c", id="one sample"),
        pytest.param((2, 6, 1, 1), "n (g=2 c) ... -> n g", id="groups of 3"),
        pytest.param((2, 5, 1, 1), "n (g=1 c) ... -> n g", id="groups of 5"),
        pytest.param((2, 7, 1, 1), "n (g=1 c) ... -> n g", id="groups of 7"),
        pytest.param((2, 14, 5), "n (g=2 c) ... -> n g", id="groups of 35"),
        pytest.param((2, 9, 7), "n (g=1 c) ... -> n g", id="63 values: not a power of two"),
        pytest.param((63, 5), "n c ... -> c", id="63 rows: not a power of two"),
        pytest.param((2, 1536, 3), "n (g=32 c) ... -> n g", id="1536 channels"),
        pytest.param((2, 1536), "n c -> n", id="1536 channels, no positions"),
        pytest.param((1, 1, 65537), "n c ... -> n c", id="65537 values per group"),
        pytest.param((1, 3, 301, 100), "n c ... -> n", id="90300 values per group"),
        pytest.param((1, 3, 301, 100), "n c ... -> c", id="30100 values per channel"),
        pytest.param((2, 6, 2, 3, 2, 2), "n (g=2 c) ... -> n g", id="six axes"),
        pytest.param((2, 6, 2, 3, 2, 2), "n c ... -> c", id="six axes, over the batch"),
        pytest.param((2, 4, 3, 5), "n c h w -> c w", id="four runs"),
        pytest.param((2, 4, 3, 5), "n c h w -> n c h w", id="nothing averaged"),
        pytest.param((2, 4, 3, 5), "n c h w ->", id="everything averaged"),
    ],
)
def test_every_size_is_right(shape, pattern):
    """N8"""
    assert_all_within(sample(*shape), pattern)
    assert_all_within(sample(*shape, dtype=torch.float64), pattern, center=False)


def test_groups_of_two_are_right():
    """N8: xhat is ±1 whatever x is, so dx cancels; what it is made of is dy · weight / std."""
    (y, dx, *_), (truth, expected, *_) = both_ways(sample(2, 6, 1, 1), "n (g=3 c) ... -> n g")
    var = reference.moments(sample(2, 6, 1, 1), "n (g=3 c) ... -> n g")[1]
    assert_within(y, truth)
    assert_within(dx, expected, size=(var + 1e-5).rsqrt().max().item())


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_part_of_the_definition(activation, dtype, residual):
    x, dy, shortcut = (sample(4, 6, 5, 5, dtype=dtype, seed=seed) for seed in range(3))
    found = []
    for normalize, wide in ((functional.normalize, dtype), (reference.normalize, torch.float64)):
        inputs = [t.detach().to(wide).requires_grad_() for t in (x * 3, shortcut)]
        y = normalize(
            inputs[0], PATTERNS["group"],
            activation=activation, residual=inputs[1] if residual else None,
        )  # fmt: skip
        found.append((y, *torch.autograd.grad(y, inputs[: 1 + residual], dy.to(wide))))
    for actual, expected in zip(*found):
        assert_within(actual, expected)


def test_activations_of_operators_and_definition_have_the_same_names():
    assert list(ACTIVATIONS) == list(reference.ACTIVATIONS)


@pytest.mark.parametrize("value", [-1e4, -100.0, -3.0, 0.0, 3.0, 100.0, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_finite_far_out_and_at_its_kinks(activation, value):
    """The bias decides where on the activation every value lies."""
    x = sample(2, 4, 6).requires_grad_()
    bias = torch.full((4,), value, requires_grad=True)
    y = functional.normalize(x, PATTERNS["layer"], torch.zeros(4), bias, activation=activation)
    gradients = torch.autograd.grad(y, (x, bias), torch.ones_like(y))
    assert_within(y, reference.ACTIVATIONS[activation](torch.full_like(y, value).double()), size=1)
    assert all(g.isfinite().all() for g in gradients)


def test_batched_gradients_equal_one_after_the_other():
    x = sample(2, 6, 5).requires_grad_()
    y = functional.group_norm(x, 3, activation="silu")
    dys = sample(4, *y.shape, seed=1)
    (batched,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in dys]
    assert_within(batched, torch.stack(each))


def test_gradient_of_a_mean_alone_does_not_ask_for_the_variance():
    """Of an infinite value the variance has no gradient, the mean has 1 / count."""
    x = sample(2, 3, 4).index_fill(2, torch.tensor([1]), torch.inf).requires_grad_()
    mean, _ = ops.moments(x, PATTERNS["layer"], True)
    (dx,) = torch.autograd.grad(mean, x, torch.ones_like(mean))
    assert_within(dx, torch.full(x.shape, 1 / 12))


class Stop(torch.autograd.Function):
    """Passes no gradient on, not even zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


@pytest.mark.parametrize("operator", ["normalize", "apply"])
def test_no_gradient_goes_on_as_none(operator):
    """Not as zeros, which would cost a backward pass."""
    x, one, pattern = sample(2, 3, 4).requires_grad_(), torch.ones(3), PATTERNS["batch"]
    call = {
        "normalize": lambda: torch.ops.normlab.normalize(
            x, None, None, None, pattern, 1e-5, True, "none"
        )[0],
        "apply": lambda: torch.ops.normlab.apply(
            x, one, one, None, None, None, pattern, 1e-5, "none"
        ),
    }
    Stop.apply(call[operator]()).sum().backward()
    assert x.grad is None
