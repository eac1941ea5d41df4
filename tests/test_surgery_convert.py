"""Converting norms: the closed form, which norms are meant, plans, samples and reports."""

import copy
import re

import pytest
import torch
from oracle import assert_within, sample
from surgery_nets import C, X, assert_refused, assert_same_state, net, state_of, trained
from torch import nn

from normlab import surgery
from normlab.surgery import Shrunk, SurgeryError, SurgeryWarning

KEEPING = ["group", "group:4", "group:size=4", "layer", "instance"]


def test_weight_and_bias_are_those_of_the_closed_form():
    bn = trained(nn.BatchNorm2d(6))
    new = surgery.convert(bn, "group:2")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    weight, bias = bn.weight.double(), bn.bias.double()
    for group in (slice(0, 3), slice(3, 6)):
        m = mean[group].mean()
        s2 = (var[group] + mean[group] ** 2).mean() - m**2
        std = (var[group] + bn.eps) ** 0.5
        assert_within(new.weight[group], weight[group] * (s2 + bn.eps) ** 0.5 / std)
        assert_within(new.bias[group], bias[group] + weight[group] * (m - mean[group]) / std)


def test_large_means_do_not_cancel():
    """E[x²] − E[x]² in float32 would lose the variance altogether."""
    bn = nn.BatchNorm2d(2)
    bn.running_mean.copy_(torch.tensor([1e6, 1e6]))
    bn.running_var.fill_(1e-4)
    new = surgery.convert(bn, "layer")
    assert_within(new.weight, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("spec", [*KEEPING, "batch:n=2"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_strength_1_is_the_frozen_batch_norm_network(spec, dtype, bound):
    model, x = net().to(dtype), X.to(dtype)
    before = model(x)
    shrunk = surgery.convert(copy.deepcopy(model), spec, strength=1.0)
    assert {type(shrunk.bn1), type(shrunk.blocks[1])} == {Shrunk}
    for mode in (shrunk.eval(), shrunk.train()) if "batch" not in spec else (shrunk.eval(),):
        assert (mode(x) - before).norm() <= bound * before.norm()


def test_strength_0_is_the_plain_conversion():
    plain = surgery.convert(net(), "group")
    shrunk = surgery.convert(net(), "group", strength=0.0)
    assert torch.equal(plain(X), shrunk(X))


def test_strength_without_population_statistics_is_refused():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4))
    with pytest.raises(SurgeryError, match="2 of 2.*\n.*0: strength needs trained population"):
        surgery.convert(model, "layer", strength=0.5)


@pytest.mark.parametrize("spec", ["none", "batch_instance"])
def test_strength_of_norms_that_are_not_one_pattern_is_refused(spec):
    model = nn.Sequential(trained(nn.BatchNorm2d(4)))
    with pytest.raises(SurgeryError, match=f"{spec} norm is not one pattern, so it has no"):
        surgery.convert(model, spec, strength=0.5, where="*")


def test_what_is_kept_is_nearer_than_what_is_copied():
    model, x = net(), 1 + sample(64, 3, 8, 8)
    model.bn1.momentum = model.blocks[1].momentum = 1.0  # statistics are those of x
    model.train()(x)
    before = model.eval()(x)
    distances = {
        keep: (surgery.convert(copy.deepcopy(model), "group", keep=keep)(x) - before).norm()
        for keep in ("function", "affine", "fresh")
    }
    assert distances["function"] < 0.5 * min(distances["affine"], distances["fresh"])


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("bn*", ["bn1"]),
        ("blocks.*", ["blocks.1"]),
        (["bn1", "blocks.*"], ["bn1", "blocks.1"]),
        (re.compile(r"\.1$"), ["blocks.1"]),
        (lambda name, layer: layer.num_features == 24, ["blocks.1"]),
        (None, ["bn1", "blocks.1"]),
    ],
    ids=["glob", "glob with dot", "list", "regular expression", "function", "None"],
)
def test_where_chooses(where, names):
    planned = surgery.plan(net(), "group", where=where)
    assert [change.names[0] for change in planned.changes] == names


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (17, 1), (24, 2), (58, 2), (116, 29),
                                                  (144, 9), (64, 4)])  # fmt: skip
def test_17_default_groups_fit_every_width(channels, groups):
    assert surgery.convert(nn.BatchNorm2d(channels), "group").num_groups == groups


def test_converting_twice_changes_nothing_more():
    model = surgery.convert(net(), "group")
    layer, planned = model.bn1, surgery.plan(model, "group")
    planned.commit()
    assert model.bn1 is layer
    assert "has these statistics already" in str(planned)


def test_other_number_of_groups_is_matched_from_the_first_norm():
    direct = surgery.convert(net(), "group:2")
    twice = surgery.convert(surgery.convert(net(), "group:8"), "group:2")
    assert torch.equal(direct.bn1.weight, twice.bn1.weight)


def test_plan_changes_nothing():
    model = net().train()
    state, layers, generator = state_of(model), list(model.modules()), torch.get_rng_state()
    surgery.plan(model, "group", sample_input=X)
    assert_same_state(model, state)
    assert list(model.modules()) == layers
    assert all(m.training for m in layers)
    assert not any(m._forward_pre_hooks for m in layers)
    assert torch.equal(torch.get_rng_state(), generator)


