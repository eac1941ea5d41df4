"""Norms of single samples, pointwise layers and response norms: peers, edges, what they refuse.

That each equals its definition in float64 is asked in test_contract, of all norms.
"""

import pytest
import torch
from oracle import (
    assert_follows_the_definition,
    assert_within,
    definition,
    make,
    sample,
)
from torch import nn

from normlab import norms, reference
from normlab.functional import PER_CHANNEL

COMPOSED = [
    "dyt", "derf", "local_response", "filter_response", "global_response", "evonorm_b0",
    "evonorm_s0:2",
]  # fmt: skip
EPS = {"eps": 1e-5}


def of_timm(name, *arguments, **options):
    layers = pytest.importorskip("timm.layers")
    layer = getattr(layers, name, None) or getattr(layers.grn, name)
    return layer(*arguments, **options)


def of_torchvision(**options):
    return pytest.importorskip("torchvision.models.convnext").LayerNorm2d(6, **options)


class AtTheEnd(nn.Module):
    """A layer that wants channels to be the last axis, given those that have them second."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


# id: our spec and options, the peer, axes after the channels
PEERS = {
    "position: timm LayerNorm2d": ("ln2d", {}, lambda: of_timm("LayerNorm2d", 6, **EPS), [2]),
    "position: torchvision ConvNeXt": ("position", {}, lambda: of_torchvision(**EPS), [2]),
    "position: torch LayerNorm": (
        "pono", {}, lambda: AtTheEnd(nn.LayerNorm(6, **EPS)), [0, 1, 3],
    ),
    "rms: torch RMSNorm": (
        "rms", {"bias": False}, lambda: AtTheEnd(nn.RMSNorm(6, **EPS)), [0, 1, 2, 3],
    ),
    "rms: timm RmsNorm2d": ("rms", {"bias": False}, lambda: of_timm("RmsNorm2d", 6, **EPS), [2]),
    "local_response: torch": ("lrn", {"affine": False}, lambda: nn.LocalResponseNorm(5), [1, 2, 3]),
    "local_response: even window, other powers": (
        "local_response:4", {"affine": False, "alpha": 0.5, "beta": 2.0, "k": 3.0},
        lambda: nn.LocalResponseNorm(4, alpha=0.5, beta=2.0, k=3.0), [2],
    ),
    "local_response: window wider than the channels": (
        "local_response:15", {"affine": False, "alpha": 0.5},
        lambda: nn.LocalResponseNorm(15, alpha=0.5), [2],
    ),
    "filter_response: timm": ("frn", {}, lambda: of_timm("FilterResponseNormTlu2d", 6), [2]),
    "filter_response: timm, no threshold": (
        "frn", {"threshold": False},
        lambda: of_timm("FilterResponseNormTlu2d", 6, apply_act=False), [2],
    ),
    "evonorm_b0: timm": ("evonorm_b0", {}, lambda: of_timm("EvoNorm2dB0", 6, **EPS), [2]),
    "evonorm_s0: timm": ("evonorm_s0:2", {}, lambda: of_timm("EvoNorm2dS0", 6, 2), [2]),
    "global_response: timm": (
        "grn", {}, lambda: of_timm("GlobalResponseNorm", 6, channels_last=False, **EPS), [2],
    ),
    "global_response: timm, channels last": (
        "grn", {}, lambda: AtTheEnd(of_timm("GlobalResponseNorm", 6, **EPS)), [2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", PEERS)
def test_norm_equals_its_peer_and_takes_its_checkpoint(row):
    """In training and then in evaluation, values and gradients within float32 of each other."""
    spec, options, build, ranks = PEERS[row]
    theirs, ours = build(), norms.norm(spec, 6, **options)
    inner = theirs.layer if isinstance(theirs, AtTheEnd) else theirs
    with torch.no_grad():
        for seed, parameter in enumerate(inner.parameters()):
            parameter.copy_(sample(6, seed=seed))
    keys = ours.load_state_dict(inner.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) <= {"running_mean", "num_batches_tracked"}  # timm's B0 has none
    for rank in ranks:
        for step in range(3):
            ours.train(step < 2)
            theirs.train(step < 2)
            x = (sample(4, 6, *range(3, 3 + rank), seed=step) * 2 + step).requires_grad_()
            dy, found = sample(*x.shape, seed=9), []
            for layer in (ours, theirs):
                y = layer(x)
                found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)])
            # each may be off by as much
            for mine, other in zip(*found):
                assert_within(mine, other, ratio=step)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_running_instance_norm_equals_torch(rank, momentum):
    theirs = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1](
        6, affine=True, track_running_stats=True, momentum=momentum
    )
    ours = norms.InstanceNorm(6, track_running_stats=True, momentum=momentum)
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        x = sample(4, 6, *range(3, 3 + rank), seed=step) * (step + 1) + step
        assert_within(ours(x), theirs(x), ratio=step)
    for name in ("running_mean", "running_var"):
        assert_within(ours.get_buffer(name), theirs.get_buffer(name))
    assert_within(ours.eval()(x), theirs.eval()(x), ratio=2)
    one = sample(4, 6, *[1] * rank)
    assert_within(ours(one), theirs(one), ratio=2)


def test_running_instance_norm_without_momentum_averages_all_batches():
    """Where torch's never moves."""
    layer = norms.InstanceNorm(6, track_running_stats=True, momentum=None)
    batches = [sample(4, 6, 5, seed=seed) + seed for seed in range(3)]
    for x in batches:
        layer(x)
    assert_within(layer.running_mean, torch.cat(batches).double().mean((0, 2)))


