"""Networks of the lab, and swapping their norms."""

import pytest
import torch
from torch import nn

from normlab import norms, surgery
from normlab.lab import models
from normlab.lab.models import ModelError, resnet
from normlab.layer import Norm

X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("layers", [8, 14, 20, 110])
def test_cifar_resnet_has_the_layers_it_is_named_after(layers):
    model = models.build(f"cifar_resnet:{layers}", 10)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == layers
    assert model(X).shape == (2, 10)


@pytest.mark.parametrize("variant", ["9", "2", "0", "-4", "x", ""])
def test_other_numbers_of_layers_are_refused(variant):
    with pytest.raises(LookupError, match=r"the number of layers is 6n\+2: 8, 14, 20"):
        models.build(f"cifar_resnet:{variant}", 10)


@pytest.mark.parametrize("size", [8, 12, 28, 32, 33, 64])
def test_convnet_takes_images_of_any_size(size):
    assert models.build("convnet", 7)(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_convnet_is_the_published_one_at_32_pixels():
    model = models.build("convnet", 10, norm="group:32")
    shapes = [
        tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert shapes == [
        (64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4),
        (512, 2048), (128, 512), (32, 128), (10, 32),
    ]  # fmt: skip


def test_convnet_defect_logits_pass_no_activation():
    assert isinstance(models.build("convnet", 10)[-1], nn.Linear)


@pytest.mark.parametrize("norm", norms.available())
@pytest.mark.parametrize(
    "address", ["cifar_resnet:8", "convnet", "torchvision:resnet18", "torchvision:mobilenet_v2"]
)
def test_every_norm_enters_every_network(address, norm):
    with torch.device("meta"):
        model = models.build(address, 10, norm=norm)
    kinds = {type(m) for m in model.modules()}
    assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    assert any(isinstance(m, norms.parse(norm)[0]) for m in model.modules())


def test_torchvision_network_trains_with_group_norm():
    model = models.build("torchvision:resnet18", 5, norm="group")
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("torchvision:resnt18", "no such classifier; did you mean 'resnet18'"),
        ("torchvison:resnet18", "did you mean torchvision"),
        ("convnet:3", "convnet has no variants; write convnet"),
    ],
)
def test_unknown_network_names_what_there_is(address, message):
    with pytest.raises(LookupError, match=message):
        models.build(address, 10)


def test_all_channels_that_do_not_split_are_listed():
    with pytest.raises(
        ModelError, match=r"norms cannot become 'group:32':\n(.*\n)+.*must be divis"
    ):
        models.build("torchvision:shufflenet_v2_x1_0", 10, norm="group:32")


def test_zero_init_starts_residual_blocks_as_identities():
    model = models.build("cifar_resnet:14", 10, norm="group", zero_init=True)
    zero = [m for m in model.modules() if isinstance(m, Norm) and not m.weight.any()]
    assert len(zero) == 6


@pytest.mark.parametrize("norm", ["none", "none+wn", "none+sws", "batch+wn"])
@pytest.mark.parametrize("address", ["resnet:50:8", "timm:resnet18"])
def test_zero_init_makes_identities_of_blocks_without_norms_too(address, norm):
    model = models.build(address, 10, norm=norm, zero_init=True)
    block = model.get_submodule("layer1.1").eval()
    x = torch.rand(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm", ["none+ws", "none+sn"])
def test_zero_init_of_a_weight_that_is_never_0_is_refused(norm):
    with pytest.raises(ModelError, match=rf"'none\{norm[4:]}' nothing before \S+ can start at 0"):
        models.build("cifar_resnet:8", 10, norm=norm, zero_init=True)


@pytest.mark.parametrize(
    "address",
    [
        "convnet",
        pytest.param("timm:resnetv2_18", id="its last layer before an activation is a convolution"),
    ],
)
def test_zero_init_without_blocks_that_end_in_a_norm_is_refused(address):
    with torch.device("meta"), pytest.raises(ModelError, match="has no residual blocks whose last"):
        models.build(address, 10, zero_init=True)


@pytest.mark.parametrize(
    ("address", "count"),
    [
        ("torchvision:resnet50", 16),
        ("resnet:101:8", 33),
        ("timm:resnet18", 8),
        pytest.param("timm:regnetx_002", 13, id="BatchNormAct2d"),
        pytest.param("timm:skresnet18", 8, id="norms inside other blocks"),
    ],
)
def test_zero_init_reaches_the_blocks_of(address, count):
    def num_zero(zero_init):
        model = models.build(address, 10, norm="group:8", zero_init=zero_init)
        return sum(isinstance(m, Norm) and not m.weight.any() for m in model.modules())

    assert (num_zero(False), num_zero(True)) == (0, count)


@pytest.mark.parametrize(("layers", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_resnet_is_torchvision_s(layers, parameters):
    """Same names, same function; torchvision's documentation has the numbers of parameters."""
    torchvision = pytest.importorskip("torchvision")
    theirs = getattr(torchvision.models, f"resnet{layers}")()
    ours = resnet.build(str(layers), 1000)
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == parameters
    assert torch.equal(ours.eval()(X), theirs.eval()(X))


def test_resnet_starts_as_in_the_group_norm_paper():
    model = models.build("resnet:50:32", 100, norm="group")
    conv = model.layer1[0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)  # He, by outputs
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.fc.bias.any()
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, Norm))


def test_resnet_has_its_stride_in_the_3x3_convolution():
    block = models.build("resnet:50:8", 10).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("size", [32, 33, 64])
def test_resnet_takes_small_images(size):
    with torch.device("meta"):
        model = models.build("resnet:50:8", 7, norm="group:8")
        assert model(torch.empty(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("variant", ["", "20", "50:0", "50:x", "50:8:8", "50:9999"])
def test_other_resnets_are_refused(variant):
    with pytest.raises(LookupError, match="there are resnet:18, resnet:34, resnet:50, resnet:101"):
        models.build(f"resnet:{variant}", 10)


def test_conversion_keeps_weights_modes_and_sharing():
    shared = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
    nn.init.uniform_(shared.weight)
    shared.bias.requires_grad_(False)
    model = nn.Sequential(shared, nn.Conv2d(4, 4, 1), shared).eval()
    old = shared.weight.clone()
    surgery.convert(model, "batch")
    new = model[0]
    assert model[2] is new
    assert (new.eps, new.momentum, new.training) == (1e-3, 0.3, False)
    assert torch.equal(new.weight, old)
    assert not new.bias.requires_grad


def test_subclass_with_a_forward_of_its_own_is_left():
    class Mine(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    model = nn.Sequential(Mine(4), nn.BatchNorm2d(4))
    surgery.convert(model, "group:2")
    assert isinstance(model[0], Mine)


def test_model_is_unchanged_if_a_layer_cannot_be_converted():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(9))
    layers = list(model)
    with pytest.raises(surgery.SurgeryError, match=r"1 of 2 norms cannot become 'group:4'"):
        surgery.convert(model, "group:4")
    assert list(model) == layers


def test_model_that_is_a_norm_is_returned_converted():
    assert isinstance(surgery.convert(nn.BatchNorm2d(8), "layer"), norms.LayerNorm)


def test_norm_is_a_norm_layer_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(norm_layer=norms.norm("group:size=16"))
    assert {m.num_channels // m.num_groups for m in model.modules() if isinstance(m, Norm)} == {16}
