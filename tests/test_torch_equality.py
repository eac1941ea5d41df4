"""normlab.nn and normlab.functional against torch's: values, states, errors, checkpoints."""

import pytest
import torch
from oracle import assert_within, sample
from torch import nn
from torch.nn import functional as F

import normlab.nn
from normlab import functional, norms

# class, constructor arguments, input shape
LAYERS = {
    "BatchNorm1d": ((6,), (4, 6, 5)),
    "BatchNorm1d, no positions": ((6,), (4, 6)),
    "BatchNorm2d": ((6,), (4, 6, 3, 5)),
    "BatchNorm3d": ((6,), (4, 6, 2, 3, 5)),
    "InstanceNorm1d": ((6,), (4, 6, 5)),
    "InstanceNorm1d, no batch": ((6,), (6, 5)),
    "InstanceNorm2d": ((6,), (4, 6, 3, 5)),
    "InstanceNorm2d, no batch": ((6,), (6, 3, 5)),
    "InstanceNorm3d": ((6,), (4, 6, 2, 3, 5)),
    "GroupNorm": ((3, 6), (4, 6, 3, 5)),
    "GroupNorm, one group": ((1, 6), (4, 6, 5)),
    "LayerNorm": ((5,), (4, 6, 5)),
    "LayerNorm, two axes": (([6, 5],), (4, 6, 5)),
    "LayerNorm, one axis in all": ((5,), (5,)),
    "RMSNorm": ((5,), (4, 6, 5)),
    "RMSNorm, two axes": (([6, 5],), (4, 6, 5)),
}
OPTIONS = {
    "BatchNorm": [
        {}, {"affine": False}, {"bias": False}, {"eps": 0.1}, {"track_running_stats": False},
        {"momentum": None}, {"momentum": 0.0}, {"momentum": 0.3}, {"momentum": 1.0},
    ],
    "InstanceNorm": [
        {}, {"affine": True}, {"eps": 0.1}, {"track_running_stats": True},
        {"track_running_stats": True, "momentum": 0.3, "affine": True},
        {"track_running_stats": True, "momentum": 0.0},
    ],
    "GroupNorm": [{}, {"affine": False}, {"bias": False}, {"eps": 0.1}],
    "LayerNorm": [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}],
    "RMSNorm": [{}, {"elementwise_affine": False}, {"eps": 0.1}],
}  # fmt: skip
ROWS = [
    pytest.param(case, options, id=f"{case} {options or ''}")
    for case in LAYERS
    for options in OPTIONS[case.partition(",")[0].rstrip("123d")]
]


