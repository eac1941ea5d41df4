"""Wrong layers and wrong inputs: what is said, and that nothing changed. Ids are RELIABILITY's."""

import copy

import pytest
import torch
from oracle import sample

import normlab
import normlab.nn
from normlab import functional, layer, norms
from normlab.pattern import PatternError

NOT_A_NUMBER = float("nan")
DIVISORS = r"num_channels \(10\) must be divisible by num_groups \(3\); divisors of 10: 1, 2, 5, 10"

# id, what is made, exception, message
CONSTRUCTIONS = [
    ("1: groups do not divide", lambda: normlab.nn.GroupNorm(3, 10), PatternError, DIVISORS),
    ("1: in the catalogue", lambda: norms.norm("group:3", 10), PatternError, DIVISORS),
    ("1: in the function", lambda: functional.group_norm(sample(2, 10), 3), PatternError, DIVISORS),
    (
        "1: by group size", lambda: norms.norm("group:size=3", 10), PatternError,
        "10 channels do not split into groups of 3 channels; choose one of 1, 2, 5, 10",
    ),
    (
        "1: both said", lambda: norms.GroupNorm(8, num_groups=2, group_size=4), PatternError,
        "give num_groups or group_size, not both; got 2 and 4",
    ),
    (
        "2: no groups", lambda: normlab.nn.GroupNorm(0, 6),
        PatternError, "num_groups must be ≥ 1, got 0",
    ),
    (
        "2: in a spec", lambda: norms.norm("group:0", 6),
        PatternError, "num_groups must be ≥ 1, got 0",
    ),
    ("2: group size", lambda: norms.norm("group:size=0", 6), PatternError, "groups of 0 channels"),
    ("3: negative groups", lambda: normlab.nn.GroupNorm(-2, 6), PatternError, "≥ 1, got -2"),
    ("3: in a spec", lambda: norms.norm("group:-2", 6), PatternError, "≥ 1, got -2"),
    (
        "4: groups as text", lambda: normlab.nn.GroupNorm("32", 64), TypeError,
        r"num_groups must be a whole number, got '32' \(str\)",
    ),
    (
        "4: groups as fraction", lambda: norms.GroupNorm(64, num_groups=2.5), TypeError,
        r"num_groups must be a whole number, got 2.5 \(float\)",
    ),
    (
        "4: group size as text", lambda: norms.GroupNorm(64, group_size="8"), TypeError,
        r"group_size must be a whole number, got '8' \(str\)",
    ),
    (
        "4: groups as text in a spec", lambda: norms.norm("group:x", 6),
        LookupError, "whole number, got 'x'",
    ),
    (
        "4: channels as fraction", lambda: norms.norm("group", 2.5), TypeError,
        r"num_channels must be a whole number, got 2.5 \(float\)",
    ),
    ("4: channels as text", lambda: normlab.nn.GroupNorm(2, "6"), TypeError, r"got '6' \(str\)"),
    (
        "4: no channels", lambda: norms.norm("layer", 0),
        ValueError, "num_channels must be at least 1, got 0",
    ),
    ("4: negative channels", lambda: norms.norm("group:2", -4), ValueError, "at least 1, got -4"),
    ("4: slices as text", lambda: norms.BatchNorm(6, norm_batch_size="2"), PatternError, "got '2'"),
    (
        "5: eps 0", lambda: norms.norm("layer", 6, eps=0),
        ValueError, "eps must be a positive number .*got 0",
    ),
    (
        "5: eps negative", lambda: normlab.nn.LayerNorm(6, eps=-1.0),
        ValueError, "positive .*got -1.0",
    ),
    (
        "5: eps NaN", lambda: normlab.nn.BatchNorm2d(6, eps=NOT_A_NUMBER),
        ValueError, "positive .*got nan",
    ),
    (
        "5: eps infinite", lambda: norms.norm("batch", 6, eps=float("inf")),
        ValueError, "positive .*got inf",
    ),
    (
        "5: eps as text", lambda: norms.norm("batch", 6, eps="1e-5"),
        ValueError, "positive .*got '1e-5'",
    ),
    ("5: eps true", lambda: norms.norm("batch", 6, eps=True), ValueError, "positive .*got True"),
    (
        "6: momentum as text", lambda: norms.norm("batch", 6, momentum="0.1"), TypeError,
        r"momentum must be a number or None, got '0.1' \(str\)",
    ),
    (
        "6: momentum as text in torch's layer", lambda: normlab.nn.BatchNorm1d(6, momentum="0.1"),
        TypeError, "momentum must be a number or None",
    ),
    (
        "6: momentum above 1 is accepted, warned of", lambda: norms.norm("batch", 6, momentum=1.5),
        UserWarning, "usually 0 to 1; got 1.5",
    ),
    (
        "6: the same in torch's layer", lambda: normlab.nn.BatchNorm1d(6, momentum=1.5),
        UserWarning, "usually 0 to 1; got 1.5",
    ),
    (
        "unknown activation", lambda: norms.norm("group", 6, activation="swish"),
        ValueError, "'swish' is none of none, relu",
    ),
    (
        "unknown norm", lambda: norms.norm("bathc", 6),
        LookupError, "norm 'bathc': there are batch, .*in short bn",
    ),
    (
        "unknown option in a spec", lambda: norms.norm("group:sise=8", 6),
        LookupError, "cannot read 'sise=8'; write group or group:8 or group:size=8",
    ),
    ("option of another norm", lambda: norms.norm("layer:8", 6), LookupError, "write layer$"),
]  # fmt: skip


