"""What every norm of the catalogue promises, whatever it computes. Ids are those of RELIABILITY."""

import copy
import io
import pickle

import pytest
import torch
from oracle import (
    NEEDS_POSITIONS,
    NO_PARAMETERS,
    NUM_CHANNELS,
    OURS,
    SHAPES,
    SPECS,
    STRIDED,
    TRACKS_ITS_OWN_WAY,
    assert_follows_the_definition,
    assert_within,
    definition,
    double,
    gradients,
    make,
    per_channel,
    sample,
)

from normlab import norms, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
BATCH_NORMS = [s for s in SPECS if norms.parse(s)[0].uses_batch()]


def is_allowed(spec, rank):
    return rank > 2 or spec.split(":")[0] not in NEEDS_POSITIONS


def cases(specs):
    return [(spec, rank) for spec in specs for rank in SHAPES if is_allowed(spec, rank)]


every_norm = pytest.mark.parametrize("spec", SPECS)
our_norms = pytest.mark.parametrize("spec", OURS)
every_rank = pytest.mark.parametrize(("spec", "rank"), cases(SPECS))
our_ranks = pytest.mark.parametrize(("spec", "rank"), cases(OURS))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_rank
def test_output_and_gradients_equal_the_definition(spec, rank, dtype):
    x, dy = sample(*SHAPES[rank], dtype=dtype), sample(*SHAPES[rank], dtype=dtype, seed=1)
    layer = make(spec, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert_follows_the_definition(layer, x, dy)
    assert_follows_the_definition(layer.eval(), x, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@our_norms
def test_narrow_parameters_equal_the_definition(spec, dtype):
    x, dy = sample(*SHAPES[4], dtype=dtype), sample(*SHAPES[4], dtype=dtype, seed=1)
    assert_follows_the_definition(make(spec, dtype=dtype), x, dy)


@every_norm
def test_eps_is_the_one_asked_for(spec):
    """In training and after it: one so large that 1e-5 in its place is seen."""
    layer, (x, dy) = make(spec, eps=0.3), (sample(*SHAPES[4], seed=s) for s in range(2))
    assert_follows_the_definition(layer, x, dy)
    assert_follows_the_definition(layer.eval(), x, dy)


@pytest.mark.parametrize("rank", FORMATS)
@our_norms
def test_memory_format_is_kept_by_output_and_gradient(spec, rank):
    """N14"""
    x = sample(*SHAPES[rank]).to(memory_format=FORMATS[rank]).requires_grad_()
    for dy in (sample(*SHAPES[rank]), sample(*SHAPES[rank]).to(memory_format=FORMATS[rank])):
        y = make(spec)(x)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert y.is_contiguous(memory_format=FORMATS[rank])
        assert dx.is_contiguous(memory_format=FORMATS[rank]) or spec == "none"


@our_ranks
def test_nothing_given_is_modified_or_shared(spec, rank):
    """N15"""
    x, residual = sample(*SHAPES[rank]).requires_grad_(), sample(*SHAPES[rank], seed=2)
    dy = sample(*SHAPES[rank], seed=1)
    given = (x, residual, dy)
    before = [(t.detach().clone(), t._version) for t in given]
    layer = make(spec, activation="silu")
    y = layer(x, residual)
    (dx,) = torch.autograd.grad(y, x, dy)
    for tensor, (value, version) in zip(given, before):
        assert torch.equal(tensor, value)
        assert tensor._version == version
    pointers = {t.untyped_storage().data_ptr() for t in (*given, y, dx)}
    assert len(pointers) == 5


@pytest.mark.parametrize("view", STRIDED)
@our_norms
def test_strided_input_equals_its_contiguous_copy(spec, view):
    """N12"""
    x, layer = STRIDED[view](sample(*SHAPES[4])), make(spec)
    dy = sample(*x.shape, seed=1)
    assert_follows_the_definition(layer, x, dy)
    assert_follows_the_definition(layer, x.contiguous(), STRIDED[view](dy))


@pytest.mark.parametrize("view", STRIDED)
@our_norms
def test_strided_cotangent_equals_its_contiguous_copy(spec, view):
    """N13"""
    x, dy = sample(*SHAPES[4]), STRIDED[view](sample(*SHAPES[4], seed=1))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        assert_follows_the_definition(make(spec), x.to(memory_format=memory_format), dy)


@pytest.mark.parametrize("subset", range(1, 8))
@pytest.mark.parametrize("spec", [s for s in OURS if s not in NO_PARAMETERS])
def test_gradients_reach_exactly_those_who_ask(spec, subset):
    """N16"""
    layer, x = make(spec, momentum=0.0), sample(*SHAPES[3])
    tensors = {"x": x, **dict(layer.named_parameters())}
    asking = {name for i, name in enumerate(tensors) if subset >> min(i, 2) & 1}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in asking)
    layer(x).exp().sum().backward()
    twin, wide = double(layer), x.detach().double().requires_grad_()
    definition(twin, wide).exp().sum().backward()
    truths = {"x": wide, **dict(twin.named_parameters())}
    for name, tensor in tensors.items():
        assert (tensor.grad is not None) == (name in asking)
        if name in asking:
            assert_within(tensor.grad, truths[name].grad)


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}], ids=str)
@every_norm
def test_affine_subsets_equal_the_definition(spec, options):
    """N17"""
    layer = make(spec, **options)
    assert layer.bias is None
    assert (layer.weight is None) == ("affine" in options or spec == "none")
    assert_follows_the_definition(layer, sample(*SHAPES[4]), sample(*SHAPES[4], seed=1))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@every_norm
def test_activation_and_residual_equal_the_definition(spec, activation):
    x, dy, residual = (sample(*SHAPES[4], seed=seed) for seed in range(3))
    assert_follows_the_definition(make(spec, activation=activation), x, dy, residual)


