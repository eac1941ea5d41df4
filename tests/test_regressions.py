"""Bugs others had: each named after the report, kept from happening here.

`test_issue_…` and `test_pull_…` are PyTorch's; ids B… and P… are those of RELIABILITY. What other
tests check for every norm is not repeated: here is the case of the report itself.
"""

import pytest
import torch
from oracle import assert_all_within, assert_within, definition, double, make, sample

import normlab.nn
from normlab import functional, norms, reference
from normlab.functional import batch_norm, group_norm, instance_norm, layer_norm

BATCH, LAYER, INSTANCE = "n c ... -> c", "n c ... -> n", "n c ... -> n c"
last = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_issue_5410_constant_input_gives_the_bias(dtype):
    """B01: 105 instead of 0"""
    x, bias = torch.full((8, 3, 9, 9), 1e7, dtype=dtype), torch.arange(3.0).to(dtype)
    for y in (batch_norm(x, None, None, None, bias, True), instance_norm(x, bias=bias)):
        assert torch.equal(y, bias.reshape(-1, 1, 1).expand_as(y))


@pytest.mark.parametrize("ratio", [300, 1000])
def test_issue_40302_variance_takes_two_passes_in_channels_last(ratio):
    """B02, and B04 (pull 61521) in the gradient"""
    x = sample(2, 8, 16, 16) + ratio
    assert_all_within(x, "n (g=2 c) ... -> n g", ratio=ratio, memory_format=last)


def test_issue_54293_large_groups_lose_no_digits():
    """B03: 3.8e7 values there"""
    assert_all_within(sample(1, 2, 600, 500) + 10, LAYER, ratio=10)


def test_issue_162489_huge_values_are_normalized():
    """B05"""
    assert_all_within(sample(2, 4, 8, 8) * 1e30, "n (g=2 c) ... -> n g")


def test_issue_94288_one_value_per_group_is_zero():
    """B06"""
    assert not group_norm(sample(4, 6, 1, 1) * 1e3, 6).any()


def test_issue_188375_layer_norm_of_one_value_has_no_gradient():
    """B07: 7.2 instead of 0"""
    weight = torch.ones(1, requires_grad=True)
    layer_norm(sample(5, 1) * 1e6, (1,), weight).sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_issue_45687_instance_norm_of_one_position_is_refused_for_any_batch(samples):
    """B08"""
    with pytest.raises(ValueError, match="one value per sample and channel"):
        instance_norm(sample(samples, 3, 1, 1))


def test_issue_19250_one_value_per_group_in_all_is_refused():
    """B09"""
    with pytest.raises(ValueError, match="one value per group"):
        group_norm(sample(1, 6, 1), 6)


@pytest.mark.parametrize("spec", ["instance", "batch"])
def test_issue_39049_no_samples_change_nothing(spec):
    """B10, B11 (issue 12013), B13 (issue 189831)"""
    layer = norms.norm(spec, 3)
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(b.isfinite().all() for b in layer.buffers())


def test_issue_73188_no_groups_are_refused():
    """B14"""
    with pytest.raises(ValueError, match="num_groups must be ≥ 1, got 0"):
        group_norm(sample(2, 6, 3), 0)


def test_pull_186414_operator_takes_any_strides():
    """B15: the operator itself, without the checks of the layers"""
    x = sample(4, 6, 5, 3)
    for view in (x.transpose(2, 3), x[:, ::2].expand(4, 3, 5, 3), x[..., 1:]):
        pattern = f"n (g={view.shape[1] // 3} c) ... -> n g"
        y = torch.ops.normlab.normalize(view, None, None, None, pattern, 1e-5, True, "none")[0]
        assert_within(y, reference.normalize(view, pattern))


def test_issue_194806_one_axis_is_refused():
    """B16: a write past the end"""
    for call in (lambda x: group_norm(x, 2), instance_norm, lambda x: batch_norm(x, None, None)):
        with pytest.raises(ValueError, match="at least 2 axes"):
            call(sample(6))


@pytest.mark.parametrize("spec", ["group", "instance", "batch"])
@pytest.mark.parametrize(("shape", "kind"), [((2, 4, 3, 5), last), ((2, 4, 1, 3, 5), None)])
def test_issue_111824_channels_last_stays(spec, shape, kind):
    """B17, B19 (issue 107199), B24 (pull 194616: depth 1)"""
    kind = kind or torch.channels_last_3d
    x = sample(*shape).contiguous(memory_format=kind).requires_grad_()
    y = norms.norm(spec, 4)(x)
    (dx,) = torch.autograd.grad(y, x, sample(*shape))
    assert y.is_contiguous(memory_format=kind)
    assert dx.is_contiguous(memory_format=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("x_last", "dy_last"), [(True, False), (False, True), (True, True)])