OVER = ["group:2", "layer", "instance", "batch", "batch:n=2", "gn:size=2"]


@pytest.mark.parametrize("over", OVER)
def test_root_mean_square_of_any_pattern_equals_the_definition(over):
    layer, x, dy = make(f"rms:{over}"), sample(4, 6, 3, 5) + 1, sample(4, 6, 3, 5, seed=1)
    assert layer.pattern == norms.norm(over, 6).pattern
    assert_follows_the_definition(layer, x, dy)
    assert_follows_the_definition(layer.eval(), x, dy)


def test_running_mean_square_is_that_of_the_batch():
    layer, x = norms.norm("rms:batch", 6, momentum=1.0), sample(4, 6, 3, 5) + 2
    y = layer(x)
    assert torch.equal(layer.running_mean, torch.zeros(6))
    assert_within(layer.running_var, x.double().square().mean((0, 2, 3)))
    assert_within(layer.eval()(x), y)  # not quite the same: float32 is what it is kept in
    assert norms.norm("rms", 6).running_var is None


def test_padding_has_no_part_in_a_root_mean_square():
    layer, x, mask = norms.norm("rms:instance", 6), sample(4, 6, 5), torch.arange(5) < 3
    y = layer(x.masked_fill(~mask, torch.nan), mask=mask.expand(4, 5))
    assert_within(y[..., :3], layer(x[..., :3]))
    assert not y[..., 3:].any()


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("rms:grup", LookupError, "'grup': there are batch"),
        ("rms:group:x=2", LookupError, "'group:x=2': cannot read 'x=2'"),
        ("rms:group:4", ValueError, r"num_channels \(6\) must be divisible by num_groups \(4\)"),
        ("rms:batch_instance", ValueError, "'batch_instance' is not; take one such as batch"),
        ("local_response:0", ValueError, "size must be at least 1 channel, got 0"),
        ("evonorm_s0:4", ValueError, r"num_channels \(6\) must be divisible by num_groups \(4\)"),
    ],
)
def test_spec_that_fits_nothing_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        norms.norm(spec, 6)


def test_one_value_per_channel_is_refused_by_b0_in_training():
    layer = norms.norm("evonorm_b0", 6)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(ValueError, match="one value per channel"):
        layer(sample(1, 6))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert layer.eval()(sample(1, 6)).isfinite().all()


