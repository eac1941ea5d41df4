"""`recompute=True` among others: hooks, checkpoints, modes, compilers, transforms, threads."""

import copy
import io
import pickle
import threading

import pytest
import torch
from oracle import sample
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu
from torch.func import grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import normlab.nn
from normlab import functional

AFTER = nn.Conv2d(8, 8, 3, padding=1)
# torch's forward mode compiles its decompositions with the deprecated torch.jit
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


def inputs(seed=0):
    return sample(4, 8, 6, 6, seed=seed).requires_grad_()


def group_norm(recompute=True, activation="silu"):
    return normlab.nn.GroupNorm(2, 8, activation=activation, recompute=recompute)


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


def within(context):
    def function(norm, x):
        y = norm(x)
        with context():
            return AFTER(norm(AFTER(y)))

    return function


def checkpointed(norm, x, use_reentrant=False):
    return checkpoint(lambda x: AFTER(norm(AFTER(x))), x, use_reentrant=use_reentrant)


def gradient_by_y(norm, x):
    y = norm(x)
    return y * torch.autograd.grad(AFTER(y).pow(3).sum(), y, create_graph=True)[0]


def module_with_a_hook(norm, x):
    module = nn.Sequential(norm)
    module.register_full_backward_hook(lambda *_: None)
    return AFTER(module(x))


SURROUNDINGS = {
    "checkpoint": checkpointed,
    "reentrant checkpoint": lambda norm, x: checkpointed(norm, x, use_reentrant=True),
    "other hooks": within(save_on_cpu),
    "hooks forbidden": within(lambda: disable_saved_tensors_hooks("not here")),
    "dispatch mode": within(lambda: FlopCounterMode(display=False)),
    "function mode": within(lambda: torch.device("cpu")),
    "autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "residual blocks": lambda norm, x: norm(AFTER(h := norm(AFTER(norm(x)), x)), h),
    "gradient by y": gradient_by_y,
    "module with a hook": module_with_a_hook,
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_gradients_are_the_same_with(surrounding):
    assert_same(*both(SURROUNDINGS[surrounding]))


def test_checkpoint_keeps_nothing_of_its_inside():
    inside = []

    def function(x):
        inside.append(StorageWeakRef((h := AFTER(x)).untyped_storage()))
        return AFTER(group_norm()(h))

    y = checkpoint(function, inputs(), use_reentrant=False)
    assert inside[0].expired()
    y.sum().backward()


def test_backward_passes_in_other_threads_do_not_disturb_each_other():
    x, found = inputs(), []
    losses = [AFTER(group_norm()(x)).square().sum() for _ in range(4)]
    expected = torch.autograd.grad(AFTER(group_norm(False)(x)).square().sum(), x)
    threads = [
        threading.Thread(target=lambda loss=loss: found.append(torch.autograd.grad(loss, x)))
        for loss in losses
    ]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    assert len(found) == 4
    for gradients in found:
        assert_same(gradients, expected)


class Own(Tensor):
    """A kind of tensor that wants its like back."""


def test_other_kinds_of_tensors_have_their_way():
    y = group_norm()(inputs())
    z = F.conv2d(y, AFTER.weight.as_subclass(Own))
    assert type(z) is Own
    z.sum().backward()


def test_residual_made_in_inference_mode_is_taken():
    with torch.inference_mode():
        residual = sample(4, 8, 6, 6, seed=1)
    assert_same(
        *(
            torch.autograd.grad(AFTER(group_norm(r, None)(inputs(), residual)).sum(), AFTER.weight)
            for r in (False, True)
        )
    )


def test_y_is_plain_where_nothing_is_saved():
    norm, x = group_norm(), sample(4, 8, 6, 6)
    with torch.no_grad():
        assert type(norm(x)) is Tensor
    with torch.inference_mode():
        assert type(norm(x)) is Tensor
    assert type(norm.requires_grad_(False)(x)) is Tensor


@forward_mode
def test_forward_mode_has_the_same_derivatives():
    found = []
    with forward_ad.dual_level():
        for recompute in (False, True):
            x = forward_ad.make_dual(inputs(), sample(4, 8, 6, 6, seed=1))
            y = group_norm(recompute, "tanh")(x)
            assert type(y) is Tensor
            (dx,) = torch.autograd.grad(AFTER(y).square().sum(), x)
            found.append([dx, *forward_ad.unpack_dual(AFTER(y))])
    assert_same(*found)


def test_users_see_a_tensor():
    y, expected = group_norm()(inputs()), group_norm(False)(inputs())
    assert isinstance(y, Tensor)
    assert (y.shape, y.dtype, y.device) == (expected.shape, expected.dtype, expected.device)
    assert str(y).partition("grad_fn")[0] == str(expected).partition("grad_fn")[0]
    assert y.tolist() == expected.tolist()
    assert f"{y.sum().item():.3f}" == f"{expected.sum().item():.3f}"
    with pytest.raises(RuntimeError, match=r"Use tensor.detach\(\).numpy\(\)"):
        y.numpy()
    for part in (y.clone(), y.detach(), y.data, y * 2, *y.detach()):
        assert type(part) is Tensor
    assert (y.detach().numpy() == expected.detach().numpy()).all()


def test_saved_and_copied_values_are_plain():
    y, file = group_norm()(inputs()), io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=True), pickle.loads(pickle.dumps(y)), copy.copy(y)):
        assert type(twin) is Tensor
        assert torch.equal(twin, y)
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(y)
    assert type(copy.deepcopy(y.detach_())) is Tensor


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def test_compiled_layers_have_the_same_gradients():
    assert_same(*both(lambda norm, x: compiled(lambda x: AFTER(norm(x)))(x)))


USES = {
    "convolution": AFTER,
    "list": lambda y: torch.einsum("nchw,ndhw->ncd", [y, y]),
    "in-place product": lambda y: AFTER(y.mul_(2)),
}


# torch asks for .grad of what enters a compiled function, and warns itself of it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("use", USES)
def test_uses_that_are_compiled_have_the_same_gradients(use):
    use = compiled(USES[use])
    assert_same(*both(lambda norm, x: use(norm(x)) + use(norm(x * 2))))


@forward_mode
@pytest.mark.parametrize("transform", [vmap, jacrev, grad, jvp])
def test_function_transforms_have_the_same_results(transform):
    found = []
    for recompute in (False, True):
        norm, x = group_norm(recompute, "tanh"), sample(2, 3, 8, 2, 2)
        outside = norm(sample(3, 8, 2, 2).requires_grad_())

        def loss(x, norm=norm, outside=outside):
            y = norm(x)
            assert type(y) is Tensor
            return (F.conv2d(y, AFTER.weight, padding=1) * outside).sum()

        if transform is jvp:
            found.append(jvp(loss, (x[0],), (x[1],)))
        else:
            found.append([transform(loss)(x if transform is vmap else x[0])])
    assert_same(*found)


def test_traced_graph_computes_values_and_gradients():
    norm, x = group_norm(), inputs(seed=1)
    constant = norm(x)

    def function(x):
        y = AFTER(norm(x))
        return y * constant, torch.autograd.grad(y.square().sum(), x)[0]

    assert_same(make_fx(function)(inputs())(x), function(x))


class Net(nn.Module):
    def forward(self, x):
        return F.silu(functional.normalize(x, "n c ... -> n c", recompute=True))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_traced_module_has_the_same_values():
    x = inputs()
    assert torch.equal(torch.jit.trace(Net(), x)(x), Net()(x))