def test_issue_115940_mixed_formats_have_one_gradient(dtype, training, x_last, dy_last):
    """B18, B20 (62594), B21 (147303), B22 (pull 64100), B23 (pull 181411), B25 (156513)"""
    x, dy = (sample(4, 6, 3, 5, dtype=dtype, seed=seed) for seed in range(2))
    x = x.contiguous(memory_format=last) if x_last else x
    dy = dy.contiguous(memory_format=last) if dy_last else dy
    for spec in ("batch", "group:2"):
        layer = make(spec).train(training)
        twin, wide = double(layer), x.double().requires_grad_()
        y, truth = layer(x.requires_grad_()), definition(twin, wide)
        (actual,) = torch.autograd.grad(y, x, dy)
        (expected,) = torch.autograd.grad(truth, wide, dy.double())
        assert_within(actual, expected)


def test_issue_140913_weight_gradient_of_compiled_channels_last_is_right():
    """B26 and B28 (issue 141541), in the graph torch.compile makes"""
    torch._dynamo.reset()
    layer = make("group:2")
    twin = double(layer)
    x = sample(2, 6, 8, 8).contiguous(memory_format=last)
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).exp().sum().backward()
    definition(twin, x).exp().sum().backward()
    assert_within(layer.weight.grad, twin.weight.grad)


def test_issue_181696_norms_of_nearly_constant_groups_in_a_row_agree():
    """B27, issue 183120: batch norm, ELU, group norm"""
    x = torch.full((4, 6, 8, 8), 3.3)
    for given in (x, x.contiguous(memory_format=last)):
        y = functional.batch_norm(given, None, None, training=True)
        assert not group_norm(torch.nn.functional.elu(y), 2).any()


def test_issue_178096_dynamic_shapes_follow_eager_mode():
    """B29: convolution and batch norm; B31 (issue 147287): without statistics"""
    torch._dynamo.reset()
    for options in ({}, {"track_running_stats": False}):
        model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 1), norms.norm("batch", 3, **options))
        compiled = torch.compile(model, backend="aot_eager", dynamic=True)
        for length in (4, 7):
            x = sample(2, 2, length)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_issue_196699_second_and_third_jvp_are_right():
    """B32 (also issue 196700), B33 (issue 186256, pull 176234)"""
    x, v = (sample(3, 4, dtype=torch.float64, seed=seed) for seed in range(2))

    def derivative(function, order):
        if order == 0:
            return function
        return lambda x: torch.func.jvp(derivative(function, order - 1), (x,), (v,))[1]

    for pattern in (BATCH, LAYER):
        for order in (2, 3):
            actual = derivative(lambda x: functional.normalize(x, pattern), order)(x)  # noqa: B023
            expected = derivative(lambda x: reference.normalize(x, pattern), order)(x)  # noqa: B023
            assert_within(actual, expected)


def test_issue_115500_a_bad_batch_shows_in_the_running_statistics():
    """B35: by design; what is bad must not be hidden from who watches the statistics"""
    layer, x = norms.norm("batch", 3), sample(4, 3, 5)
    x[0, 1, 2] = float("inf")
    layer(x)
    assert layer.running_mean.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("given", [{"running_mean": None}, {"running_var": None}], ids=str)
def test_pull_153233_half_of_the_statistics_are_refused(given):
    """B36"""
    statistics = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), **given}
    with pytest.raises(RuntimeError, match=f"or neither; {next(iter(given))} is None"):
        batch_norm(sample(4, 3), **statistics, training=True)


def test_issue_109652_instance_norm_of_other_channels_is_refused():
    """B37: torch warns"""
    with pytest.raises(ValueError, match="expected 3 channels on axis 1, got 4"):
        normlab.nn.InstanceNorm2d(3)(sample(2, 4, 3, 3))


def test_pull_110850_counter_survives_load_state_dict():
    """B39"""
    source, target = norms.norm("batch", 3), norms.norm("batch", 3)
    source(sample(4, 3))
    target.load_state_dict(source.state_dict(), assign=True)
    assert target.num_batches_tracked == 1