@our_norms
def test_no_samples_give_no_output_and_no_change(spec):
    """N10"""
    layer = make(spec)
    before = copy.deepcopy(layer.state_dict())
    x = torch.empty(0, *SHAPES[4][1:], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert all(not p.grad.any() for p in layer.parameters())
    for key, value in layer.state_dict().items():
        counted = 1 if key == "num_batches_tracked" else 0
        assert torch.equal(value, before[key] + counted)


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in TRACKS_ITS_OWN_WAY])
def test_running_statistics_follow_train_eval_train(spec):
    """N28"""
    layer = make(spec, momentum=0.3)
    expected = {k: v.double() for k, v in layer.state_dict().items() if k.startswith("running")}
    for step in range(4):
        layer.train(step != 2)
        x = sample(*SHAPES[4], seed=step) * (step + 1) + step
        truth = definition(layer, x)
        assert_within(layer(x), truth, dtype=torch.float32)
        if layer.training and expected:
            mean, var = reference.moments(x, layer.pattern)
            count = x.numel() // mean.numel()
            new = {"running_mean": mean, "running_var": var * count / (count - 1)}
            for key, value in new.items():
                value = per_channel(value, layer.pattern, x.shape)
                expected[key] = 0.7 * expected[key] + 0.3 * value
        for key, value in expected.items():
            assert_within(layer.get_buffer(key), value)
    assert getattr(layer, "num_batches_tracked", None) is None or layer.num_batches_tracked == 3


@pytest.mark.parametrize("spec", [s for s in OURS if s in BATCH_NORMS])
def test_momentum_none_averages_the_batches(spec):
    """N28"""
    layer, means = norms.norm(spec, NUM_CHANNELS, momentum=None), []
    for seed in range(3):
        layer(batch := sample(*SHAPES[4], seed=seed) + seed)
        mean, _ = reference.moments(batch, layer.pattern)
        means.append(per_channel(mean, layer.pattern, batch.shape))
    assert_within(layer.running_mean, torch.stack(means).mean(0))


@pytest.mark.parametrize("spec", BATCH_NORMS)
def test_without_running_statistics_evaluation_uses_the_batch(spec):
    layer, x = make(spec, track_running_stats=False).eval(), sample(*SHAPES[4])
    assert_within(layer(x), definition(layer, x))
    assert not list(layer.buffers())


@pytest.mark.parametrize(("spec", "repeats"), [("group:2", 3), ("layer", 6), ("instance", 1)])
def test_running_statistics_of_a_group_are_those_of_its_channels(spec, repeats):
    layer, x = norms.norm(spec, 6, track_running_stats=True, momentum=1), sample(*SHAPES[4])
    assert_within(layer(x), definition(layer, x))
    mean, var = reference.moments(x, layer.pattern)
    count = x.numel() // mean.numel()
    for key, value in (("running_mean", mean), ("running_var", var * count / (count - 1))):
        expected = value.reshape(4, -1).mean(0).repeat_interleave(repeats)
        assert_within(layer.get_buffer(key), expected)
    assert_within(layer.eval()(x), definition(layer, x))


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "none"])
def test_no_grad_gives_the_same_values(spec):
    x, layer = sample(*SHAPES[4]).requires_grad_(), make(spec)
    with torch.no_grad():
        y = copy.deepcopy(layer)(x)
    assert not y.requires_grad
    assert torch.equal(y, layer(x))


@our_norms
def test_autocast_keeps_the_type_of_the_input(spec):
    """N20"""
    layer = make(spec, momentum=0.0)
    for dtype in (torch.float32, torch.bfloat16):
        x = sample(*SHAPES[4], dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == dtype
        assert_within(y, definition(layer, x), dtype=torch.bfloat16)


@our_norms
def test_two_runs_have_the_same_bits(spec):
    """N32"""
    layer, x = make(spec, momentum=0.0), sample(*SHAPES[4]).requires_grad_()
    runs = [list(gradients(layer(x), sample(*SHAPES[4], seed=1), x, layer)) for _ in range(2)]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*runs))


@pytest.mark.parametrize("spec", [s for s in OURS if s not in BATCH_NORMS])
def test_a_sample_does_not_depend_on_the_others(spec):
    """N33"""
    x, layer = sample(*SHAPES[4]), make(spec)
    alone = torch.cat([layer(one) for one in x.split(1)])
    assert torch.equal(layer(x), alone)


@every_norm
def test_copies_behave_as_the_layer(spec):
    """N26"""
    layer, x = make(spec, activation="relu"), sample(*SHAPES[4])
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = norms.norm(spec, NUM_CHANNELS, activation="relu")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    expected = copy.deepcopy(layer).eval()(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(twin.eval()(x), expected)
        assert repr(twin) == repr(layer)
    assert f'{type(layer).__name__}(6, "{layer.pattern}", eps=1e-05' in repr(layer)


@every_norm
def test_layers_can_be_made_without_memory(spec):
    """N26"""
    layer = norms.norm(spec, NUM_CHANNELS, device="meta", dtype=torch.bfloat16)
    y = layer(torch.empty(SHAPES[4], device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype, y.device.type) == (SHAPES[4], torch.bfloat16, "meta")
    with torch.device("meta"):
        assert all(t.is_meta for t in norms.norm(spec, NUM_CHANNELS).state_dict().values())
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    new = norms.norm(spec, NUM_CHANNELS, dtype=torch.bfloat16)
    for key, value in new.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (16, 1), (58, 2), (24, 2), (7, 1)])
def test_default_groups_have_about_sixteen_channels(channels, groups):
    assert norms.norm("group", channels).num_groups == groups
