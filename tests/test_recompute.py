"""`recompute=True`: less is kept for the backward pass, and nothing else changes."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from oracle import OURS, make, sample
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import normlab.nn
from normlab import functional, norms, ops

SHAPE = (4, 8, 6, 6)
ACTIVATION = 4 * 4 * 8 * 6 * 6  # bytes
TORCH = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
SPECS = [spec for spec in OURS if norms.parse(spec)[0].can_recompute]


def inputs(*shape, **options):
    return sample(*shape or SHAPE, **options).requires_grad_()


AFTER, LINEAR, EYE = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(288, 5), torch.eye(32).to_sparse()


def group_norm(recompute=True, activation="silu"):
    return normlab.nn.GroupNorm(2, 8, activation=activation, recompute=recompute)


def network(kind, activation):
    """conv, norm, activation, conv: of torch's layers, of ours, of ours with recompute."""
    middle = {
        "torch": [nn.GroupNorm(2, 8), TORCH[activation]()],
        "ours": [group_norm(False, activation)],
        "recompute": [group_norm(True, activation)],
    }
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), *middle[kind], AFTER)


def both(function):
    """Value and gradients of function(norm, x), without recompute and with it."""
    for recompute in (False, True):
        norm, x = group_norm(recompute), inputs()
        wanted = [x, *norm.parameters(), *AFTER.parameters()]
        AFTER.zero_grad()
        y = function(norm, x)
        y.square().sum().backward()  # not grad(), which reentrant checkpoints refuse
        yield [y.detach(), *(t.grad for t in wanted if t.grad is not None)]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


# what conv, norm, activation, conv keep: the input, the norm's input, and what is noted
KEPT = [
    ("torch", "relu", 3),  # the ReLU's output
    ("torch", "silu", 4),  # its input and its output
    ("torch", "gelu", 4),
    ("ours", "relu", 3),  # the norm's output
    ("ours", "silu", 3),
    ("ours", "gelu", 3),
    ("recompute", "relu", 2),
    ("recompute", "silu", 2),
    ("recompute", "gelu", 2),
]


