"""What a conversion keeps of a model. Numbers are RELIABILITY's."""

import copy
import functools

import pytest
import torch
from oracle import assert_within, sample
from surgery_nets import C, X, assert_same_state, net, state_of, trained
from torch import nn

import normlab.nn
from normlab import norms, surgery
from normlab.surgery import SurgeryWarning


def test_19_shared_norm_stays_one_layer():
    shared = trained(nn.BatchNorm2d(8))
    model = nn.Sequential(shared, nn.Conv2d(8, 8, 1), shared)
    planned = surgery.plan(model, "group")
    planned.commit()
    assert model[0] is model[2]
    assert isinstance(model[0], norms.GroupNorm)
    assert "shared: 2 names" in str(planned)


def test_20_tied_weights_stay_tied_and_it_is_said():
    model = nn.Sequential(trained(nn.BatchNorm2d(8)), trained(nn.BatchNorm2d(8), 1))
    model[1].weight = model[0].weight
    weight = model[0].weight
    with pytest.warns(SurgeryWarning, match=r"2 norms share weight or bias with other layers \(0"):
        surgery.convert(model, "group")
    assert model[0].weight is model[1].weight is weight


def test_38_parameter_in_a_list_besides_stays_in_both():
    model = nn.ModuleDict({"a b": trained(nn.BatchNorm2d(8)), "0": trained(nn.BatchNorm2d(8))})
    model.also = nn.ParameterList([model["0"].bias])
    with pytest.warns(SurgeryWarning, match="1 norms share weight or bias with other layers"):
        surgery.convert(model, "group")
    assert model["0"].bias is model.also[0]
    assert list(model) == ["a b", "0", "also"]
    assert isinstance(model["a b"], norms.GroupNorm)


def test_22_hooks_move_and_their_handles_remove_them():
    model, seen = nn.Sequential(trained(nn.BatchNorm2d(8))), []
    handles = [
        model[0].register_forward_hook(lambda *_: seen.append("forward")),
        model[0].register_forward_pre_hook(lambda *_, **__: seen.append("pre"), with_kwargs=True),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
        model[0].register_full_backward_pre_hook(lambda *_: seen.append("pre backward")),
    ]
    surgery.convert(model, "group")
    x = sample(2, 8, 4, 4).requires_grad_()
    model(x).sum().backward()
    assert seen == ["pre", "forward", "pre backward", "backward"]
    for handle in handles:
        handle.remove()
    model(x)
    assert len(seen) == 4


def test_29_graph_module_is_converted_under_its_names():
    model = net()
    traced = torch.fx.symbolic_trace(model)
    expected = surgery.convert(model, "group")(X)
    surgery.convert(traced, "group")
    assert isinstance(traced.bn1, norms.GroupNorm)
    assert "self.bn1" in traced.code
    assert torch.equal(traced(X), expected)


def test_30_compiled_model_is_unwrapped_and_it_is_said():
    model = net()
    expected = surgery.convert(net(), "group")(X)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with pytest.warns(SurgeryWarning, match="the one returned is not: call torch.compile again"):
        result = surgery.convert(compiled, "group")
    assert result is model
    assert torch.equal(result(X), expected)
    assert_within(compiled(X), expected)