def group(**options):
    return norms.norm("group:2", 6, **options)


def batch(**options):
    return norms.norm("batch", 6, **options)


X = (4, 6, 3, 5)
# id, layer, input, exception, message
CALLS = [
    (
        "7: no axis", batch, lambda: torch.tensor(1.0),
        ValueError, r"at least 2 axes .*got 0D input of shape \(\)",
    ),
    (
        "7: one axis", group, lambda: sample(6),
        ValueError, r"got 1D input of shape 6; add .*x.unsqueeze\(0\)",
    ),
    (
        "8: 3-D for 2d", lambda: normlab.nn.BatchNorm2d(6), lambda: sample(4, 6, 3),
        ValueError, r"expected 4D input \(got 3D input\)",
    ),
    (
        "8: 4-D for 1d", lambda: normlab.nn.BatchNorm1d(6), lambda: sample(*X),
        ValueError, r"expected 2D or 3D input \(got 4D input\)",
    ),
    (
        "9: wrong channels", group, lambda: sample(4, 5, 3),
        ValueError, r"GroupNorm expected 6 channels on axis 1, got 5 \(shape 4×5×3\)",
    ),
    (
        "9: batch norm of torch", lambda: normlab.nn.BatchNorm1d(6), lambda: sample(4, 5, 3),
        RuntimeError, "should contain 5 elements, .*4×5×3, not 6",
    ),
    (
        "9: instance norm of torch", lambda: normlab.nn.InstanceNorm1d(6), lambda: sample(4, 5, 3),
        ValueError, "expected 6 channels on axis 1, got 5",
    ),
    (
        "9: layer norm of torch", lambda: normlab.nn.LayerNorm(6), lambda: sample(4, 5),
        RuntimeError, "ends in normalized_shape 6, got 4×5",
    ),
    (
        "10: int", batch, lambda: torch.ones(X, dtype=torch.int),
        NotImplementedError,
        r'"normalize" is not implemented for torch.int32; convert first, as in x.float\(\)',
    ),
    (
        "10: bool", group, lambda: sample(*X) > 0,
        NotImplementedError, "not implemented for torch.bool",
    ),
    (
        "10: complex", lambda: normlab.nn.GroupNorm(2, 6), lambda: sample(*X).to(torch.complex64),
        NotImplementedError, "not implemented for torch.complex64",
    ),
    (
        "11: float64 weight", lambda: batch(dtype=torch.float64), lambda: sample(*X),
        RuntimeError,
        "mixed dtype: input torch.float32 with weight torch.float64; expected torch.float32$",
    ),
    (
        "11: float32 weight for float64", group, lambda: sample(*X).double(),
        RuntimeError,
        "mixed dtype: input torch.float64 with weight torch.float32; expected torch.float64$",
    ),
    (
        "11: bfloat16 weight for float16",
        lambda: group(dtype=torch.bfloat16), lambda: sample(*X).half(),
        RuntimeError, "mixed dtype.* expected torch.float16 or torch.float32",
    ),
    (
        "11: float64 gate",
        lambda: norms.norm("bin", 6, dtype=torch.float64, affine=False), lambda: sample(*X),
        RuntimeError, "mixed dtype: input torch.float32 with gate torch.float64",
    ),
    (
        "13: layer elsewhere", lambda: group(device="meta"), lambda: sample(*X),
        RuntimeError,
        r"weight on the device of the input, cpu, got meta; move the layer with .to\('cpu'\)",
    ),
    (
        "13: input elsewhere", batch, lambda: torch.empty(X, device="meta"),
        RuntimeError, "device of the input, meta, got cpu",
    ),
    (
        "13: running statistics elsewhere",
        lambda: batch(device="meta", affine=False), lambda: sample(*X),
        RuntimeError, "expected running_mean on the device of the input, cpu, got meta",
    ),
    (
        "14: one value per channel", batch, lambda: sample(1, 6, 1, 1),
        ValueError,
        r"per channel \(shape 1×6×1×1\); its variance would be 0. Use a larger batch or group norm",
    ),
    (
        "14: torch's layer", lambda: normlab.nn.BatchNorm1d(6), lambda: sample(1, 6),
        ValueError, "Expected more than 1 value per channel when training",
    ),
    (
        "14: slices of one", lambda: norms.norm("batch:n=1", 6), lambda: sample(4, 6),
        ValueError, r"one value per channel \(shape 4×6\)",
    ),
    (
        "14: one position", lambda: norms.norm("instance", 6), lambda: sample(4, 6),
        ValueError, "one value per sample and channel",
    ),
    (
        "14: one position, mixture", lambda: norms.norm("bin", 6), lambda: sample(4, 6),
        ValueError, "one value per sample and channel",
    ),
    (
        "14: one value per group in all", lambda: norms.norm("group:6", 6), lambda: sample(1, 6),
        ValueError, "one value per group .*fewer groups",
    ),
    (
        "15: evaluation without statistics",
        lambda: batch(track_running_stats=False).eval(), lambda: sample(1, 6),
        ValueError, "more than 1 value per channel",
    ),
    (
        "16: sparse", batch, lambda: sample(*X).to_sparse(),
        TypeError, r"dense tensor, got torch.sparse_coo; convert it \(x.to_dense\(\)\) first",
    ),
    (
        "16: sparse, torch's layer",
        lambda: normlab.nn.LayerNorm(5), lambda: sample(*X).to_sparse(),
        TypeError, "got torch.sparse_coo",
    ),
    (
        "16: nested", group,
        lambda: torch.nested.nested_tensor([sample(6, 3)], layout=torch.jagged),
        TypeError, r"got nested; convert it \(to_padded_tensor\)",
    ),
    (
        "16: nested, old layout", group,
        lambda: torch.nested.nested_tensor([sample(6, 3), sample(6, 2)]),
        TypeError, "got nested",
    ),
    (
        "16: nested, torch's layer",
        lambda: normlab.nn.InstanceNorm1d(6),
        lambda: torch.nested.nested_tensor([sample(6, 3), sample(6, 2)]),
        TypeError, "got nested",
    ),
    (
        "16: quantized", batch, lambda: torch.quantize_per_tensor(sample(*X), 0.1, 0, torch.quint8),
        TypeError, r"got quantized; convert it \(x.dequantize\(\)\)",
    ),
    (
        "slices do not divide the batch", lambda: norms.norm("batch:n=3", 6), lambda: sample(*X),
        PatternError, "axis of 4 in shape 4×6×3×5 does not split into n=3; choose one of 1, 2, 4",
    ),
]  # fmt: skip

