"""Norms of timm, torchvision and the lab, which have rules."""

import warnings

import pytest
import torch
from oracle import assert_within, sample
from surgery_nets import Net, X, assert_same_state, net, state_of, trained
from torch import nn
from torch.nn.utils import parametrize

import normlab.nn
from normlab import norms, surgery
from normlab.layer import Norm


def test_21_activation_of_timms_batch_norm_is_kept():
    timm = pytest.importorskip("timm.layers")
    model = nn.Sequential(trained(timm.BatchNormAct2d(8, act_layer=nn.SiLU))).eval()
    x = sample(2, 8, 4, 4)
    before = model(x)
    surgery.convert(model, "group:2", strength=1.0)
    assert model[0].activation == "silu"
    assert_within(model(x), before)
    surgery.convert(model, "batch")
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("act", [nn.ReLU6, nn.PReLU, nn.Mish])
def test_21_activation_without_a_name_follows_the_norm(act):
    timm = pytest.importorskip("timm.layers")
    old = trained(timm.BatchNormAct2d(8, act_layer=act, inplace=False)).eval()
    model, x = nn.Sequential(old), sample(2, 8, 4, 4)
    before, state = model(x), state_of(model)
    surgery.convert(model, "group:2", strength=1.0)
    assert_within(model(x), before)
    surgery.convert(model, "layer")
    assert type(model[0][1]) is act
    surgery.convert(model, "batch")
    assert torch.equal(model(x), before)
    assert_same_state(model, state)


@pytest.mark.parametrize("name", ["GroupNormAct", "GroupNorm1Act", "LayerNormAct2d"])
def test_21_norms_of_timm_keep_weight_bias_and_activation(name):
    timm = pytest.importorskip("timm.layers.norm_act")
    old = trained(getattr(timm, name)(64))
    new = surgery.convert(old, "instance")
    assert new.weight is old.weight
    assert (new.eps, new.activation) == (old.eps, "relu")


@pytest.mark.parametrize("name", ["GroupNorm", "GroupNorm1", "LayerNorm2d", "LayerNorm2dFp32"])
def test_21_patterns_of_timms_norms_are_theirs(name):
    timm = pytest.importorskip("timm.layers.norm")
    old, x = trained(getattr(timm, name)(32)), sample(2, 32, 3, 3)
    pattern = surgery.rules.read(old).pattern
    y = normlab.functional.normalize(x, pattern, old.weight, old.bias, eps=old.eps)
    assert_within(old(x), y, size=4.0)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torchvision.ops", "FrozenBatchNorm2d"),
        ("timm.layers.norm_act", "FrozenBatchNormAct2d"),
    ],
)
def test_21_frozen_batch_norms_keep_their_function_and_stay_frozen(module, name):
    old = trained(getattr(pytest.importorskip(module), name)(8)).eval()
    model, x = nn.Sequential(old), sample(2, 8, 4, 4)
    state, before = state_of(model), model(x)
    surgery.convert(model, "group:2", strength=1.0)
    assert_within(model(x), before)
    assert not any(p.requires_grad for p in model.parameters())
    surgery.convert(model, "batch")
    assert type(model[0]) is type(old)
    assert_same_state(model, state)


def test_statistics_frozen_by_normlab_come_back_frozen():
    from normlab.surgery.freeze import freeze, is_frozen

    model = net()
    freeze(model, "stats")
    before = model(X)
    surgery.convert(model, "group")
    surgery.convert(model, "batch")
    assert is_frozen(model.bn1)
    assert torch.equal(model.train()(X), before)


def test_networks_of_the_lab_are_those_before_conversion_kept_functions():
    """Batch norms of a new network become norms with the same new parameters, in their order."""
    from normlab.lab import models

    torch.manual_seed(0)
    plain = models.build("cifar_resnet:8", 10, norm="batch")
    torch.manual_seed(0)
    grouped = models.build("cifar_resnet:8", 10, norm="group", zero_init=False)
    for p, q in zip(plain.parameters(), grouped.parameters()):
        assert torch.equal(p, q)
    mixed = models.build("cifar_resnet:8", 10, norm="batch_instance")
    layer = next(m for m in mixed.modules() if isinstance(m, norms.BatchInstanceNorm))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "gate"]
    assert {type(m) for m in grouped.modules() if isinstance(m, Norm)} == {norms.GroupNorm}


def test_convert_is_quiet_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.convert(net(), "group", sample_input=X)
        surgery.convert(Net(), "group")


def test_parametrized_neighbours_do_not_matter():
    model = net()
    parametrize.register_parametrization(model.conv1, "weight", nn.Identity())
    surgery.convert(model, "group")
    assert isinstance(model.bn1, norms.GroupNorm)
