"""There and back again: every bit is restored, and training in between is taken along."""

import copy
import pickle

import pytest
import torch
from oracle import assert_within, sample
from surgery_nets import X, assert_same_state, net, state_of, trained
from torch import nn

from normlab import norms, surgery
from normlab.surgery import SurgeryWarning

KEEPING = ["group", "group:4", "group:size=4", "layer", "instance"]


@pytest.mark.parametrize("through", [[s] for s in KEEPING] + [["group", "layer", "instance"]])
@pytest.mark.parametrize("keep", ["function", "affine"])
def test_round_trip_restores_every_bit(through, keep):
    model = net()
    state, layers, before = state_of(model), [model.bn1, model.blocks[1]], model(X)
    keeps = {"keep": keep} if len(through) == 1 else {}
    for spec in [*through, "batch"]:
        surgery.convert(model, spec, **keeps)
    assert_same_state(model, state)
    for old, new in zip(layers, [model.bn1, model.blocks[1]]):
        assert type(new) is type(old)
        assert (new.eps, new.momentum, new.training) == (old.eps, old.momentum, old.training)
        assert new.weight is old.weight
    assert torch.equal(model(X), before)


def test_round_trip_from_a_strength_restores_every_bit():
    model = net()
    state = state_of(model)
    surgery.convert(model, "group", strength=0.5)
    surgery.convert(model, "layer", strength=1.0)
    surgery.convert(model, "batch")
    assert_same_state(model, state)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy],
    ids=["deepcopy", "pickle", "copy"],
)
def test_copies_of_a_converted_model_can_go_back(copied):
    model = net()
    state = state_of(model)
    other = copied(surgery.convert(model, "group"))
    assert torch.equal(other(X), model(X))
    assert_same_state(surgery.convert(other, "batch"), state)


def test_state_dict_has_the_keys_of_plain_norms():
    model = surgery.convert(net(), "group")
    keys = [k for k in model.state_dict() if k.startswith("bn1")]
    assert keys == ["bn1.weight", "bn1.bias"]
    other = surgery.convert(net(seed=1), "group")
    other.load_state_dict(model.state_dict())


def test_training_in_between_is_taken_back_by_the_inverse():
    """There and back again is the trained group norm, up to rounding."""
    model = surgery.convert(net(), "group")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * sample(*p.shape))
    after = [model.bn1.weight.clone(), model.bn1.bias.clone()]
    statistics = net().bn1.running_var
    surgery.convert(model, "batch")
    assert torch.equal(model.bn1.running_var, statistics)
    surgery.convert(model, "group")
    assert_within(model.bn1.weight, after[0])
    assert_within(model.bn1.bias, after[1])


def test_only_channels_that_were_trained_are_inverted():
    model = surgery.convert(net(), "group")
    with torch.no_grad():
        model.bn1.weight[0] += 1
    surgery.convert(model, "batch")
    now, before = model.bn1.weight, net().bn1.weight
    assert torch.equal(now[1:], before[1:])
    assert now[0] != before[0]


def test_round_trip_of_a_moved_model_follows_it():
    model = net()
    surgery.convert(model, "group").double()
    surgery.convert(model, "batch")
    assert model.bn1.weight.dtype == torch.float64
    assert_within(model.bn1.weight, net().bn1.weight.double())


@pytest.mark.filterwarnings("ignore::normlab.surgery.SurgeryWarning")
def test_group_to_batch_and_back_restores_torchs_group_norm():
    model = nn.Sequential(trained(nn.GroupNorm(4, 8, eps=1e-3)))
    weight = model[0].weight
    surgery.convert(model, "batch")
    assert isinstance(model[0], norms.BatchNorm)
    surgery.convert(model, "group:4")
    assert type(model[0]) is nn.GroupNorm
    assert model[0].weight is weight


def test_batch_norm_that_was_trained_since_is_matched_anew():
    model = nn.Sequential(nn.GroupNorm(4, 8))
    with pytest.warns(SurgeryWarning, match="1 norms now need running statistics and have none"):
        surgery.convert(model, "batch")
    model.train()(3 + sample(64, 8, 4, 4))
    before = model.eval()(3 + X.repeat(1, 3, 1, 1)[:, :8])
    surgery.convert(model, "group:4", strength=1.0)
    assert_within(model(3 + X.repeat(1, 3, 1, 1)[:, :8]), before)


def test_another_class_of_the_same_norm_is_not_taken_for_a_way_back():
    model = net()
    for _ in range(2):
        surgery.convert(model, "batch", where="*")
        assert type(model.bn1) is norms.BatchNorm
    surgery.convert(model, "group")
    surgery.convert(model, "batch")
    assert type(model.bn1) is norms.BatchNorm