@pytest.mark.parametrize("positions", [(), (5,)], ids=["one position", "five"])
@pytest.mark.parametrize("start", [1e-4, -0.3], ids=["as new", "negative"])
def test_learned_eps_equals_the_definition(start, positions):
    layer = norms.FilterResponseNorm(6, learn_eps=True)
    assert layer.learned_eps.item() == pytest.approx(1e-4)
    nn.init.constant_(layer.learned_eps, start)
    x, dy = sample(4, 6, *positions), sample(4, 6, *positions, seed=1)
    assert_follows_the_definition(layer, x, dy)
    layer.reset_parameters()
    assert layer.learned_eps.item() == pytest.approx(1e-4)


def test_dead_channels_have_finite_gradients():
    """A root of nothing has an infinite slope; after a ReLU whole channels are nothing."""
    for spec in ("global_response", "filter_response", "local_response", "rms"):
        layer, x = make(spec), sample(4, 6, 3, 5)
        x[:, 1] = x[0] = 0
        y = layer(x.requires_grad_())
        found = torch.autograd.grad(y, [x, *layer.parameters()], sample(*x.shape, seed=1))
        assert all(t.isfinite().all() for t in found), spec


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(5e3, torch.float16), (1e25, torch.float32), (1e-25, torch.float32), (1e30, torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("spec", COMPOSED)
def test_powers_stay_in_range(spec, size, dtype):
    """N5, N6: squares beyond the range of the input's type, and of float32"""
    layer, x = make(spec), (sample(4, 6, 3, 5).clamp(-3, 3) * size).to(dtype)
    truth = definition(layer, x)
    assert truth.abs().max() < torch.finfo(dtype).max
    assert_within(layer(x), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gate_and_its_slope_are_finite_far_from_0(dtype):
    """In float32, exp(89) is infinite."""
    layer, x = norms.norm("evonorm_s0:2", 6), sample(4, 6, 3, 5, dtype=dtype) * 200
    assert_follows_the_definition(layer, x, sample(*x.shape, dtype=dtype, seed=1))


@pytest.mark.parametrize("spec", COMPOSED)
def test_many_cotangents_at_once_equal_one_by_one(spec):
    layer, dys = make(spec), sample(3, 4, 6, 3, 5)
    x = sample(4, 6, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    (together,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in dys]
    assert_within(together, torch.stack(each))


@pytest.mark.parametrize("spec", [*COMPOSED, "none"])
def test_mask_is_refused_by_what_is_no_pattern(spec):
    with pytest.raises(ValueError, match="takes no mask; norms that are one pattern do"):
        norms.norm(spec, 6)(sample(4, 6, 5), mask=torch.ones(4, 5, dtype=torch.bool))


def test_scalar_parameters_are_read_once_per_layer():
    """alpha and shift are one number, whatever the channels, as in the papers' checkpoints."""
    shapes = {name: tuple(p.shape) for name, p in norms.norm("derf", 6).named_parameters()}
    assert shapes == {"weight": (6,), "bias": (6,), "alpha": (1,), "shift": (1,)}
    assert dict(norms.norm("dyt", 6).named_parameters())["alpha"].tolist() == [0.5]


def test_running_statistics_of_b0_are_batch_norms():
    """So that either can be converted to the other."""
    ours, batch = (norms.norm(spec, 6) for spec in ("evonorm_b0", "batch"))
    for seed in range(3):
        x = sample(4, 6, 3, 5, seed=seed) + seed
        ours(x)
        batch(x)
    for name, value in batch.named_buffers():
        assert_within(ours.get_buffer(name).double(), value, dtype=torch.float32)
    mean, _ = reference.moments(x, PER_CHANNEL)
    assert (ours.running_mean - mean).abs().min() > 0.1  # of all batches, not of the last


def test_local_response_of_one_channel_divides_by_its_own_power():
    layer, x = make("local_response", size=1, alpha=0.5, affine=False), sample(4, 6, 5)
    assert_within(layer(x), x.double() / (1 + 0.5 * x.double().square()) ** 0.75)