def test_issue_58843_instance_norm_with_running_statistics_evaluates_by_them():
    """B40: as documented"""
    layer = normlab.nn.InstanceNorm1d(3, track_running_stats=True).eval()
    x, fixed = sample(2, 3, 5), (torch.zeros(3), torch.ones(3))
    assert_within(layer(x), reference.normalize(x, BATCH, statistics=fixed))


def test_issue_22095_two_forward_passes_before_one_backward():
    """B42: statistics moved in place between"""
    layer, x = norms.norm("batch", 3), sample(4, 3, 5).requires_grad_()
    (layer(x) * layer(x * 2)).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("spec", ["group:2", "layer"])
def test_issue_183825_parameters_learn_where_the_input_does_not(spec):
    """B44, issue 88331"""
    layer, x = make(spec), sample(4, 6, 5)
    twin = double(layer)
    layer(x).exp().sum().backward()
    definition(twin, x).exp().sum().backward()
    assert_within(layer.weight.grad, twin.weight.grad)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        pytest.param((2, 9, 7), 3, id="P01: 21 values, not a power of two"),
        pytest.param((2, 8, 3, 2, 3), 2, id="P06: five axes"),
        pytest.param((2, 10, 1100), 1, id="P09: 11000 values, beyond a block"),
        pytest.param((2, 100, 3), 4, id="P12: 100 channels, not a power of two"),
        pytest.param((3, 72, 2), 24, id="P19: 72 channels"),
    ],
)
def test_group_norm_sizes_of_the_reports(shape, groups):
    assert_all_within(sample(*shape), f"n (g={groups} c) ... -> n g")


def test_p02_layer_norm_of_any_rank_stays_inside_its_gradient():
    weight, bias = torch.ones(5, requires_grad=True), torch.zeros(5, requires_grad=True)
    for shape in ((5,), (3, 5), (2, 3, 5), (2, 2, 3, 5)):
        y, dy = layer_norm(sample(*shape), (5,), weight, bias), sample(*shape, seed=1)
        dweight, dbias = torch.autograd.grad(y, (weight, bias), dy)
        torch.testing.assert_close(dweight, (dy * y).detach().reshape(-1, 5).sum(0))
        torch.testing.assert_close(dbias, dy.reshape(-1, 5).sum(0))


def test_p03_batch_norm_without_statistics_leaves_its_input():
    x = sample(4, 3, 5)
    batch_norm(x, None, None, training=True)
    assert torch.equal(x, sample(4, 3, 5))


def test_p04_backward_gets_the_reciprocal_root():
    x = sample(4, 6, dtype=torch.float64)
    _, (mean, var, rstd) = torch.ops.normlab.normalize(
        x, None, None, None, LAYER, 0.1, True, "none"
    )
    assert_within(rstd, (var + 0.1).rsqrt())
    assert_within(mean, reference.moments(x, LAYER)[0])


@pytest.mark.parametrize("layer", [normlab.nn.InstanceNorm1d, normlab.nn.BatchNorm1d])
def test_p05_running_variance_has_no_eps(layer):
    """Seen only where eps is large; and P13: n/(n-1) forgotten"""
    layer, x = layer(3, eps=10.0, momentum=1.0, track_running_stats=True), sample(1, 3, 50)
    layer(x)
    assert_within(layer.running_var, x.double().var(2, correction=1)[0])


def test_p07_two_uses_of_an_output_get_the_gradient_whole():
    """A backward pass that writes into its cotangent spoils it for the residual branch."""
    x = sample(4, 6, 5).requires_grad_()
    y = functional.normalize(x, LAYER, residual=x)
    dy = sample(4, 6, 5, seed=1)
    (actual,) = torch.autograd.grad(y + x, x, dy)
    (alone,) = torch.autograd.grad(functional.normalize(x, LAYER), x, dy)
    torch.testing.assert_close(actual, alone + 2 * dy)


@pytest.mark.parametrize("total", [torch.sum, lambda y: y.mean((0, 2)).sum()], ids=["sum", "mean"])
def test_p08_expanded_cotangent_is_read_by_its_strides(total):
    """And P10: a transposed input"""
    x = sample(5, 6, 4).transpose(0, 2).requires_grad_()
    wide = x.detach().double().requires_grad_()
    (actual,) = torch.autograd.grad(total(functional.normalize(x, LAYER, activation="silu")), x)
    truth = total(reference.normalize(wide, LAYER, activation="silu"))
    assert_within(actual, torch.autograd.grad(truth, wide)[0])