@pytest.mark.parametrize(("kind", "activation", "count"), KEPT)
def test_saved_activations_are_as_many_as_said(kind, activation, count):
    net, saved = network(kind, activation), {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.detach()
        return t.detach()

    with saved_tensors_hooks(pack, lambda t: t):
        y = net(inputs())
    sizes = [t.untyped_storage().nbytes() for t in saved.values()]
    assert sizes.count(ACTIVATION) == count
    others = sum(sizes) - count * ACTIVATION - 2 * net[0].weight.untyped_storage().nbytes()
    assert 0 < others <= 2 * 8 * 4 + 3 * 8 * 8  # weight, bias; mean, variance, rstd of 8 groups
    y.sum().backward()


@pytest.mark.parametrize(("kind", "activation", "count"), KEPT)
def test_activations_alive_after_the_forward_pass_are_as_many_as_said(kind, activation, count):
    net, seen, x = network(kind, activation), set(), inputs()

    def note(module, given, y):
        seen.update(StorageWeakRef(t.untyped_storage()) for t in (*given, y))

    for module in net:
        module.register_forward_hook(note)
    y = net(x)
    assert sum(not storage.expired() for storage in seen) == count + 1  # and the result
    y.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_and_statistics_are_the_same_bits(spec, training):
    x, found = inputs(), []
    for recompute in (False, True):
        layer = make(spec, 8, activation="relu", recompute=recompute).train(training)
        y = AFTER(layer(x))
        wanted = [x, *layer.parameters(), *AFTER.parameters()]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
        found[-1] += layer.state_dict().values()
    assert_same(*found)
    assert layer.num_batches_tracked is None or layer.num_batches_tracked == training


@pytest.mark.parametrize(
    "name", ["BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"]
)
def test_torchs_layers_have_recompute_and_torchs_state(name):
    size = {"GroupNorm": (2, 8), "LayerNorm": (6,), "RMSNorm": (6,)}.get(name, (8,))
    theirs = getattr(nn, name)(*size)
    x, found = inputs(), []
    for recompute in (False, True):
        layer = getattr(normlab.nn, name)(*size, recompute=recompute)
        layer.load_state_dict(theirs.state_dict())
        assert list(layer.state_dict()) == list(theirs.state_dict())
        y = layer(x)
        wanted = [x, *layer.parameters(), *AFTER.parameters()]
        found.append(torch.autograd.grad(AFTER(y).square().sum(), wanted))
    assert_same(*found)
    assert type(y) is not Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_rebuilt_values_are_those_of_the_forward_pass(activation, memory_format, dtype):
    x = sample(*SHAPE, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    residual = sample(*SHAPE, dtype=dtype, seed=1)
    y = functional.normalize(
        x, "n (g c) ... -> n g", g=2, activation=activation, residual=residual, recompute=True
    )
    product, expected = y * inputs(dtype=dtype), y.detach().clone()
    storage = StorageWeakRef(y.untyped_storage())
    del y
    assert storage.expired()
    rebuilt = product.grad_fn._saved_self
    assert torch.equal(rebuilt, expected)
    assert rebuilt.stride() == expected.stride()


def test_second_derivatives_are_right():
    def net(x, first, weight, bias, second):
        y = functional.group_norm(
            F.conv2d(x, first), 2, weight, bias, activation="tanh", recompute=True
        )
        return F.conv2d(y, second)

    shapes = [(2, 2, 3, 3), (4, 2, 2, 2), (4,), (4,), (2, 4, 2, 2)]
    given = [inputs(*s, dtype=torch.float64, seed=i) for i, s in enumerate(shapes)]
    assert gradcheck(net, given, fast_mode=True)
    assert gradgradcheck(net, given, fast_mode=True)


def test_two_backward_passes_are_the_same_and_the_last_frees_the_graph():
    x = inputs()
    loss = AFTER(group_norm()(x)).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert_same(torch.autograd.grad(loss, x), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx, dz):
        return 2 * ctx.saved_tensors[0] * dz


# uses of y after which it is gone, to be rebuilt
REBUILT = {
    "convolution": AFTER,
    "two convolutions": lambda y: AFTER(y) + F.conv2d(y, AFTER.weight, padding=1),
    "flatten, linear": lambda y: LINEAR(y.flatten(1)),
    "permute": lambda y: y.permute(0, 2, 3, 1) @ AFTER.weight[0, :, 0],
    "halves": lambda y: y[:, :4] * y[:, 4:],
    "chunks": lambda y: torch.mul(*y.chunk(2, dim=1)),
    "list": lambda y: torch.einsum("nchw,ndhw->ncd", [y, y]),
    "max pool": lambda y: F.max_pool2d(y, 2),
    "dropout that drops nothing": lambda y: AFTER(F.dropout(y, 0.5, training=False)),
    "activation": F.silu,
    "sparse product": lambda y: torch.sparse.mm(EYE, y.reshape(32, -1)) * 2,
    "another norm": lambda y: AFTER(group_norm(False)(y)),
}
# uses that keep y, or change it
KEEPING = {
    "custom function": Square.apply,
    "another norm that recomputes": lambda y: AFTER(group_norm()(y)),
    "checkpoint": lambda y: checkpoint(AFTER, y, use_reentrant=False),
    "complex product": lambda y: torch.view_as_complex(y.reshape(4, 8, 18, 2)).square().abs(),
    "negated view": lambda y: torch.imag(
        torch.view_as_complex(y.reshape(4, 8, 18, 2)).conj()
    ).square(),
    "in-place product": lambda y: AFTER(y.mul_(2)),
    "in-place activation": lambda y: AFTER(F.relu(y, inplace=True)),
    "change of a part": lambda y: AFTER(y[:, :4].mul_(3)._base),
    "other data": lambda y: setattr(y, "data", y.data * 2) or AFTER(y),
}


@pytest.mark.parametrize("use", [*REBUILT, *KEEPING])
def test_gradients_are_the_same_after(use):
    assert_same(*both(lambda norm, x: {**REBUILT, **KEEPING}[use](norm(x))))


@pytest.mark.parametrize("use", REBUILT)
def test_y_is_freed_after(use):
    y = group_norm()(inputs())
    storage = StorageWeakRef(y.untyped_storage())
    result = REBUILT[use](y)
    del y
    assert storage.expired()
    result.sum().backward()


@pytest.mark.parametrize(
    ("use", "calls"),
    [
        pytest.param(AFTER, 1, id="one layer"),
        pytest.param(REBUILT["two convolutions"], 2, id="two layers: each for itself"),
        pytest.param(lambda y: AFTER(group_norm()(AFTER(y), y)), 1, id="not one kept as residual"),
    ],
)
def test_y_is_rebuilt_as_often_as_said(use, calls, monkeypatch):
    rebuild, count = ops.rebuild, []
    monkeypatch.setattr(ops, "rebuild", lambda *given: count.append(1) or rebuild(*given))
    use(group_norm()(inputs())).sum().backward()
    assert len(count) == calls


def test_y_that_is_still_there_is_not_rebuilt(monkeypatch):
    monkeypatch.setattr(ops, "rebuild", None)
    y = group_norm()(inputs())
    AFTER(y).sum().backward()


@pytest.mark.parametrize("changed", ["x", "weight", "the next layer's weight"])
def test_change_in_place_is_refused_as_by_torch(changed):
    norm, after, x = group_norm(), copy.deepcopy(AFTER), inputs() * 1
    loss = after(norm(x)).sum()
    with torch.no_grad():
        {"x": x, "weight": norm.weight}.get(changed, after.weight).add_(1)
    wanted = x if changed == "the next layer's weight" else after.weight
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("changed", ["x before y is saved", "y after it is saved"])
def test_change_in_place_after_the_values_are_taken_does_no_harm(changed):
    x = inputs() * 1
    expected = torch.autograd.grad(AFTER(group_norm(False)(x)).sum(), AFTER.weight)
    y = group_norm()(x)
    if changed == "x before y is saved":
        x.add_(1)
    loss = AFTER(y).sum()
    if changed == "y after it is saved":
        y.add_(1)
    assert_same(torch.autograd.grad(loss, AFTER.weight), expected)


def test_running_statistics_that_moved_are_refused():
    layer = norms.norm("batch", 8, recompute=True).eval()
    loss = AFTER(layer(inputs())).sum()
    layer.train()(inputs())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, AFTER.weight)


def test_y_that_is_kept_does_not_keep_what_it_was_made_of():
    residual = sample(*SHAPE, seed=1)
    y = group_norm(activation=None)(inputs(), residual)
    result, storage = AFTER(y.mul_(2)), StorageWeakRef(residual.untyped_storage())
    del y, residual
    assert storage.expired()
    result.sum().backward()


def test_nothing_outlives_the_backward_pass():
    gc.disable()  # what only a collection would free is a leak
    try:
        y = group_norm()(h := AFTER(inputs()))
        z = torch.sigmoid(y)  # which saves its result
        loss, handed_out = AFTER(y).sum() + z.sum(), weakref.ref(y)
        storages = [StorageWeakRef(t.untyped_storage()) for t in (h, y, z)]
        del y, z
        assert handed_out() is None
        loss.backward()
        del h, loss
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()


@pytest.mark.parametrize("layer", [group_norm(), norms.norm("gn", 8, recompute=True)], ids=repr)
def test_copies_of_a_layer_recompute_and_show_it(layer):
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.recompute
        assert repr(twin).endswith("recompute=True)")
    layer.recompute = False
    assert "recompute" not in repr(layer)


REFUSED = [
    (lambda: norms.norm("group", 8, recompute=1), TypeError, r"True or False, got 1 \(int\)"),
    (lambda: group_norm("yes"), TypeError, r"True or False, got 'yes' \(str\)"),
    (
        lambda: functional.layer_norm(sample(2, 3), (3,), recompute=None),
        TypeError, r"True or False, got None \(NoneType\)",
    ),
    (
        lambda: functional.batch_norm(sample(2, 3), sample(3), sample(3), recompute=0),
        TypeError, r"True or False, got 0 \(int\)",
    ),
    (lambda: norms.norm("torch_bn", 8, recompute=True), ValueError, "'torch_bn' is not"),
    (lambda: norms.norm("bin", 8, recompute=True), ValueError, "'batch_instance' is not"),
    (lambda: norms.norm("none", 8, recompute=True), ValueError, "'none' is not"),
]  # fmt: skip


@pytest.mark.parametrize(("make_norm", "error", "message"), REFUSED)
def test_what_cannot_recompute_is_refused(make_norm, error, message):
    with pytest.raises(error, match=message):
        make_norm()