def pair(case, **options):
    """torch's layer and ours in the same state, which is not that of a new one."""
    name, (arguments, _) = case.partition(",")[0], LAYERS[case]
    theirs, ours = (getattr(m, name)(*arguments, **options) for m in (nn, normlab.nn))
    with torch.no_grad():
        for seed, tensor in enumerate(theirs.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(sample(*tensor.shape, seed=seed).abs() + 0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize(("case", "options"), ROWS)
def test_layer_equals_torch_over_several_steps(case, options):
    theirs, ours = (layer.double() for layer in pair(case, **options))
    for step in range(5):
        x = sample(*LAYERS[case][1], dtype=torch.float64, seed=step) * (step + 1) + step
        found = []
        for layer in (theirs, ours):
            layer.train(step < 3)
            inputs = [x.clone().requires_grad_(), *layer.parameters()]
            y = layer(inputs[0])
            found.append((y, *torch.autograd.grad(y.sin().sum(), inputs)))
        for expected, actual in zip(*found):
            assert_within(actual, expected)
        for key, value in theirs.state_dict().items():
            # torch's instance norm has the counter and never moves it
            if not (case.startswith("Instance") and key == "num_batches_tracked"):
                assert_within(ours.state_dict()[key], value, dtype=torch.float64)


@pytest.mark.parametrize(("case", "options"), ROWS)
def test_checkpoints_load_both_ways(case, options):
    """N27"""
    theirs, ours = pair(case, **options)
    a, b = theirs.state_dict(), ours.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in a.items()] == [
        (k, v.shape, v.dtype) for k, v in b.items()
    ]
    assert a._metadata == b._metadata
    theirs.load_state_dict(b, strict=True)


@pytest.mark.parametrize("case", LAYERS)
def test_layer_is_one_of_torch_and_looks_like_it(case):
    theirs, ours = pair(case)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert ours._version == theirs._version


@pytest.mark.parametrize("case", LAYERS)
def test_layer_takes_activation_and_residual(case):
    theirs, _ = pair(case)
    name, (arguments, shape) = case.partition(",")[0], LAYERS[case]
    ours = getattr(normlab.nn, name)(*arguments, activation="relu")
    ours.load_state_dict(theirs.state_dict())
    x, residual = sample(*shape), sample(*shape, seed=1)
    assert_within(ours(x, residual), F.relu(theirs(x) + residual))
    assert "activation=relu" in repr(ours)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_checkpoint_from_before_batches_were_counted_loads(name):
    """N27"""
    ours = getattr(normlab.nn, name)(6)
    state = ours.state_dict()
    del state["num_batches_tracked"], state._metadata
    ours.load_state_dict(state, strict=True)
    norms.norm("batch", 6).load_state_dict(state, strict=True)
    assert ours.num_batches_tracked == 0


def test_checkpoint_that_has_lost_its_count_is_refused():
    """One that says it is of a torch which counts."""
    for layer in (normlab.nn.BatchNorm2d(6), norms.norm("batch", 6)):
        state = layer.state_dict()
        del state["num_batches_tracked"]
        with pytest.raises(RuntimeError, match=r'Missing key.* "num_batches_tracked"'):
            layer.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("batch", nn.BatchNorm2d(6)),
        ("batch:n=2", nn.BatchNorm2d(6)),
        ("torch_bn", nn.BatchNorm2d(6)),
        ("group:3", nn.GroupNorm(3, 6)),
        ("layer", nn.GroupNorm(1, 6)),
        ("layer", nn.LayerNorm(6)),
        ("instance", nn.InstanceNorm2d(6, affine=True)),
    ],
)
def test_catalogue_exchanges_checkpoints_with_torch(spec, theirs):
    ours = norms.norm(spec, 6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    if spec not in ("batch:n=2", "torch_bn") and not isinstance(theirs, nn.LayerNorm):
        x = sample(4, 6, 3, 5)
        assert_within(ours(x), theirs(x))
        assert_within(ours.eval()(x), theirs.eval()(x))


def test_instance_norm_with_momentum_none_averages_the_batches():
    """B41: torch's never moves"""
    layer = normlab.nn.InstanceNorm1d(2, momentum=None, track_running_stats=True)
    batches = [sample(3, 2, 9, seed=seed) + seed for seed in range(4)]
    for batch in batches:
        layer(batch)
    assert_within(layer.running_mean, torch.cat(batches).double().mean((0, 2)))
    assert layer.num_batches_tracked == 4


def test_negative_momentum_warns_and_computes_as_torch():
    with pytest.warns(UserWarning, match="momentum is the weight of the new batch.*got -0.5"):
        layer = norms.norm("batch", 6, momentum=-0.5)
    theirs = nn.BatchNorm1d(6, momentum=-0.5)
    for step in layer, theirs:
        step(sample(4, 6))
    assert_within(layer.running_mean, theirs.running_mean)


def test_reset_forgets_the_batches():
    theirs, ours = pair("BatchNorm2d")
    for layer in (theirs, ours):
        layer(sample(4, 6, 3, 5))
        layer.reset_running_stats()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


X, PER_CHANNEL = (4, 6, 3, 5), ((6,), (6,))
CALLS = {
    "batch_norm, training": ("batch_norm", X, (*PER_CHANNEL, *PER_CHANNEL, True, 0.3, 1e-3)),
    "batch_norm, evaluation": ("batch_norm", X, (*PER_CHANNEL, *PER_CHANNEL, False, 0.3, 1e-3)),
    "batch_norm, no statistics": ("batch_norm", X, (None, None, *PER_CHANNEL, True)),
    "batch_norm, bias only": ("batch_norm", X, (None, None, None, (6,), True)),
    "batch_norm, weight only": ("batch_norm", X, (None, None, (6,), None, True)),
    "instance_norm": ("instance_norm", X, ()),
    "instance_norm, running": ("instance_norm", X, (*PER_CHANNEL, *PER_CHANNEL, True, 0.3, 1e-3)),
    "instance_norm, fixed": ("instance_norm", X, (*PER_CHANNEL, *PER_CHANNEL, False)),
    "group_norm": ("group_norm", X, (3, *PER_CHANNEL, 1e-3)),
    "group_norm, bias only": ("group_norm", X, (3, None, (6,))),
    "layer_norm": ("layer_norm", X, ([3, 5], (3, 5), (3, 5), 1e-3)),
    "layer_norm, bias only": ("layer_norm", X, ([5], None, (5,))),
    "rms_norm": ("rms_norm", X, ([3, 5], (3, 5), 1e-3)),
    "rms_norm, eps of the type": ("rms_norm", X, ([5],)),
}


@pytest.mark.parametrize("call", CALLS)
def test_function_equals_torch_by_position(call):
    name, shape, arguments = CALLS[call]
    found = []
    for module in (F, functional):
        # tuples stand for tensors, which either call may change
        tensors = [
            sample(*a, dtype=torch.float64, seed=i).abs() + 0.1 if isinstance(a, tuple) else a
            for i, a in enumerate(arguments)
        ]
        x = sample(*shape, dtype=torch.float64).requires_grad_()
        y = getattr(module, name)(x, *tensors)
        dx = torch.autograd.grad(y.sin().sum(), x)
        found.append([y, *dx, *(t for t in tensors if isinstance(t, torch.Tensor))])
    for expected, actual in zip(*found):
        assert_within(actual, expected)


# what is called wrongly, as a function of torch's module or ours
MISUSES = {
    "BatchNorm1d on 4-D": lambda m, f: m.BatchNorm1d(6)(sample(4, 6, 3, 5)),
    "BatchNorm2d on 3-D": lambda m, f: m.BatchNorm2d(6)(sample(4, 6, 3)),
    "BatchNorm3d on 4-D": lambda m, f: m.BatchNorm3d(6)(sample(4, 6, 3, 5)),
    "InstanceNorm2d on 2-D": lambda m, f: m.InstanceNorm2d(6)(sample(4, 6)),
    "wrong channels, batch": lambda m, f: m.BatchNorm2d(6)(sample(4, 5, 3, 5)),
    "wrong channels, group": lambda m, f: m.GroupNorm(3, 6)(sample(4, 9, 3, 5)),
    "wrong last axis, layer": lambda m, f: m.LayerNorm(6)(sample(4, 5)),
    "one value per channel": lambda m, f: m.BatchNorm1d(6)(sample(1, 6)),
    "one value, evaluation without statistics": lambda m, f: (
        m.BatchNorm1d(6, track_running_stats=False).eval()(sample(1, 6))
    ),
    "one position": lambda m, f: m.InstanceNorm1d(6)(sample(4, 6, 1)),
    "one value in all": lambda m, f: m.GroupNorm(6, 6)(sample(1, 6, 1)),
    "groups do not divide": lambda m, f: m.GroupNorm(4, 6),
    "no positions": lambda m, f: f.group_norm(torch.empty(2, 6, 0), 3),
    "whole numbers": lambda m, f: f.group_norm(torch.ones(4, 6, 3, dtype=torch.int), 3),
    "eps 0 in training": lambda m, f: f.batch_norm(sample(4, 6), None, None, training=True, eps=0),
    "evaluation without statistics": lambda m, f: f.batch_norm(sample(4, 6), None, None),
    "only one statistic": lambda m, f: f.batch_norm(sample(4, 6), torch.zeros(6), None),
    "weight of another size": lambda m, f: f.group_norm(sample(4, 6), 3, torch.ones(5)),
    "float64 weight": lambda m, f: f.group_norm(sample(4, 6), 3, torch.ones(6).double()),
    "bfloat16 weight": lambda m, f: f.layer_norm(sample(4, 6), (6,), torch.ones(6).bfloat16()),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_raises_what_torch_raises(misuse):
    """The type a caller of torch's would catch, or one below it."""
    errors = []
    for module, functions in ((nn, F), (normlab.nn, functional)):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            MISUSES[misuse](module, functions)
        errors.append(caught.type)
    assert issubclass(errors[1], errors[0])


@pytest.mark.parametrize("case", [c for c in LAYERS if "no batch" not in c and "in all" not in c])
def test_no_samples_pass_as_in_torch(case):
    """N10; torch's instance norm raises IndexError, B10"""
    theirs, ours = pair(case)
    x = torch.empty(0, *LAYERS[case][1][1:], requires_grad=True)
    y = ours(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    if not case.startswith("Instance"):
        theirs(x)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


@pytest.mark.parametrize(
    "case", ["BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"]
)
def test_compiled_layer_equals_torch(case):
    """N29, B30"""
    torch._dynamo.reset()
    options = {"momentum": None} if case == "BatchNorm2d" else {}
    theirs, ours = pair(case, **options)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for samples in (4, 3, 7):
        x = sample(samples, *LAYERS[case][1][1:])
        assert_within(compiled(x), theirs(x))
    for key, value in theirs.state_dict().items():
        assert_within(ours.state_dict()[key], value, dtype=torch.float32)


@pytest.mark.parametrize("name", sorted(normlab.nn.__all__))
def test_names_and_constructors_are_those_of_torch(name):
    assert issubclass(getattr(normlab.nn, name), getattr(nn, name))


def test_batch_norm_needs_no_eps_in_evaluation():
    x, mean, var = sample(4, 6, 5), torch.zeros(6), torch.full((6,), 4.0)
    assert torch.equal(functional.batch_norm(x, mean, var, eps=0.0), x / 2)
