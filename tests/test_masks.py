"""Masks: what is padding has no part in statistics, gradients or running statistics."""

import pytest
import torch
from oracle import NUM_CHANNELS, assert_within, make, sample
from torch.autograd import gradcheck

from normlab import functional, reference
from normlab import pattern as patterns

SPECS = ["batch", "batch:n=2", "group:2", "layer", "instance"]
SHAPES = [(8, 6), (4, 6, 5), (4, 6, 3, 5), (4, 6, 2, 3, 4)]


def mask_for(shape):
    """Of each sample another number of values; of the third none."""
    positions = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(5)) > 0.3
    positions[2] = False
    return positions


def definition(layer, x, mask):
    """One statistic at a time, of the values that count."""
    x, valid = x.double(), mask.unsqueeze(1).expand(x.shape)
    geometry = patterns.geometry(layer.pattern, x.shape)
    split, chosen = x.reshape(geometry.split), valid.reshape(geometry.split)
    ids = torch.arange(max(1, torch.Size(geometry.statistics).numel()))
    ids = ids.reshape(geometry.broadcast).expand(geometry.split)
    normalized = torch.zeros_like(split)
    for i in ids.unique():
        here = chosen & (ids == i)
        values = split[here]
        if len(values):
            v = values - values.mean()
            place = torch.zeros_like(split).masked_scatter(
                here, v / torch.sqrt(v.square().mean() + layer.eps)
            )
            normalized = normalized + place
    y = normalized.reshape(x.shape)
    shape = (-1,) + (1,) * (x.dim() - 2)
    weight, bias = layer.weight.double().reshape(shape), layer.bias.double().reshape(shape)
    return torch.where(valid, y * weight + bias, bias.detach())


def compared(spec, shape, dtype=torch.float32, ratio=0.0):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layer, mask = make(spec, dtype=wide), mask_for(shape)
    x = (sample(*shape, dtype=torch.float64) + ratio).to(dtype)
    dy = sample(*shape, dtype=dtype, seed=1)
    found = []
    for compute in (lambda x: layer(x, mask=mask), lambda x: definition(layer, x, mask)):
        given = x.clone().requires_grad_()
        y = compute(given)
        found.append([y, *torch.autograd.grad(y, [given, *layer.parameters()], dy.to(y.dtype))])
    for actual, expected in zip(*found):
        assert_within(actual, expected, dtype=dtype, ratio=ratio)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{len(s) - 2}-D")
