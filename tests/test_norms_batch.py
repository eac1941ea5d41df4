"""Norms of the batch: what each promises besides the contract."""

import copy

import pytest
import torch
from oracle import (
    assert_follows_the_definition,
    assert_within,
    definition,
    double,
    make,
    per_channel,
    sample,
)
from torch.nn import functional as F

from normlab import norms, reference
from normlab.functional import PER_CHANNEL

SHAPE = (4, 6, 3, 5)
INSTANCE = "n c ... -> n c"


def states_equal(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


# ghost batch norm


@pytest.mark.parametrize("spec", ["ghost_batch:4", "ghost_batch:16"], ids=["4, 4, 2", "10 of 16"])
@pytest.mark.parametrize("momentum", [0.3, 1.0, None])
def test_ghost_batch_takes_the_rest_for_a_slice_and_counts_samples_equally(spec, momentum):
    x, dy, residual = (sample(10, 6, 5, seed=seed) + seed for seed in range(3))
    layer = make(spec, momentum=momentum, activation="silu")
    twin, found = double(layer), []
    before = copy.deepcopy(twin)
    means, variances = torch.zeros(2, 6, dtype=torch.float64)
    wide = [t.double().requires_grad_() for t in (x, residual)]
    parts = [[t[a : a + layer.norm_batch_size] for t in wide] for a in range(0, 10, 4)]
    parts = [wide] if layer.norm_batch_size == 16 else parts
    for part in parts:
        found.append(reference.normalize(
            part[0], PER_CHANNEL, twin.weight, twin.bias, residual=part[1], activation="silu"
        ))  # fmt: skip
        mean, var = reference.moments(part[0].detach(), PER_CHANNEL)
        count = part[0].numel() // 6
        means += mean * len(part[0]) / 10
        variances += var * count / (count - 1) * len(part[0]) / 10
    expected = torch.cat(found)
    given = [t.detach().requires_grad_() for t in (x, residual)]
    y = layer(*given)
    assert_within(y, expected)
    actual = torch.autograd.grad(y, [*given, *layer.parameters()], dy)
    truth = torch.autograd.grad(expected, [*wide, *twin.parameters()], dy.double())
    for one, other in zip(actual, truth):
        assert_within(one, other)
    new = 1.0 if momentum is None else momentum
    assert_within(layer.running_mean, (1 - new) * before.running_mean + new * means)
    assert_within(layer.running_var, (1 - new) * before.running_var + new * variances)
    assert layer.num_batches_tracked == 1


def test_ghost_batch_refuses_a_rest_of_one_value_and_keeps_its_statistics():
    layer = make("ghost_batch:4")
    before = copy.deepcopy(layer)
    with pytest.raises(ValueError, match=r"one value per channel \(shape 1×6\)"):
        layer(sample(5, 6))
    assert states_equal(layer, before)


def test_ghost_batch_refuses_a_mask_where_there_is_a_rest():
    with pytest.raises(ValueError, match="a mask needs a batch that splits into slices of 4"):
        make("ghost_batch:4")(sample(5, 6, 3), mask=torch.ones(5, 3, dtype=torch.bool))


# batch group norm


def test_batch_group_is_batch_norm_of_channels_laid_end_to_end():
    x, layer = sample(*SHAPE), norms.norm("batch_group:2", 6, momentum=1.0)
    wide = x.double().reshape(4, 2, -1)
    mean, var = torch.zeros(2).double(), torch.ones(2).double()
    expected = F.batch_norm(wide, mean, var, training=True, momentum=1.0)
    assert_within(layer(x), expected.reshape(SHAPE))
    assert_within(layer.running_mean, mean.repeat_interleave(3))
    assert_within(layer.running_var, var.repeat_interleave(3))


# frozen batch norm


@pytest.mark.parametrize("peer", ["torchvision", "timm"])
def test_frozen_batch_is_that_of_other_libraries(peer):
    if peer == "torchvision":
        theirs = pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(6)
    else:
        theirs = pytest.importorskip("timm.layers").FrozenBatchNormAct2d(6, apply_act=False)
    ours, x = make("frozen_batch"), sample(*SHAPE)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    assert_within(ours(x), definition(ours, x))
    assert_within(theirs(x), definition(ours, x))


def test_frozen_batch_takes_a_checkpoint_of_batch_norm_and_moves_nothing():
    trained, layer = make("torch_bn"), norms.norm("frozen_batch", 6).train()
    layer.load_state_dict(trained.state_dict())
    before = copy.deepcopy(layer)
    for twin in (layer, copy.deepcopy(layer).train()):
        assert_within(twin(sample(*SHAPE)), definition(trained.eval(), sample(*SHAPE)))
        assert states_equal(twin, before)
        assert not list(twin.parameters())


def test_frozen_batch_refuses_to_track():
    with pytest.raises(ValueError, match="never moves its statistics"):
        norms.norm("frozen_batch", 6, track_running_stats=True)


# batch renormalization

PAPER = {"r_max": 3.0, "d_max": 5.0, "start": 5000, "r_end": 40000, "d_end": 25000}


@pytest.mark.parametrize(
    ("seen", "r_max", "d_max"),
    [(0, 1, 0), (5000, 1, 0), (15000, 1 + 20 / 35, 2.5), (25000, 1 + 40 / 35, 5), (40000, 3, 5)],
)
def test_limits_grow_as_in_the_paper_and_are_kept_by_a_checkpoint(seen, r_max, d_max):
    layer, loaded = (norms.norm("batch_renorm", 6, **PAPER) for _ in range(2))
    layer.num_batches_tracked.fill_(seen)
    loaded.load_state_dict(layer.state_dict())
    assert [float(limit) for limit in loaded.limits()] == pytest.approx([r_max, d_max])


@pytest.mark.parametrize("ends", [{}, {"start": 1, "r_end": 5, "d_end": 3}, {"start": 2}], ids=str)
def test_batch_renorm_follows_the_definition_while_limits_grow(ends):
    layer = make("batch_renorm", r_max=2.0, d_max=1.0, **ends)
    for seed in range(6):
        x = sample(*SHAPE, seed=seed) * (1 + seed) + seed
        assert_follows_the_definition(layer, x, sample(*SHAPE, seed=9))
    assert layer.num_batches_tracked == 6


def test_batch_renorm_adds_its_own_eps_to_the_variance():
    layer = make("batch_renorm", r_max=2.0, d_max=1.0, eps=0.3)
    assert_follows_the_definition(layer, sample(*SHAPE) * 0.5, sample(*SHAPE, seed=9))


def test_limits_of_batch_renorm_grow_over_whole_batches():
    with pytest.raises(TypeError, match=r"r_end must be a whole number, got 2\.5 \(float\)"):
        norms.norm("batch_renorm", 6, r_end=2.5)


def test_batch_renorm_of_limits_one_and_zero_is_batch_norm():
    x, layer = sample(*SHAPE), make("batch_renorm", r_max=1.0, d_max=0.0)
    batch = norms.norm("batch", 6)
    batch.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), batch(x))
    assert states_equal(layer, batch)