@pytest.mark.parametrize(
    "kind",
    [functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW],
    ids=["SGD", "AdamW"],
)
def test_32_optimizer_trains_the_new_parameters_with_its_state(kind):
    model = net().train()
    optimizer = kind(model.parameters(), lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    old = model.bn1.weight
    before = copy.copy(optimizer.state[old])
    surgery.convert(model, "group", optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert old not in optimizer.state
    after = optimizer.state[model.bn1.weight]
    assert all(after[key] is value for key, value in before.items())
    value = model.bn1.weight.clone()
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.bn1.weight, value)


def test_32_optimizer_of_another_model_is_said_to_train_in_vain():
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.warns(SurgeryWarning, match="holds 10 parameters that are not in the model"):
        surgery.convert(net(), "group", optimizer=optimizer)


def test_32_parameters_that_go_or_come_are_dropped_or_added():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surgery.convert(model, "batch_instance", optimizer=optimizer)
    assert sum(p is model.bn1.gate for p in optimizer.param_groups[0]["params"]) == 1
    report = surgery.plan(model, "none").commit(optimizer=optimizer)
    assert "6 dropped" in str(report)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_33_model_that_is_a_norm_is_returned_and_stays():
    bn = trained(nn.BatchNorm2d(8))
    state = state_of(bn)
    assert isinstance(surgery.convert(bn, "group"), norms.GroupNorm)
    assert_same_state(bn, state)


@pytest.mark.parametrize("keep", ["function", "affine", "fresh"])
def test_34_parameters_that_are_not_trained_stay_so(keep):
    model = net()
    model.bn1.weight.requires_grad_(False)
    model.blocks[1].bias.requires_grad_(False)
    surgery.convert(model, "group", keep=keep)
    flags = [p.requires_grad for m in (model.bn1, model.blocks[1]) for p in m.parameters()]
    assert flags == [False, True, True, False]


def test_35_modes_of_layers_stay():
    model = net().train()
    model.bn1.eval()
    surgery.convert(model, "group")
    assert (model.bn1.training, model.blocks[1].training) == (False, True)


def test_36_types_and_devices_of_layers_stay():
    model = nn.Sequential(
        trained(nn.BatchNorm2d(8)).half(),
        trained(nn.BatchNorm2d(8)).double(),
        nn.BatchNorm2d(8, device="meta"),
        trained(nn.BatchNorm2d(8)).bfloat16(),
    )
    surgery.convert(model, "group")
    assert [m.weight.dtype for m in model] == [
        torch.float16, torch.float64, torch.float32, torch.bfloat16,
    ]  # fmt: skip
    assert [m.weight.device.type for m in model] == ["cpu", "cpu", "meta", "cpu"]


def test_parameters_that_need_no_change_stay_themselves():
    """Instance norm has the channels' own moments, so that an optimizer stays valid."""
    model = net()
    before = list(model.parameters())
    surgery.convert(model, "instance")
    assert all(a is b for a, b in zip(before, model.parameters()))


def test_norm_without_parameters_gets_fixed_ones_where_the_function_needs_them():
    model = nn.Sequential(trained(nn.BatchNorm2d(8, affine=False))).eval()
    x = sample(2, 8, 4, 4)
    before = model(x)
    surgery.convert(model, "group:2", strength=1.0)
    assert_within(model(x), before)
    assert not any(p.requires_grad for p in model.parameters())
    surgery.convert(model, "batch")
    assert model[0].weight is None


@pytest.mark.parametrize("old", ["batch", "group:4", "layer", "instance", "batch_instance", "none"])
@pytest.mark.parametrize("new", norms.available())
@pytest.mark.filterwarnings("ignore::normlab.surgery.SurgeryWarning")
def test_any_norm_of_the_catalogue_becomes_any_other(old, new):
    model = nn.Sequential(trained(norms.norm(old, 8)))
    surgery.convert(model, new, where="*")
    assert type(model[0]) is norms.parse(new)[0] or old.partition(":")[0] == new.partition(":")[0]
    assert model(sample(4, 8, 3, 3)).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(8),
        lambda: nn.BatchNorm3d(8),
        lambda: nn.SyncBatchNorm(8),
        lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        lambda: normlab.nn.BatchNorm2d(8, activation="relu"),
        lambda: norms.BatchNorm(8, activation="silu"),
        lambda: norms.BatchNorm(8, norm_batch_size=2),
    ],
    ids=["1d", "3d", "sync", "instance in evaluation", "normlab.nn", "normlab", "ghost"],
)
def test_norms_with_running_statistics_keep_their_function(make):
    old = trained(make()).eval()
    rank = {nn.BatchNorm1d: 3, nn.BatchNorm3d: 5}.get(type(old), 4)
    x = sample(4, *(8, 4, 3, 2)[: rank - 1])
    before = old(x)
    new = surgery.convert(old, "layer", strength=1.0)
    assert_within(new(x), before)


@pytest.mark.parametrize("spec", ["layer", "group:1"])
def test_other_norms_keep_weight_and_bias_or_are_the_same(spec):
    old = trained(nn.GroupNorm(1 if spec == "layer" else 4, 8))
    new = surgery.convert(old, spec, where="*")
    assert new.weight is old.weight
    keeps = surgery.plan(old, spec, where="*").changes[0].keeps
    assert keeps == ("function" if spec == "layer" else "weight, bias")


def test_half_trained_network_is_noticed():
    model = nn.Sequential(trained(nn.BatchNorm2d(8)), nn.BatchNorm2d(8))
    with pytest.warns(SurgeryWarning, match=r"1 of 2 norms have running statistics of no data \(1"):
        surgery.convert(model, "group")


def test_batch_to_batch_in_slices_keeps_running_statistics():
    model = net()
    before = model(X)
    surgery.convert(model, "batch:n=2")
    assert_within(model(X), before)
    assert int(model.bn1.num_batches_tracked) == 7


def test_strength_of_copied_weights_has_the_moments_all_the_same():
    matched = surgery.convert(net(), "group", strength=0.5)
    copied = surgery.convert(net(), "group", strength=0.5, keep="affine")
    assert torch.equal(matched.bn1.population_var, copied.bn1.population_var)
    assert torch.equal(copied.bn1.weight, net().bn1.weight)


@pytest.mark.parametrize(
    ("options", "names"),
    [({"affine": False}, []), ({"bias": False}, ["weight"]), ({}, ["weight", "bias"])],
)
def test_parameters_that_are_not_wanted_are_not_made(options, names):
    model = surgery.convert(net(), "group", **options)
    assert [name for name, _ in model.bn1.named_parameters()] == names
    assert surgery.plan(net(), "group", **options).changes[0].keeps == (
        "moments" if len(names) == 2 else "nothing"
    )


def test_fresh_layers_remember_nothing():
    model = surgery.convert(net(), "group", keep="fresh", eps=1e-2)
    assert torch.equal(model.bn1.weight, torch.ones(C))
    assert model.bn1.eps == 1e-2
    with pytest.warns(SurgeryWarning, match="2 norms now need running statistics and have none"):
        surgery.convert(model, "batch")


def test_another_eps_is_made_up_for():
    model = net()
    before = model(X)
    surgery.convert(model, "group", strength=1.0, eps=0.1)
    assert_within(model(X), before)
