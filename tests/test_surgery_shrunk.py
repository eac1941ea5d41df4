"""Norms between their own statistics and the population's."""

import copy
import pickle

import pytest
import torch
from oracle import assert_within, sample
from torch import nn

from normlab import functional, norms, ops, reference, surgery
from normlab.surgery import Shrunk

C = 6
PATTERNS = {
    "group": "n (g=2 c) ... -> n g",
    "layer": "n c ... -> n",
    "instance": "n c ... -> n c",
    "batch": "n c ... -> c",
    "batch in slices": "(b n=2) c ... -> b c",
}
SHAPES = {"1-D": (4, C, 7), "2-D": (4, C, 3, 5), "3-D": (2, C, 2, 3, 2)}


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def pattern(request):
    return request.param


def make(pattern, strength, dtype=torch.float32, **options):
    layer = Shrunk(C, pattern, strength=strength, dtype=dtype, **options)
    with torch.no_grad():
        for k, tensor in enumerate((*layer.parameters(), *layer.buffers())):
            tensor.copy_(sample(*tensor.shape, seed=k).abs() + 0.5)
    return layer


def definition(layer, x):
    """The equation, in float64, in plain torch."""
    x = x.double()
    split, kept, reduced = split_of(layer.pattern, x.shape)
    by_axis = x.reshape(split)
    mean = by_axis.mean(reduced, keepdim=True)
    var = (by_axis - mean).square().mean(reduced, keepdim=True)
    m, v = (
        (1 - layer.strength) * own
        + layer.strength * fixed.double().reshape([s if k else 1 for s, k in zip(split, kept)])
        for own, fixed in ((mean, layer.population_mean), (var, layer.population_var))
    )
    y = ((by_axis - m) / (v + layer.eps).sqrt()).reshape(x.shape)
    beside = (1, -1, *[1] * (x.dim() - 2))
    return y * layer.weight.double().reshape(beside) + layer.bias.double().reshape(beside)


def split_of(pattern, shape):
    """Sizes of all axes, which of them keep a population statistic, which are averaged."""
    n, c, *rest = shape
    table = {
        PATTERNS["group"]: ((n, 2, c // 2, *rest), {1}, lambda k: k > 1),
        PATTERNS["layer"]: ((n, c, *rest), set(), lambda k: k > 0),
        PATTERNS["instance"]: ((n, c, *rest), {1}, lambda k: k > 1),
        PATTERNS["batch"]: ((n, c, *rest), {1}, lambda k: k != 1),
        PATTERNS["batch in slices"]: ((n // 2, 2, c, *rest), {2}, lambda k: k not in (0, 2)),
    }
    sizes, kept, averaged = table[pattern]
    axes = range(len(sizes))
    return sizes, [k in kept for k in axes], [k for k in axes if averaged(k)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_output_is_the_definition(pattern, shape, strength):
    layer, x = make(pattern, strength), sample(*shape)
    assert_within(layer(x), definition(layer, x))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_the_output(pattern, strength):
    layer = make(pattern, strength, torch.float64)
    x = sample(4, C, 3, dtype=torch.float64).requires_grad_()
    parameters = (layer.weight, layer.bias)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_channels_last_gives_the_same_values_in_its_own_format(pattern, strength):
    layer, x = make(pattern, strength), sample(4, C, 3, 5)
    last = x.to(memory_format=torch.channels_last)
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_within(y, definition(layer, x))


@pytest.mark.parametrize("spec", ["group:2", "layer", "instance", "batch", "batch:n=2"])
def test_strength_0_is_the_plain_norm_bit_for_bit(spec):
    plain = norms.norm(spec, C)
    layer = Shrunk(C, plain.pattern, strength=0.0)
    x = sample(4, C, 3, 5)
    assert torch.equal(layer(x), plain(x))


def test_strength_1_is_batch_norm_in_evaluation_bit_for_bit():
    layer, x = make(PATTERNS["batch"], 1.0), sample(4, C, 3, 5)
    y = functional.batch_norm(
        x, layer.population_mean, layer.population_var, layer.weight, layer.bias
    )
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize(("strength", "calls"), [(0.0, "normalize"), (1.0, "apply")])
def test_ends_of_the_scale_take_one_kernel(strength, calls, monkeypatch):
    taken = []
    for name in ("moments", "normalize", "apply"):
        whole = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *a, name=name, whole=whole: (taken.append(name), whole(*a))[1]
        )
    make(PATTERNS["group"], strength)(sample(4, C, 3, 5))
    assert taken == [calls]


def test_evaluation_of_a_pattern_over_the_batch_uses_the_population_alone():
    layer = make(PATTERNS["batch"], 0.3).eval()
    x = sample(4, C, 3)
    assert torch.equal(layer(x)[:1], layer(x[:1]))


def test_one_position_is_no_zero_variance_once_shrunk():
    layer, x = make(PATTERNS["instance"], 0.5), sample(3, C, 1)
    assert_within(layer(x), definition(layer, x))
    layer.strength = 0.0
    with pytest.raises(ValueError, match="instance norm got one value per sample and channel"):
        layer(x)


def test_activation_and_residual_come_last():
    layer = make(PATTERNS["group"], 0.3, activation="relu")
    x, residual = sample(4, C, 5), sample(4, C, 5, seed=9)
    assert_within(layer(x, residual), (definition(layer, x) + residual).relu())


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"expected 6 channels on axis 1, got 5 \(shape 2×5×3\)"):
        make(PATTERNS["group"], 0.3)(sample(2, 5, 3))


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_strength_is_a_number_from_0_to_1(strength):
    with pytest.raises(ValueError, match="strength is a number from 0 .* to 1"):
        Shrunk(C, PATTERNS["group"], strength=strength)


def test_schedule_sets_all_layers_and_counts_them():
    model = nn.Sequential(make(PATTERNS["group"], 1.0), nn.ReLU(), make(PATTERNS["layer"], 0.5))
    assert surgery.set_strength(model, 0.25) == 2
    assert [model[0].strength, model[2].strength] == [0.25, 0.25]
    with pytest.raises(ValueError, match="strength is a number from 0"):
        surgery.set_strength(model, 2)


def test_schedule_for_a_model_without_strength_is_refused():
    with pytest.raises(surgery.SurgeryError, match="no norm of the model has a strength"):
        surgery.set_strength(nn.Sequential(nn.BatchNorm2d(4)), 0.5)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_the_same(copied):
    layer, x = make(PATTERNS["group"], 0.3), sample(4, C, 5)
    assert torch.equal(copied(layer)(x), layer(x))


def test_state_dict_holds_population_and_strength():
    layer, x = make(PATTERNS["group"], 0.3), sample(4, C, 5)
    state = layer.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = Shrunk(C, PATTERNS["group"], strength=1.0)
    other.load_state_dict(state)
    assert other.strength == 0.3
    assert torch.equal(other(x), layer(x))


def test_reference_and_this_file_agree_on_the_plain_norm(pattern):
    layer, x = make(pattern, 0.0), sample(4, C, 3, 5)
    y = reference.normalize(x, pattern, layer.weight, layer.bias)
    assert_within(definition(layer, x), y)


def test_pattern_by_name_is_shown():
    assert repr(make(PATTERNS["layer"], 0.5)) == (
        'Shrunk(6, "n c ... -> n", strength=0.5, eps=1e-05)'
    )