# making these tensors warns that they are prototypes, or on their way out
unusual_tensors = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)


def rows(table):
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize(("make", "exception", "message"), rows(CONSTRUCTIONS))
def test_wrong_layer_is_refused(make, exception, message):
    expect = pytest.warns if issubclass(exception, Warning) else pytest.raises
    with expect(exception, match=message):
        make()


@unusual_tensors
@pytest.mark.parametrize(("make", "tensor", "exception", "message"), rows(CALLS))
def test_wrong_input_is_refused_and_leaves_no_trace(make, tensor, exception, message):
    """N4, N19 where types are mixed, N21"""
    layer, x = make(), tensor()
    before, version = copy.deepcopy(layer.state_dict()), x._version
    with pytest.raises(exception, match=message):
        layer(x)
    assert x._version == version
    for key, value in layer.state_dict().items():
        assert value.is_meta or torch.equal(value, before[key])


def test_momentum_above_one_computes_as_torch():
    """6: accepted"""
    with pytest.warns(UserWarning, match=r"got 1\.5"):
        ours = batch(momentum=1.5)
    theirs, x = torch.nn.BatchNorm2d(6, momentum=1.5), sample(*X)
    ours(x)
    theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_a_refused_batch_is_not_counted():
    """A layer that averages all batches would otherwise give the next one less weight."""
    layer = batch(momentum=None)
    with pytest.raises(ValueError, match="one value per channel"):
        layer(sample(1, 6))
    layer(sample(*X))
    torch.testing.assert_close(layer.running_mean, sample(*X).mean((0, 2, 3)))


def test_name_of_a_norm_is_given_once_but_to_the_same_class_again(monkeypatch):
    monkeypatch.setattr(layer, "CATALOGUE", dict(layer.CATALOGUE))

    def define(qualname):
        body = {"pattern": "n c h w -> n h", "__qualname__": qualname, "__module__": __name__}
        return type(norms.Norm)(qualname, (norms.Norm,), body, name="of_rows")

    define("Row")
    define("Row")  # as when a module is loaded again
    with pytest.raises(ValueError, match="norm 'of_rows' is Row already; choose another name"):
        define("OtherRow")