def test_p11_no_path_is_without_a_gradient():
    for spec in norms.available():
        for training in (True, False):
            layer, x = norms.norm(spec, 4).train(training), sample(3, 4, 5).requires_grad_()
            layer(x).sum().backward()
            assert all(t.grad is not None for t in (x, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mean", "std"), [(1449, 0.5), (5, 0.1)])
def test_p14_variance_is_never_negative(mean, std, dtype):
    """And P15: mean 1449, std 0.5 in float32, mean 5, std 0.1 in bfloat16 gave NaN"""
    x = (sample(2, 4, 9, 9) * std + mean).to(dtype)
    for pattern in (BATCH, LAYER, INSTANCE):
        assert functional.normalize(x, pattern, eps=1e-12).isfinite().all()
        truth = reference.normalize(x, pattern)
        assert_within(functional.normalize(x, pattern), truth, ratio=mean / std)


def test_p16_group_norm_has_the_gradient_of_its_parts():
    """A group's gradient is layer norm's of that group alone."""
    x, dy = sample(2, 6, 5).requires_grad_(), sample(2, 6, 5, seed=1)
    (whole,) = torch.autograd.grad(group_norm(x, 2), x, dy)
    parts = torch.cat([functional.normalize(part, LAYER) for part in x.split(3, 1)], 1)
    (expected,) = torch.autograd.grad(parts, x, dy)
    torch.testing.assert_close(whole, expected)


def test_p20_float16_is_widened_before_it_is_squared():
    x = (sample(2, 4, 50) * 2e4).clamp(-6e4, 6e4).half()
    assert_within(functional.normalize(x, LAYER), reference.normalize(x, LAYER))


# the CIFAR study, and the article that explains group norm


def test_gate_of_batch_instance_norm_learns():
    """It was made anew at each forward pass."""
    layer = norms.norm("batch_instance", 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        layer(sample(3, 4, 5, seed=step)).pow(3).sum().backward()
        optimizer.step()
    assert "gate" in dict(layer.named_parameters())
    assert (layer.gate != 1).all()


def test_gate_driven_past_an_end_comes_back():
    layer = norms.norm("batch_instance", 4)
    with torch.no_grad():
        layer.gate.fill_(1.5)
    x = sample(3, 4, 5)
    assert_within(layer(x), reference.normalize(x, BATCH))
    layer(x).pow(3).sum().backward()
    assert layer.gate.grad.all()


def test_number_of_groups_is_heeded():
    """It was always 4 channels a group."""
    x = sample(2, 12, 5)
    outputs = [norms.norm(f"group:{groups}", 12)(x) for groups in (1, 2, 3, 4, 6, 12)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize("spec", ["batch", "batch_instance", "batch:n=2"])
def test_running_statistics_keep_no_graph(spec):
    layer = norms.norm(spec, 3)
    for seed in range(2):
        layer(sample(4, 3, 5, seed=seed).requires_grad_()).sum().backward()
    assert all(b.grad_fn is None and not b.requires_grad for b in layer.buffers())


def test_batch_norm_in_evaluation_does_not_look_at_the_batch():
    layer, x = make("batch").eval(), sample(4, 6, 5)
    assert_within(torch.cat([layer(one) for one in x.split(1)]), layer(x).double())


def test_printed_module_returns_scales_and_shifts():
    """The article's returns nothing and applies neither weight nor bias."""
    layer, x = norms.norm("group:2", 10), sample(5, 10, 4, 4)
    plain = layer(x)
    with torch.no_grad():
        layer.weight.fill_(3.0)
        layer.bias.fill_(-1.0)
    torch.testing.assert_close(layer(x), 3 * plain - 1)


def test_variance_is_biased():
    """The article divides by n - 1."""
    x = torch.tensor([[[1.0, 3.0]]])
    torch.testing.assert_close(group_norm(x, 1, eps=0.0), torch.tensor([[[-1.0, 1.0]]]))


def test_element_computed_by_hand_is_that_of_the_layer():
    """Values 1 to 8 in two groups of 4: mean 2.5, variance 1.25, so -1.5 / sqrt(1.25 + eps)."""
    x = torch.arange(1.0, 9.0).reshape(1, 4, 2)
    for layer in (norms.norm("group:2", 4), normlab.nn.GroupNorm(2, 4)):
        assert layer(x)[0, 0, 0].item() == pytest.approx(-1.5 / (1.25 + 1e-5) ** 0.5, abs=1e-6)
        assert layer(x)[0, 2, 0].item() == pytest.approx(-1.5 / (1.25 + 1e-5) ** 0.5, abs=1e-6)
