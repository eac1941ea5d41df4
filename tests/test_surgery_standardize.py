"""Weight standardization: every filter has mean 0 and variance 1, on any convolution."""

import copy

import pytest
import torch
from oracle import assert_within, sample
from torch import nn
from torch.nn.utils import parametrize

from normlab.surgery.layers import SurgeryError
from normlab.surgery.standardize import WeightStandardization, weight_standardize

CONVOLUTIONS = {
    "1-D": lambda: nn.Conv1d(4, 6, 3),
    "2-D": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "3-D": lambda: nn.Conv3d(4, 6, 2),
    "1 by 1": lambda: nn.Conv2d(4, 6, 1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "channels-last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "transposed 1-D": lambda: nn.ConvTranspose1d(4, 6, 3),
    "transposed 2-D": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed 3-D, depthwise": lambda: nn.ConvTranspose3d(4, 4, 2, groups=4),
}


def filters(conv, weight):
    """(number of filters, values), whatever the layout; by the definition of a convolution."""
    if not conv.transposed:
        return weight.flatten(1)
    groups = weight.reshape(conv.groups, -1, *weight.shape[1:])
    return groups.transpose(1, 2).flatten(0, 1).flatten(1)


def rank(conv):
    return len(conv.kernel_size)


def x_for(conv):
    return sample(2, conv.in_channels, *[6] * rank(conv), dtype=conv.weight.dtype)


@pytest.mark.parametrize("build", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_filters_are_standardized(build):
    conv = build()
    w = filters(conv, conv.weight.detach().double())
    weight_standardize(conv)
    mean, var = w.mean(1, keepdim=True), w.var(1, unbiased=False, keepdim=True)
    expected = (w - mean) / torch.sqrt(var + 1e-5)
    ratio = float((mean.abs() / var.sqrt()).max())
    assert_within(filters(conv, conv.weight), expected, dtype=torch.float32, ratio=ratio)


@pytest.mark.parametrize("build", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_output_is_that_of_the_standardized_weight(build):
    conv = build()
    x = x_for(conv)
    expected = copy.deepcopy(weight_standardize(copy.deepcopy(conv)))
    parametrize.remove_parametrizations(expected, "weight", leave_parametrized=True)
    assert type(expected) is type(conv)
    assert torch.equal(weight_standardize(conv)(x), expected(x))


@pytest.mark.parametrize("build", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_scale_and_offset_of_a_filter_change_nothing(build):
    conv = build().double()
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.mul_(3).add_(0.5)
    x = x_for(conv)
    y, scaled = (weight_standardize(c, eps=1e-12)(x) for c in (conv, twin))
    # eps is the difference: 1e-12 of a variance of at least 0.01
    torch.testing.assert_close(scaled, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("build", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_gradients_are_right(build):
    conv = weight_standardize(build().double())
    original, x = conv.parametrizations.weight.original, x_for(conv)

    def output(w):
        return torch.func.functional_call(conv, {"parametrizations.weight.original": w}, (x,))

    assert torch.autograd.gradcheck(output, original.detach().requires_grad_(), fast_mode=True)


def test_taken_off_the_weight_is_what_it_was():
    conv = nn.Conv2d(3, 4, 3)
    weight = conv.weight.detach().clone()
    weight_standardize(conv)
    parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
    assert torch.equal(conv.weight, weight)
    assert type(conv) is nn.Conv2d


def test_model_trains_copies_and_loads():
    model = weight_standardize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    twin = copy.deepcopy(model)
    model(sample(2, 3, 5, 5)).square().sum().backward()
    assert model[0].parametrizations.weight.original.grad.abs().sum() > 0
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin[0].weight, model[0].weight)


def test_shared_and_tied_convolutions_stay_so():
    conv, tied = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    tied.weight = conv.weight
    model = weight_standardize(nn.ModuleDict({"a": conv, "b": conv, "c": tied}))
    assert model["a"] is model["b"]
    assert len(conv.parametrizations.weight) == 1
    assert tied.parametrizations.weight.original is conv.parametrizations.weight.original


def test_frozen_and_mode_are_kept():
    conv = nn.Conv2d(3, 4, 3).eval().requires_grad_(False)
    weight_standardize(conv)
    assert not conv.parametrizations.weight.original.requires_grad
    assert not any(m.training for m in conv.modules())


def test_where_chooses():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    weight_standardize(model, where=lambda name, layer: layer.in_channels == 4)
    assert [parametrize.is_parametrized(m) for m in model] == [False, True]


@pytest.mark.parametrize("groups", [1, 2])
def test_equal_to_std_conv_of_timm(groups):
    """timm takes eps 1e-6; the variance is biased and eps under the root in both."""
    layers = pytest.importorskip("timm.layers")
    theirs = layers.StdConv2d(4, 6, 3, groups=groups, padding=1)
    ours = nn.Conv2d(4, 6, 3, groups=groups, padding=1, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = sample(2, 4, 6, 6)
    y = weight_standardize(ours, eps=theirs.eps)(x)
    assert_within(y, theirs.double()(x.double()), dtype=torch.float32)


def already():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    return weight_standardize(model)


def by_hook():
    return nn.Sequential(nn.Conv2d(3, 4, 3), torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 3)))


REFUSED = {
    "no convolution": (
        lambda: nn.Linear(2, 2), {}, SurgeryError, "0 of 0 convolutions matched; it has 1 Linear",
    ),
    "nothing there": (
        already, {"where": "body.*"}, SurgeryError, r"0 of 1 convolutions matched where 'body.\*'",
    ),
    "one value per filter": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), {}, SurgeryError,
        r"1 of 1 convolutions .*:\n  0: has 1 value per filter \(weight 4×1×1×1\), .* become 0",
    ),
    "23: parametrized": (
        already, {}, SurgeryError, "0: its weight is parametrized by WeightStandardization",
    ),
    "made by a hook": (
        by_hook, {}, SurgeryError, "1 of 2 convolutions .*\n  1: its weight is no parameter",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(3, 3)), {}, SurgeryError,
        "0: has no size yet; run one batch first",
    ),
    "eps": (lambda: nn.Conv2d(3, 3, 3), {"eps": 0.0}, ValueError, "eps must be a positive number"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("build", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_standardized_is_refused(build, options, error, message):
    with pytest.raises(error, match=message):
        weight_standardize(build(), **options)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_refused_model_is_unchanged():
    """F32."""
    model = by_hook()
    with pytest.raises(SurgeryError):
        weight_standardize(model)
    assert not parametrize.is_parametrized(model[0])


def test_std_conv_of_timm_is_refused():
    layers = pytest.importorskip("timm.layers")
    with pytest.raises(SurgeryError, match="is a StdConv2d, which standardizes itself"):
        weight_standardize(layers.StdConv2d(3, 4, 3))


def test_parametrization_shows_its_pattern():
    assert repr(WeightStandardization()) == 'WeightStandardization("o i ... -> o", eps=1e-05)'
