"""Norms of weights: what they make of a weight, by definition; refusals; models that have them."""

import copy

import pytest
import torch
from oracle import assert_within, sample
from test_surgery_standardize import CONVOLUTIONS, filters, x_for
from torch import nn
from torch.nn.utils import parametrize

from normlab.surgery import SurgeryError, calibrate, reparametrize
from normlab.surgery.weights import NORMS, ScaledWeightStandardization

LAYERS = {
    name: build for name, build in CONVOLUTIONS.items() if name != "transposed 3-D, depthwise"
}
SHARED_AXIS = {"transposed, grouped"}  # filters of several groups along one axis
WN_LAYERS = {
    **{name: build for name, build in LAYERS.items() if name not in SHARED_AXIS},
    "linear": lambda: nn.Linear(4, 6),
}


def weights_of(layer):
    """(number of filters, values), whatever the layer; by the definition of a convolution."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().double()
    return filters(layer, layer.weight.detach().double())


def input_for(layer):
    if isinstance(layer, nn.Linear):
        return sample(2, 4, dtype=layer.weight.dtype)
    return x_for(layer)


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_scaled_standardization_is_its_equation(build):
    layer = build()
    w = weights_of(layer)
    reparametrize(layer, "sws", eps=1e-4)
    gain = sample(len(w), seed=5)
    with torch.no_grad():
        layer.parametrizations.weight[0].gain.copy_(gain)
    mean, var = w.mean(1, keepdim=True), w.var(1, unbiased=False, keepdim=True)
    expected = gain.double()[:, None] * (w - mean) / torch.sqrt(var + 1e-4) / w.shape[1] ** 0.5
    ratio = float((mean.abs() / var.sqrt()).max())
    assert_within(weights_of(layer), expected, dtype=torch.float32, ratio=ratio)


def test_scaled_standardization_keeps_the_variance_of_independent_inputs():
    """What the scale is for: sum of fan_in products of variance 1 / fan_in each."""
    layer = reparametrize(nn.Conv2d(64, 32, 3, bias=False), "sws")
    y = layer(sample(16, 64, 12, 12)).detach()
    # 51,200 values that overlap 9 times: as good as 5,700; std of a variance sqrt(2 / 5700)
    assert abs(float(y.var()) - 1) < 5 * (2 / 5700) ** 0.5


@pytest.mark.parametrize("build", WN_LAYERS.values(), ids=WN_LAYERS)
def test_weight_norm_is_its_equation(build):
    layer = build()
    before = weights_of(layer)
    reparametrize(layer, "wn")
    assert_within(weights_of(layer), before, dtype=torch.float32)
    made = layer.parametrizations.weight
    with torch.no_grad():
        made.original1.mul_(3.0)  # the length of v is nothing
        made.original0.mul_(torch.arange(1.0, len(before) + 1).reshape(made.original0.shape))
    expected = before * torch.arange(1.0, len(before) + 1).double()[:, None]
    assert_within(weights_of(layer), expected, dtype=torch.float32)


@pytest.mark.parametrize("build", [*LAYERS.values(), lambda: nn.Linear(4, 6)],
                         ids=[*LAYERS, "linear"])  # fmt: skip
def test_spectral_norm_converges_to_the_largest_singular_value(build):
    torch.manual_seed(0)  # as its speed depends on the two largest values
    layer = build().double()
    weight = layer.weight.detach().clone()
    transposed = getattr(layer, "transposed", False)
    matrix = (weight.transpose(0, 1) if transposed else weight).flatten(1)
    expected = weight / torch.linalg.matrix_norm(matrix, 2)
    reparametrize(layer, "sn", num_iterations=500).eval()
    layer.train()(input_for(layer))
    # 500 steps shrink the error by (s2/s1)^500, below 1e-9 for s2/s1 up to 0.959
    torch.testing.assert_close(layer.eval().weight.detach(), expected, rtol=0, atol=1e-8)


def test_spectral_norm_moves_in_training_only():
    layer = reparametrize(nn.Linear(4, 6), "sn")
    vector = layer.parametrizations.weight[0]._u
    before = vector.clone()
    layer.eval()(sample(2, 4))
    assert torch.equal(vector, before)
    layer.train()(sample(2, 4))
    assert not torch.equal(vector, before)


@pytest.mark.parametrize("name", NORMS)
def test_gradients_are_right(name):
    layer = reparametrize(nn.Conv2d(4, 6, 3, groups=2).double(), name)
    layer.eval()  # else spectral norm moves between evaluations
    names, values = zip(*layer.named_parameters())
    x = x_for_grouped()

    def output(*given):
        return torch.func.functional_call(layer, dict(zip(names, given)), (x,))

    inputs = [v.detach().clone().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


def x_for_grouped():
    return sample(2, 4, 5, 5, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2])
def test_equal_to_scaled_std_conv_of_timm(groups):
    layers = pytest.importorskip("timm.layers")
    theirs = layers.ScaledStdConv2d(4, 6, 3, groups=groups, bias=False, gain_init=1.5)
    ours = nn.Conv2d(4, 6, 3, groups=groups, padding=1, bias=False)
    ours.load_state_dict({"weight": theirs.weight})
    x = sample(2, 4, 6, 6)
    y = reparametrize(ours, "sws", eps=theirs.eps, gain=1.5)(x)
    assert_within(y, theirs.double()(x.double()), dtype=torch.float32)


@pytest.mark.parametrize("name", NORMS)
def test_model_trains_copies_and_loads(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    reparametrize(model, name)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(sample(2, 3, 5, 5)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    x = sample(2, 3, 5, 5, seed=1)
    assert torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", NORMS)
def test_frozen_and_mode_are_kept(name):
    conv = nn.Conv2d(3, 4, 3).eval().requires_grad_(False)
    reparametrize(conv, name)
    assert not any(p.requires_grad for p in conv.parameters())
    assert not any(m.training for m in conv.modules())


def test_calibrated_batch_norm_takes_up_the_new_scale():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    reparametrize(model, "ws")
    x = sample(8, 3, 9, 9)
    calibrate(model, [x])
    y = model.eval()(x).detach()
    # the population is the batch: mean 0 but for rounding of float32
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)


def tied():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, other)


def zeros():
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight[1].zero_()
    return nn.Sequential(layer)


def all_zeros():
    layer = nn.Linear(3, 4)
    nn.init.zeros_(layer.weight)
    return nn.Sequential(layer)


def twice():
    return reparametrize(nn.Sequential(nn.Linear(3, 3)), "sn")


REFUSED = {
    "unknown": (tied, "xs", {}, LookupError, r"norm of weights 'xs': there are ws \(weight stan"),
    "option": (tied, "wn", {"eps": 1}, TypeError, "'wn' has no option 'eps'; it has none"),
    "other option": (tied, "ws", {"gain": 1}, TypeError, "'ws' has no option 'gain'; it has eps"),
    "iterations": (tied, "sn", {"num_iterations": 0}, ValueError, "at least 1, got 0"),
    "gain": (tied, "sws", {"gain": float("nan")}, ValueError, "gain must be a number, got nan"),
    "eps": (tied, "sn", {"eps": -1.0}, ValueError, "eps must be a positive number"),
    "no convolution": (tied, "sws", {}, SurgeryError, "0 of 0 convolutions matched; it has 2 Lin"),
    "tied": (tied, "wn", {}, SurgeryError, "0: its weight is tied to that of 1, and v and g wou"),
    "no direction": (zeros, "wn", {}, SurgeryError, "0: has 1 filters of zeros, which have no dir"),
    "no sigma": (all_zeros, "sn", {}, SurgeryError, "0: has a weight of zeros, whose sigma is 0"),
    "twice": (
        twice, "wn", {}, SurgeryError,
        "1 of 1 convolutions and linear layers cannot take weight norm.*\n"
        "  0: its weight is parametrized by _SpectralNorm",
    ),
    "transposed groups": (
        CONVOLUTIONS["transposed, grouped"], "wn", {}, SurgeryError, "transposed with 2 groups",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name", "options", "error", "message"), REFUSED.values(), ids=REFUSED
)
def test_what_cannot_be_done_is_refused(build, name, options, error, message):
    model = build()
    before = str(model)
    with pytest.raises(error, match=message):
        reparametrize(model, name, **options)
    assert str(model) == before


def test_layers_before_a_refused_one_are_unchanged():
    model = nn.Sequential(nn.Linear(3, 3), all_zeros())
    with pytest.raises(SurgeryError, match="1 of 2 convolutions and linear layers"):
        reparametrize(model, "sn")
    assert not parametrize.is_parametrized(model[0])


def test_where_leaves_the_head():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    reparametrize(model, "wn", where="0")
    assert [parametrize.is_parametrized(m) for m in model] == [True, False]


def test_transposed_filters_have_a_gain_each():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    reparametrize(layer, "sws")
    made = layer.parametrizations.weight[0]
    assert isinstance(made, ScaledWeightStandardization)
    assert made.gain.shape == (6,)
