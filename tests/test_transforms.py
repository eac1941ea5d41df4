"""Every norm under derivatives of any order, function transforms, the compiler and export.

Ids are those of RELIABILITY.
"""

import copy

import pytest
import torch
from oracle import (
    HAS_CONSTANTS,
    OURS,
    SPECS,
    assert_within,
    definition,
    double,
    gradients,
    make,
    sample,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from normlab import norms

BATCH_NORMS = [s for s in SPECS if norms.parse(s)[0].uses_batch()]
our_norms = pytest.mark.parametrize("spec", OURS)
# torch's forward mode compiles its decompositions with the deprecated torch.jit
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


def as_function(layer):
    """The layer as a function of x and its parameters, and those parameters in float64."""
    layer = layer.double()
    names, values = zip(*[("x", None), *layer.named_parameters()])
    parameters = tuple(v.detach().requires_grad_() for v in values[1:])

    def function(x, *parameters):
        return functional_call(layer, dict(zip(names[1:], parameters)), x)

    return function, parameters


@forward_mode
@pytest.mark.parametrize("spec", [s for s in OURS if s not in HAS_CONSTANTS])
def test_first_and_second_derivatives_and_forward_mode(spec):
    """N23"""
    layer = make(spec, 4, momentum=0.0, activation="silu")
    function, parameters = as_function(layer)
    x = sample(2, 4, 3, dtype=torch.float64).requires_grad_()
    gradcheck(function, (x, *parameters), check_forward_ad=True, fast_mode=True)
    gradgradcheck(function, (x, *parameters), check_fwd_over_rev=True, fast_mode=True)


@our_norms
def test_third_derivatives_equal_the_definition(spec):
    """N24"""
    layer = make(spec, activation="tanh").double()
    twin, found = double(layer), []
    for function in (layer, lambda x: definition(twin, x)):
        x = sample(4, 6, 5, dtype=torch.float64).requires_grad_()
        value = function(x).exp().sum()
        for order in range(3):
            (dx,) = torch.autograd.grad(value, x, create_graph=True)
            value = (dx * sample(4, 6, 5, dtype=torch.float64, seed=order)).sum()
        found.append(dx)
    assert_within(*found)


@forward_mode
@our_norms
def test_second_directional_derivatives_equal_the_definition(spec):
    """N24, B32: jvp of jvp"""
    layer = make(spec, track_running_stats=False, activation="tanh").double()
    x, first, second = (sample(4, 6, 5, dtype=torch.float64, seed=seed) for seed in range(3))

    def twice(function):
        return jvp(lambda x: jvp(function, (x,), (first,))[1], (x,), (second,))[1]

    assert_within(twice(layer), twice(lambda x: definition(layer, x)))


@forward_mode
@our_norms
def test_function_transforms_equal_loops(spec):
    """N25"""
    layer = make(spec, 4, track_running_stats=False, activation="silu").double()
    batches = sample(3, 2, 4, 3, dtype=torch.float64)
    assert_within(vmap(layer)(batches), torch.stack([layer(x) for x in batches]))

    def loss(x):
        return layer(x).pow(3).sum()

    x = batches[0]
    assert_within(jacrev(layer)(x), torch.autograd.functional.jacobian(layer, x))
    assert_within(jacfwd(layer)(x), jacrev(layer)(x))
    assert_within(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


@pytest.mark.parametrize("transform", [vmap, jacrev, grad])
@pytest.mark.parametrize("spec", [s for s in OURS if s in BATCH_NORMS])
def test_running_statistics_refuse_function_transforms_with_advice(spec, transform):
    """N25, B34"""
    layer = make(spec)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"track_running_stats=False|layer\.eval\(\)"):
        transform(lambda x: layer(x).sum())(sample(2, 6, 6, 2))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("spec", OURS)
def test_compiled_layer_equals_the_layer(spec):
    """N29: one graph, two static shapes then a dynamic one; statistics move as in eager mode"""
    torch._dynamo.reset()
    layer = make(spec, momentum=None, activation="relu")
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed, shape in enumerate([(4, 6, 5), (2, 6, 7), (6, 6, 9)]):
        x, dy = sample(*shape, seed=seed).requires_grad_(), sample(*shape, seed=9)
        pairs = zip(gradients(compiled(x), dy, x, layer), gradients(twin(x), dy, x, twin))
        for (_, actual), (_, expected) in pairs:
            assert_within(actual, expected)
    for key, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


@pytest.mark.parametrize("strict", [False, True])
@our_norms
def test_exported_layer_equals_the_layer(spec, strict):
    """N29"""
    layer, x = make(spec).eval(), sample(4, 6, 5)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=strict)
    x = sample(8, 6, 5)
    assert torch.equal(program.module()(x), layer(x))


def test_modes_that_watch_operators_see_ours():
    """The short way past the dispatcher is for calls that nobody watches."""
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(operator.name())
            return operator(*args, **(kwargs or {}))

    layer, x = make("group:2"), sample(4, 6, 5)
    with Watching():
        layer(x)
    assert "normlab::normalize" in seen