def test_batch_renorm_trains_on_what_it_evaluates_where_nothing_is_clipped():
    layer, x = make("batch_renorm", r_max=50.0, d_max=50.0), sample(*SHAPE)
    evaluated = definition(layer.eval(), x)
    assert_within(layer.train()(x), evaluated)


def test_batch_renorm_compiles_to_one_graph_while_limits_grow():
    torch._dynamo.reset()
    layer = make("batch_renorm", momentum=None, start=1, r_end=3)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(4):
        x = sample(*SHAPE, seed=seed)
        assert_within(compiled(x), twin(x))
    assert states_equal(layer, twin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max must be a number from 1, got 0.5"),
        ({"d_max": float("nan")}, "d_max must be a number from 0, got nan"),
        ({"start": 10, "r_end": 5}, "r_end must be at least 10 batches, got 5"),
        ({"start": -1}, "start must be at least 0 batches, got -1"),
    ],
    ids=str,
)
def test_batch_renorm_refuses_limits_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        norms.norm("batch_renorm", 6, **options)


# extended batch norm


def test_extended_batch_evaluates_by_the_variance_of_all_the_data():
    x = sample(*SHAPE) * 3 + torch.arange(6).reshape(6, 1, 1)
    layer = norms.norm("extended_batch", 6, momentum=1.0)
    layer(x)
    layer.running_var.mul_(1 - 1 / (x.numel() / 6))  # biased, as that of the data
    centred = x.double() - x.double().mean((0, 2, 3), keepdim=True)
    expected = centred / (x.double().var(correction=0) + layer.eps).sqrt()
    assert_within(layer.eval()(x), expected)


# batch-channel norm


def test_estimates_of_batch_channel_follow_train_eval_train():
    layer = make("batch_channel:2", momentum=0.3)
    mean, var = layer.running_mean.double(), layer.running_var.double()
    for step in range(4):
        layer.train(step != 2)
        x = sample(1, 6, 3, 5, seed=step) * (step + 1) + step
        layer(x)
        if layer.training:
            values = x.double().transpose(0, 1).flatten(1)
            away = (values - mean[:, None]).square().mean(1)
            mean, var = 0.7 * mean + 0.3 * values.mean(1), 0.7 * var + 0.3 * away
        assert_within(layer.running_mean, mean)
        assert_within(layer.running_var, var)
    assert layer.num_batches_tracked == 3