def test_plan_is_a_table():
    text = str(surgery.plan(net(), "group:4", sample_input=X))
    assert re.search(r"bn1 +BatchNorm2d\(32\) +group +4×8 +512 +moments", text)
    assert re.search(r"blocks.1 +BatchNorm2d\(24\) +group +4×6 +216 +moments", text)
    assert "own statistics differ from these cannot be known" in text.replace("sample's ", "")


def test_40_report_keeps_the_running_statistics():
    model = net()
    running = model.bn1.running_mean.clone()
    report = surgery.plan(model, "group").commit()
    assert torch.equal(report.plan.changes[0].old.running_mean, running)


@pytest.mark.parametrize("change", ["trained", "replaced"])
def test_plan_of_a_model_that_was_changed_since_is_refused(change):
    model = net()
    planned = surgery.plan(model, "group")
    if change == "trained":
        model.train()(X)
    else:
        model.bn1 = nn.BatchNorm2d(C)
    with pytest.raises(SurgeryError, match="make a new plan"):
        planned.commit()
    assert isinstance(model.blocks[1], nn.BatchNorm2d)


def test_report_compares_outputs():
    model = net()
    before = model(X)
    report = surgery.plan(model, "group", strength=1.0).commit(X)
    assert report.agreement.relative < 1e-5
    assert report.agreement.top1 == 1.0
    assert "same top-1 for 100.0 %" in str(report)
    report = surgery.plan(model, "group").commit(X)
    moved = (model(X) - before).norm() / before.norm()
    assert report.agreement.relative == pytest.approx(moved.item(), rel=1e-4)


def test_outputs_that_have_nothing_to_do_with_those_before_are_noticed():
    model = nn.Sequential(nn.BatchNorm2d(4)).eval()
    model[0].running_mean.copy_(torch.tensor([0.0, 50.0, 0.0, 50.0]))
    with pytest.warns(SurgeryWarning, match="outputs differ by .* of their norm"):
        surgery.convert(model, "group:2", sample_input=0.01 * sample(2, 4, 3, 3), keep="affine")


@pytest.mark.parametrize(
    ("given", "forward"),
    [
        ((X, 2.0), lambda self, x, scale: scale * self.bn(x)),
        ({"x": X, "scale": 2.0}, lambda self, x, scale: {"y": scale * self.bn(x)}),
        ([X, X], lambda self, xs: [self.bn(x) for x in xs]),
    ],
    ids=["tuple: arguments", "dict: named arguments", "list: the only argument"],
)
def test_sample_input_of_any_kind(given, forward):
    model = type("Model", (nn.Module,), {"forward": forward})()
    model.bn = trained(nn.BatchNorm2d(3)).eval()
    report = surgery.plan(model, "layer", strength=1.0, sample_input=given).commit(given)
    assert report.plan.changes[0].values == 3 * 64
    assert report.agreement.relative < 1e-5


def test_one_value_per_statistic_is_named_and_can_be_left():
    model = nn.Sequential(trained(nn.BatchNorm2d(3)), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(
        SurgeryError, match="1 of 2.*\n  2: one value per statistic at shape 4×3×1×1"
    ):
        surgery.convert(model, "instance", sample_input=X)
    assert type(model[0]) is nn.BatchNorm2d
    surgery.convert(model, "instance", where="0", sample_input=X)
    assert type(model[2]) is nn.BatchNorm2d


def test_few_values_per_statistic_and_unused_layers_are_noted():
    model = nn.Sequential(trained(nn.BatchNorm2d(4)))
    model.forward_unused = None
    planned = surgery.plan(model, "group:2", sample_input=sample(2, 4, 1, 2))
    assert planned.changes[0].notes == ("4 values per statistic are few",)


def test_conversion_of_resnet50_takes_under_a_second():
    import time

    torchvision = pytest.importorskip("torchvision")
    model = trained(torchvision.models.resnet50())
    times = []
    for spec in ("group", "batch", "group"):
        start = time.perf_counter()
        surgery.convert(model, spec)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "weights"}, "keep is one of 'function', 'affine', 'fresh', got 'weights'"),
        ({"keep": "fresh", "strength": 0.5}, "strength needs what keep='fresh' throws away"),
        ({"where": 3}, "where is a glob over names, .*; got a int"),
        ({"optimizer": "sgd"}, "optimizer is a torch.optim.Optimizer, got a str"),
        ({"sample_input": torch.randn(2, 5)}, "sample_input does not pass through the model"),
    ],
    ids=["keep", "strength", "where", "optimizer", "sample"],
)
def test_arguments_are_checked(options, message):
    assert_refused(nn.Sequential(nn.BatchNorm2d(4)), message, **options)


def test_unknown_norms_and_models_are_refused():
    with pytest.raises(LookupError, match="norm 'grop': there are batch"):
        surgery.convert(nn.Sequential(nn.BatchNorm2d(4)), "grop")
    with pytest.raises(SurgeryError, match="expected a torch.nn.Module, got a dict"):
        surgery.convert({}, "group")


def test_eps_of_zero_is_listed_not_changed():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=0.0))
    assert_refused(model, "1 of 2 norms cannot.*\n  1: eps must be a positive number")
