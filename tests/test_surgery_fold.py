"""Folding: batch norms vanish into what comes before them, or stay for a reason."""

import copy
import pickle

import pytest
import torch
from oracle import make, sample
from torch import nn
from torch.fx.experimental import optimization
from torch.nn import functional as F

import normlab.nn
from normlab.surgery.fold import fold, foldable
from normlab.surgery.freeze import freeze
from normlab.surgery.fuse import fuse
from normlab.surgery.layers import SurgeryError

X = {2: sample(3, 4), 3: sample(3, 4, 9), 4: sample(3, 4, 9, 8), 5: sample(2, 4, 5, 6, 7)}


def norm_of(kind, num_channels, **options):
    """A norm in evaluation whose parameters and statistics are no longer those of a new one."""
    norm = kind(num_channels, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return norm


def pair(layer, kind, **options):
    torch.manual_seed(0)
    return nn.Sequential(layer, norm_of(kind, 6, **options)).eval()


FOLDED = {
    "Conv1d": (lambda: pair(nn.Conv1d(4, 6, 3), nn.BatchNorm1d), 3),
    "Conv2d": (lambda: pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d), 4),
    "Conv3d": (lambda: pair(nn.Conv3d(4, 6, 3), nn.BatchNorm3d), 5),
    "without bias": (lambda: pair(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d), 4),
    "in groups": (lambda: pair(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d), 4),
    "padding by reflection": (
        lambda: pair(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d),
        4,
    ),
    "ConvTranspose1d": (lambda: pair(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d), 3),
    "ConvTranspose2d in groups": (
        lambda: pair(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d),
        4,
    ),
    "ConvTranspose3d": (lambda: pair(nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d), 5),
    "Linear": (lambda: pair(nn.Linear(4, 6), nn.BatchNorm1d), 2),
    "without weight and bias": (
        lambda: pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d, affine=False),
        4,
    ),
    "BatchNorm2d of normlab.nn": (lambda: pair(nn.Conv2d(4, 6, 3), normlab.nn.BatchNorm2d), 4),
    "batch of normlab.norms": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), make("batch", 6)).eval(),
        4,
    ),
    "with an activation": (
        lambda: pair(nn.Conv2d(4, 6, 3), normlab.nn.BatchNorm2d, activation="silu"),
        4,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("build", "rank"), FOLDED.values(), ids=FOLDED)
def test_folded_network_is_the_same_function(build, rank, dtype):
    model, x = build().to(dtype), X[rank].to(dtype)
    folded = fold(model, x)
    assert not any(hasattr(m, "running_var") and m.running_var is not None for m in folded)
    expected = model(x).detach()
    # one product and one sum per weight are rounded anew
    bound = 16 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert float((folded(x).detach() - expected).abs().max()) <= bound


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "Linear", "without bias"])
def test_weights_equal_those_of_torch_fx(name):
    build, rank = FOLDED[name]
    model = build()
    ours, theirs = fold(model, X[rank])[0], optimization.fuse(model).get_submodule("0")
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_model_is_unchanged():
    model = FOLDED["Conv2d"][0]()
    before = copy.deepcopy(model.state_dict())
    fold(model, X[4])
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())


class Block(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.conv, self.norm = nn.Conv2d(4, 4, 1), norm_of(nn.BatchNorm2d, 4)

    def forward(self, x):
        return self.run(self, x)


def both(b, x):
    y = b.conv(x)
    return b.norm(y) + y


def hooked():
    block = Block(lambda b, x: b.norm(b.conv(x)))
    block.conv.register_forward_hook(lambda *_: None)
    return block


LEFT = {
    "output used twice": (lambda: Block(both), 4, "Conv2d before it is used elsewhere"),
    "convolution used twice": (
        lambda: Block(lambda b, x: b.norm(b.conv(b.conv(x)))), 4, "is used elsewhere too"),
    "norm used twice": (lambda: Block(lambda b, x: b.norm(b.conv(b.norm(x)))), 4, "runs 2 times"),
    "activation between": (lambda: Block(lambda b, x: b.norm(F.relu(b.conv(x)))), 4, "relu"),
    "block's input": (lambda: Block(lambda b, x: b.norm(x)), 4, "follows its block's input"),
    "without statistics": (
        lambda: pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d, track_running_stats=False),
        4, "has no running statistics"),
    "Linear on a sequence": (
        lambda: pair(nn.Linear(9, 6), nn.BatchNorm1d), 3, "follows"),
    "22: hook": (hooked, 4, "has hooks"),
    "23: parametrized": (
        lambda: pair(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d),
        4, "follows ParametrizedConv2d"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "rank", "reason"), LEFT.values(), ids=LEFT)
def test_norm_stays_and_the_table_says_why(build, rank, reason):
    model = build().eval()
    x = X[rank]
    if reason == "follows":
        model[1] = norm_of(nn.BatchNorm1d, 4).eval()  # channels are the axis Linear leaves alone
        reason = "puts channels last"
    folding = foldable(model, x)
    assert not folding.into
    assert reason in str(folding)
    with pytest.raises(SurgeryError, match="0 batch norms can be folded"):
        fold(model, x)


def test_model_in_training_is_refused():
    with pytest.raises(SurgeryError, match="is in training"):
        fold(FOLDED["Conv2d"][0]().train(), X[4])


def test_fused_network_folds(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), norm_of(nn.BatchNorm2d, 4), nn.SiLU()).eval()
    expected = model(X[4])
    folded = pickle.loads(pickle.dumps(fold(fuse(model, X[4]), X[4])))
    assert type(folded[1]) is nn.Identity
    assert torch.allclose(folded(X[4]), expected, atol=1e-5)


def test_frozen_norm_folds():
    model = FOLDED["Conv2d"][0]()
    freeze(model)
    assert foldable(model, X[4]).into == {"1": "0"}


ZOO = {"resnet18": 20, "mobilenet_v3_small": 34}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_torchvision_fold_as_torch_fx_does(name):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model, x = getattr(models, name)(weights=None), sample(4, 3, 64, 64)
    model(x)  # moves the running statistics
    model.eval().requires_grad_(False)
    folded, theirs = fold(model, x), optimization.fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert len(foldable(model, x).into) == ZOO[name]
    expected = model(x)
    for y in (folded(x), theirs(x)):
        assert torch.allclose(y, expected, atol=1e-5 * float(expected.abs().max()))


def test_frozen_batch_norm_of_torchvision_folds():
    misc = pytest.importorskip("torchvision").ops.misc
    model = pair(nn.Conv2d(4, 6, 3), misc.FrozenBatchNorm2d)
    assert torch.allclose(fold(model, X[4])(X[4]), model(X[4]), atol=1e-5)