def test_variance_of_batch_channel_is_between_samples_too():
    """Where batches are of one sample, batch norm's lacks it: samples are 0 ± 1 at means of ±3."""
    found = {}
    for spec in ("batch", "batch_channel:2"):
        layer = norms.norm(spec, 6, momentum=0.05)
        for step in range(200):
            layer(sample(1, 6, 8, 8, seed=step) + (3 if step % 2 else -3))
        found[spec] = layer.running_var.mean().item()
    assert found["batch"] == pytest.approx(1, abs=0.2)
    assert found["batch_channel:2"] == pytest.approx(10, abs=1)


def test_two_batches_pass_batch_channel_before_either_goes_back():
    layer, (x, other) = make("batch_channel:2"), (sample(*SHAPE, seed=s) for s in range(2))
    twin = copy.deepcopy(layer)
    x.requires_grad_()
    y = layer(x)
    layer(other)
    (actual,) = torch.autograd.grad(y.exp().sum(), x)
    (expected,) = torch.autograd.grad(twin(x).exp().sum(), x)
    assert torch.equal(actual, expected)


# switchable norm


@pytest.mark.parametrize("chosen", ["instance", "layer", "batch"])
def test_switchable_norm_is_each_of_its_parts(chosen):
    x, dy = sample(*SHAPE), sample(*SHAPE, seed=1)
    layer, part = norms.norm("switchable", 6), norms.norm(chosen, 6)
    logits = torch.where(torch.arange(3) == ["instance", "layer", "batch"].index(chosen), 99.0, 0)
    layer.mean_weight.data.copy_(logits)
    layer.var_weight.data.copy_(logits)
    for training in (True, False):
        found = []
        for module in (layer.train(training), part.train(training)):
            given = x.clone().requires_grad_()
            y = module(given)
            found.append([y, *torch.autograd.grad(y, [given, module.weight, module.bias], dy)])
        for actual, expected in zip(*found):
            assert_within(actual, expected)


@pytest.mark.parametrize("spec", ["switchable", "batch_instance"])
def test_norms_with_a_part_of_instance_norm_refuse_one_position(spec):
    layer = make(spec)
    before = copy.deepcopy(layer)
    with pytest.raises(ValueError, match="one value per sample and channel"):
        layer(sample(4, 6))
    assert states_equal(layer, before)


# batch-instance norm


@pytest.mark.parametrize("gate", [-0.5, 0.0, 0.5, 1.0, 1.5])
def test_gate_has_the_gradient_of_the_mixture_at_and_past_both_ends(gate):
    x, dy, layer = sample(*SHAPE), sample(*SHAPE, seed=1), make("batch_instance")
    layer.gate.data.fill_(gate)
    batch, instance = (reference.normalize(x, p) for p in (PER_CHANNEL, INSTANCE))
    expected = ((batch - instance) * dy).sum((0, 2, 3)) * layer.weight.double()
    (actual,) = torch.autograd.grad(layer(x), layer.gate, dy)
    assert_within(actual, expected, size=30 * (batch - instance).abs().max().item())


@pytest.mark.parametrize(("start", "aim"), [(1.0, "instance"), (0.0, "batch"), (1.3, "instance")])
def test_gate_learns_its_way_from_one_end_to_the_other(start, aim):
    x, layer = sample(*SHAPE) + sample(4, 6, 1, 1, seed=1), norms.norm("batch_instance", 6)
    layer.gate.data.fill_(start)
    target = norms.norm(aim, 6)(x).detach()
    optimizer = torch.optim.SGD([layer.gate], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        ((layer(x) - target).square().sum((0, 2, 3)) / target[:, 0].numel()).sum().backward()
        optimizer.step()
    assert_within(layer(x), target, dtype=torch.bfloat16)


@pytest.mark.parametrize("pattern", ["(b=2 n) c ... -> b c", "n (g=3 c) ... -> g"])
def test_running_statistics_average_slices_and_repeat_groups(pattern):
    """What the contract's own expectation rests on."""
    x = sample(*SHAPE)
    mean, _ = reference.moments(x, pattern)
    found = per_channel(mean, pattern, x.shape)
    expected = x.double().mean((0, 2, 3))
    if "g=3" in pattern:
        expected = expected.reshape(3, 2).mean(1).repeat_interleave(2)
    assert_within(found, expected)
