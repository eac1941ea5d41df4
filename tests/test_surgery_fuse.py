"""Fusing: which steps a norm takes over, which it does not, and that nothing else changes."""

import copy
import operator
import warnings

import pytest
import torch
from oracle import assert_within, sample
from torch import nn
from torch.nn import functional as F

import normlab.nn
from normlab import norm
from normlab.surgery import chain as chains
from normlab.surgery.fuse import fuse, fusible
from normlab.surgery.graph import call

C = 4
X = sample(3, C, 5, 5)


class Block(nn.Module):
    """Modules, and what is done with them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        self.conv = nn.Conv2d(C, C, 1)
        self.norm = nn.BatchNorm2d(C)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args):
        return self.run(self, *args)


def then(function, **modules):
    """conv, norm, then a function."""
    return lambda: Block(lambda b, x: function(b.norm(b.conv(x))), **modules)


def activated(module):
    """conv, norm, then a module."""
    return lambda: Block(lambda b, x: b.act(b.norm(b.conv(x))), act=module)


def added(function):
    """relu of what a function makes of norm and input."""
    return lambda: Block(lambda b, x: F.relu(function(b.norm(b.conv(x)), x)))


def of(layer, *size):
    """A norm of another kind, then relu."""

    def make():
        block = Block(lambda b, x: F.relu(b.norm(b.conv(x))))
        block.norm = layer
        return block

    return make


def reused(b, x):
    y = b.relu(b.norm(b.conv(x)))
    y = b.norm2(b.conv(y))
    y += b.down(x)
    return b.relu(y)


def statistics_given(b, x):
    n = b.norm
    y = F.batch_norm(
        b.conv(x), n.running_mean, n.running_var, n.weight, n.bias, b.training, 0.1, n.eps
    )
    return F.silu(y)


def dropped_out(b, x):
    return F.dropout(F.relu(b.norm(b.conv(x))), 0.5, b.training)


def half_in_training(b, x):
    y = F.relu(b.norm(b.conv(x)))
    if b.training:
        y = y * 0.5
    return y


TAKEN = {
    "F.relu": (then(F.relu), "relu"),
    "F.relu in place": (then(lambda y: F.relu(y, inplace=True)), "relu"),
    "torch.relu_": (then(torch.relu_), "relu"),
    "method relu": (then(lambda y: y.relu()), "relu"),
    "method relu_": (then(lambda y: y.relu_()), "relu"),
    "ReLU": (activated(nn.ReLU()), "relu"),
    "ReLU in place": (activated(nn.ReLU(inplace=True)), "relu"),
    "LeakyReLU": (activated(nn.LeakyReLU()), "leaky_relu"),
    "F.leaky_relu": (then(F.leaky_relu), "leaky_relu"),
    "SiLU": (activated(nn.SiLU()), "silu"),
    "F.silu in place": (then(lambda y: F.silu(y, inplace=True)), "silu"),
    "GELU": (activated(nn.GELU()), "gelu"),
    "GELU by tanh": (activated(nn.GELU("tanh")), "gelu_tanh"),
    "F.gelu": (then(F.gelu), "gelu"),
    "F.gelu by tanh": (then(lambda y: F.gelu(y, approximate="tanh")), "gelu_tanh"),
    "Hardswish": (activated(nn.Hardswish()), "hardswish"),
    "F.hardswish": (then(F.hardswish), "hardswish"),
    "Sigmoid": (activated(nn.Sigmoid()), "sigmoid"),
    "torch.sigmoid": (then(torch.sigmoid), "sigmoid"),
    "Tanh": (activated(nn.Tanh()), "tanh"),
    "torch.tanh": (then(torch.tanh), "tanh"),
    "norm + x": (added(operator.add), "+ residual, relu"),
    "x + norm": (added(lambda y, x: x + y), "+ residual, relu"),
    "norm += x": (added(operator.iadd), "+ residual, relu"),
    "torch.add": (added(torch.add), "+ residual, relu"),
    "torch.add alpha=1": (added(lambda y, x: torch.add(y, x, alpha=1)), "+ residual, relu"),
    "no activation": (lambda: Block(lambda b, x: b.norm(b.conv(x)) + x), "+ residual"),
    "Identity between": (
        lambda: Block(lambda b, x: b.act(b.drop(b.norm(x))), act=nn.ReLU(), drop=nn.Identity()),
        "relu",
    ),
    "dropout by function": (lambda: Block(dropped_out), "relu"),
    "branch on training": (lambda: Block(half_in_training), "relu"),
    "list of inputs": (lambda: Block(lambda b, x: F.relu(b.norm(torch.cat([x], 1)))), "relu"),
    "Sequential made on the way": (
        lambda: Block(lambda b, x: nn.Sequential(b.conv, b.norm, nn.ReLU())(x)),
        "relu",
    ),
    "BatchNorm of normlab.nn": (of(normlab.nn.BatchNorm2d(C)), "relu"),
    "batch of normlab.norms": (of(norm("batch", C)), "relu"),
    "group of normlab.norms": (of(norm("group:2", C)), "relu"),
    "torch_bn of normlab.norms": (of(norm("torch_bn", C)), "relu"),
    "GroupNorm": (of(nn.GroupNorm(2, C)), "relu"),
    "InstanceNorm2d": (of(nn.InstanceNorm2d(C, affine=True)), "relu"),
    "InstanceNorm2d with statistics": (
        of(nn.InstanceNorm2d(C, track_running_stats=True)),
        "relu",
    ),
    "LayerNorm": (of(nn.LayerNorm(5)), "relu"),
    "RMSNorm": (of(nn.RMSNorm(5)), "relu"),
    "momentum=None": (of(nn.BatchNorm2d(C, momentum=None)), "relu"),
    "without statistics": (of(nn.BatchNorm2d(C, track_running_stats=False)), "relu"),
}


@pytest.mark.parametrize(("make", "takes"), TAKEN.values(), ids=TAKEN)
def test_norm_takes_over_in_one_pass(make, takes, monkeypatch):
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    assert fusible(model, X).norms[0].takes == takes
    assert fuse(model, X) is model
    monkeypatch.setattr(chains, "_one_by_one", None)  # would be called for more than one pass
    assert_same_training(model, twin)


def assert_same_training(model, twin, x=X):
    """Outputs in both modes, gradients and running statistics of two networks are the same."""
    seen = []
    for network in (model, twin):
        x = x.detach().requires_grad_()
        torch.manual_seed(1)
        y = call(network.train(), x + 0)  # may be changed in place
        torch.manual_seed(2)
        wanted = [x, *network.parameters()]
        grads = torch.autograd.grad(y, wanted, torch.randn(y.shape), materialize_grads=True)
        # torch's instance norms do not count batches
        counted = not isinstance(getattr(network, "norm", None), nn.InstanceNorm2d)
        state = [b.float() for b in network.buffers() if counted or b.is_floating_point()]
        seen.append([y, *grads, *state, network.eval()(x + 0)])
    for ours, theirs in zip(*seen):
        # gradients of a bias before batch norm are 0, of addends the size of dy
        assert_within(ours, theirs, size=max(1.0, float(theirs.detach().abs().max())))


def test_reused_activation_stays_and_its_calls_vanish():
    model = Block(reused, relu=nn.ReLU(), norm2=nn.BatchNorm2d(C), down=nn.Conv2d(C, C, 1))
    twin = copy.deepcopy(model)
    report = fusible(model, X)
    assert [n.takes for n in report.norms] == ["relu", "+ residual, relu"]
    assert not report.activations
    assert fuse(model, X).relu is model.relu
    assert_same_training(model, twin)


def test_two_norms_added_are_one_pass_each():
    model = Block(lambda b, x: F.relu(b.norm(x) + b.norm2(b.conv(x))), norm2=nn.BatchNorm2d(C))
    twin = copy.deepcopy(model)
    first, second = fusible(model, X).norms
    assert (first.takes, second.takes) == ("+ residual, relu", "")
    assert "as its residual" in second.reason
    assert_same_training(fuse(model, X), twin)


def test_shared_norm_takes_over_in_each_call_what_follows_there():
    model = Block(lambda b, x: torch.tanh(b.norm(F.silu(b.norm(b.conv(x))))))
    twin = copy.deepcopy(model)
    assert fusible(model, X).norms[0].takes == "silu or tanh"
    assert_same_training(fuse(model, X), twin)


def test_37_norm_called_as_a_function_takes_over():
    model = Block(statistics_given)
    twin = copy.deepcopy(model)
    layer, function = fusible(model, X).norms
    assert "is not called" in layer.reason
    assert function.takes == "silu"
    assert_same_training(fuse(model, X), twin)


def twice(b, x):
    y = b.norm(x)
    return F.relu(y) + y


def added_to_another(b, x):
    y = x * 1
    y += b.norm(x)
    return F.relu(y)


def watched():
    block = activated(nn.ReLU())()
    block.act.register_forward_hook(lambda *_: None)
    return block


def watched_norm():
    block = activated(nn.ReLU())()
    block.norm.register_forward_hook(lambda *_: None)
    return block


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


LEFT = {
    "output used twice": (lambda: Block(twice), "goes to 2 places"),
    "number added in place": (added(lambda y, _: y.add_(1)), "a number is added"),
    "squared": (added(lambda y, _: y * y), "goes to mul twice"),
    "y + y": (added(lambda y, _: y + y), "goes to add twice"),
    "convolution between": (lambda: Block(lambda b, x: F.relu(b.conv(b.norm(x)))), "conv (Conv2d)"),
    "residual is spread": (added(lambda y, x: y + x.mean((2, 3), keepdim=True)), "another shape"),
    "alpha=2": (added(lambda y, x: torch.add(y, x, alpha=2)), "with alpha"),
    "number added": (added(lambda y, _: y + 1), "a number is added"),
    "added in place to another": (lambda: Block(added_to_another), "in place to a tensor"),
    "LeakyReLU 0.2": (activated(nn.LeakyReLU(0.2)), "act (LeakyReLU)"),
    "F.leaky_relu 0.2": (then(lambda y: F.leaky_relu(y, 0.2)), "goes to leaky_relu"),
    "ReLU6": (activated(nn.ReLU6()), "act (ReLU6)"),
    "22: hook on the activation": (watched, "which has hooks"),
    "22: hook on the norm": (watched_norm, "has hooks"),
    "21: forward of its own": (of(OwnForward(C)), "OwnForward has a forward of its own"),
    "has an activation": (of(normlab.nn.BatchNorm2d(C, activation="silu")), "applies silu already"),
    "end of the block": (lambda: Block(lambda b, x: b.norm(b.conv(x))), "whoever called"),
    "eps=0": (of(nn.GroupNorm(2, C, eps=0.0)), "eps is 0.0"),
    "not called": (lambda: Block(lambda b, x: b.conv(x)), "is not called"),
}


@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_norm_is_left_and_the_report_says_why(make, reason):
    model = make()
    twin = copy.deepcopy(model)
    report = fusible(model, X)
    assert report.counts["left"] == 1
    assert reason in report.norms[0].reason
    assert reason in str(report)
    fuse(model, X)
    assert torch.allclose(model.eval()(X), twin.eval()(X), atol=1e-5)


def set_attribute(b, x):
    b.seen = 1
    return F.relu(b.norm(x))


def without_gradients(b, x):
    with torch.no_grad():
        x = x * 2
    return F.relu(b.norm(x))


def without_autocast(b, x):
    with torch.autocast("cpu", enabled=False):
        x = x * 2
    return F.relu(b.norm(x))


def checkpointed(b, x):
    return torch.utils.checkpoint.checkpoint(lambda x: F.relu(b.norm(x)), x, use_reentrant=False)


def looked_at(b, x):
    return F.relu(b.norm(x)) if x.shape[0] > 1 else x


def drawn(b, x):
    return F.relu(b.norm(x)) * (1 if torch.rand(()) > 2 else 0.5)


UNTRACED = {
    "branch on the input": (looked_at, "cannot be traced"),
    "sets an attribute": (set_attribute, "its forward sets seen"),
    "no_grad": (without_gradients, "runs under no_grad"),
    "autocast": (without_autocast, "runs under no_grad, autocast"),
    "checkpoint": (checkpointed, "checkpoint"),
    "random branch": (drawn, "draws random numbers"),
}


@pytest.mark.parametrize(("run", "reason"), UNTRACED.values(), ids=UNTRACED)
def test_block_that_no_graph_tells_keeps_its_forward(run, reason):
    inner = Block(run)
    model = nn.Sequential(inner, nn.BatchNorm2d(C), nn.ReLU())
    inside, outside = fusible(model, X).norms
    assert reason in inside.reason
    assert outside.takes == "relu"
    fuse(model, X)
    assert type(inner) is Block
    assert type(inner.norm) is normlab.nn.BatchNorm2d


def vision(name, **options):
    torchvision = pytest.importorskip("torchvision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(torchvision.models, name)(weights=None, **options)


def timm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm").create_model(name)


def unet():
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None)


def mask_rcnn():
    detection = pytest.importorskip("torchvision").models.detection
    return detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone


# norms, with activation, with residual, left
ZOO = {
    "resnet18": (lambda: vision("resnet18"), (20, 17, 8, 3)),
    "resnet50": (lambda: vision("resnet50"), (53, 49, 16, 4)),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small"), (34, 23, 0, 11)),
    "densenet121": (lambda: vision("densenet121"), (121, 120, 0, 1)),
    "efficientnet_b0": (lambda: vision("efficientnet_b0"), (49, 33, 0, 16)),
    "convnext_tiny": (lambda: vision("convnext_tiny"), (23, 0, 0, 23)),
    "timm resnet18": (lambda: timm("resnet18"), (20, 17, 8, 3)),
    "timm efficientnet_b0: BatchNormAct2d": (lambda: timm("efficientnet_b0"), (49, 33, 0, 16)),
    "U-Net of smp": (unet, (30, 27, 8, 3)),
    "Mask R-CNN's backbone": (mask_rcnn, (53, 49, 16, 4)),
}
QUICK = "resnet18"


@pytest.mark.parametrize(
    ("make", "counts"),
    [pytest.param(*row, id=name, marks=pytest.mark.slow if name != QUICK else ())
     for name, row in ZOO.items()],
)  # fmt: skip
def test_networks_of_the_zoo_fuse(make, counts):
    torch.manual_seed(0)
    model, x = make(), sample(2, 3, 64, 64)
    keys = list(model.state_dict())
    assert tuple(fusible(model, x).counts.values()) == counts
    fuse(model, x)  # compares outputs, gradients and statistics
    assert list(model.state_dict()) == keys