@pytest.mark.parametrize("spec", SPECS)
def test_masked_output_and_gradients_equal_the_definition(spec, shape):
    if spec == "instance" and len(shape) == 2:
        pytest.skip("one value per statistic")
    compared(spec, shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", ["batch", "group:2"])
def test_masked_norms_keep_the_precision_of_the_input(spec, dtype):
    compared(spec, (4, 6, 5), dtype)


def test_offset_costs_no_digits_under_a_mask():
    compared("group:2", (4, 6, 5), ratio=1e3)


@pytest.mark.parametrize("spec", SPECS)
def test_padding_may_hold_anything(spec):
    layer, x = make(spec), sample(4, 6, 5)
    mask = mask_for(x.shape)
    padding = ~mask.unsqueeze(1).expand(x.shape)
    given = [x.masked_fill(padding, value).requires_grad_() for value in (0.0, torch.nan)]
    outputs = [layer(t, mask=mask) for t in given]
    assert torch.equal(*outputs)
    for t, y in zip(given, outputs):
        (dx,) = torch.autograd.grad(y.square().sum(), t)
        assert not dx[padding].any()
        assert dx.isfinite().all()
    running = [t for n, t in layer.named_buffers() if n.startswith("running")]
    assert all(t.isfinite().all() for t in running)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_fully_masked_group_gives_the_bias(spec, activation):
    layer, x = make(spec, activation=activation), sample(4, 6, 5)
    y = layer(x, mask=mask_for(x.shape))
    expected = reference.ACTIVATIONS[activation or "none"](layer.bias.double())
    assert_within(y[2], expected[:, None].expand(6, 5))


@pytest.mark.parametrize("spec", ["instance", "group:6"])
def test_one_value_under_a_mask_is_the_bias_rather_than_refused(spec):
    """As it is where a mask leaves one of several."""
    layer, x = make(spec), sample(4, 6, 1)
    y = layer(x, mask=torch.ones(4, 1, dtype=torch.bool))
    assert torch.equal(y, layer.bias.reshape(6, 1).expand(4, 6, 1))


def test_constant_values_give_exactly_the_bias_under_a_mask():
    layer, x = make("group:2"), torch.full((4, 6, 5), 1e7 / 3)
    y = layer(x, mask=mask_for(x.shape))
    assert torch.equal(y, layer.bias.reshape(6, 1).expand(4, 6, 5))


def test_mask_of_all_values_is_no_mask():
    layer, x = make("batch").eval(), sample(4, 6, 5)
    everything = torch.ones(4, 5, dtype=torch.bool)
    for mode in (True, False):
        layer.train(mode)
        assert_within(layer(x, mask=everything), layer(x), dtype=torch.float32)


def test_running_statistics_are_those_of_the_values_that_count():
    layer, x = make("batch", momentum=1.0), sample(4, 6, 5)
    mask = mask_for(x.shape)
    layer(x, mask=mask)
    values = x.double().transpose(0, 1)[:, mask]
    assert_within(layer.running_mean, values.mean(1))
    assert_within(layer.running_var, values.var(1))


def test_slice_without_values_has_no_part_in_the_running_statistics():
    layer, x = make("batch:n=2", momentum=None), sample(4, 6, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:2] = False
    layer(x, mask=mask)
    values = x[2:].transpose(0, 1).flatten(1).double()
    assert_within(layer.running_mean, values.mean(1))
    assert_within(layer.running_var, values.var(1))


def test_channel_with_no_value_keeps_its_running_statistics():
    layer, x = make("batch"), sample(4, 6, 5)
    before = layer.running_mean.clone(), layer.running_var.clone()
    mask = torch.ones(4, 6, 5, dtype=torch.bool)
    mask[:, 1] = False
    layer(x, mask=mask)
    for old, new in zip(before, (layer.running_mean, layer.running_var)):
        assert torch.equal(old[1], new[1])
        assert (old != new).sum() == NUM_CHANNELS - 1


def test_evaluation_gives_the_bias_at_padding():
    layer, x = make("batch").eval(), sample(4, 6, 5)
    mask = mask_for(x.shape)
    y = layer(x, mask=mask)
    valid = mask.unsqueeze(1).expand(x.shape)
    assert torch.equal(y[valid], layer(x)[valid])
    assert torch.equal(y[~valid], layer.bias.reshape(6, 1).expand(x.shape)[~valid])


def test_residual_passes_padding():
    layer, x, residual = make("group:2"), sample(4, 6, 5), sample(4, 6, 5, seed=2)
    y = layer(x, residual.requires_grad_(), mask=torch.zeros(4, 5, dtype=torch.bool))
    assert_within(y, layer.bias.double().reshape(6, 1) + residual.double())
    assert torch.equal(torch.autograd.grad(y.sum(), residual)[0], torch.ones(4, 6, 5))


def test_masked_derivatives_are_right():
    mask = mask_for((4, 4, 3))
    x, weight = sample(4, 4, 3, dtype=torch.float64), sample(4, dtype=torch.float64)

    def masked(x, weight):
        return functional.normalize(x, "n (g=2 c) ... -> n g", weight, mask=mask)

    assert gradcheck(masked, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(4, 5), TypeError, "mask must be of booleans.*float32.*~padding"),
        (torch.ones(4, 6, dtype=torch.bool), ValueError, "mask for input 4×6×5.*4×5.*got 4×6"),
        (torch.ones(5, dtype=torch.bool), ValueError, "such as 4×5, got 5"),
    ],
    ids=["numbers", "channels in place of positions", "no samples"],
)
def test_masks_that_do_not_fit_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        make("group:2")(sample(4, 6, 5), mask=mask)


def test_recompute_and_mask_are_refused_together():
    with pytest.raises(ValueError, match="recompute=True is for whole tensors"):
        make("group:2", recompute=True)(sample(4, 6, 5), mask=mask_for((4, 6, 5)))


@pytest.mark.parametrize("spec", ["torch_bn", "batch_renorm", "evonorm_s0", "global_response"])
def test_norms_that_take_no_mask_say_so(spec):
    with pytest.raises(ValueError, match=f"norm {spec!r} takes no mask"):
        make(spec)(sample(4, 6, 5), mask=mask_for((4, 6, 5)))
