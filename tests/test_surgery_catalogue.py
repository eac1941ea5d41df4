"""Any norm of the catalogue to any other: what a plan says is kept is kept."""

import warnings

import pytest
import torch
from oracle import assert_within, sample
from torch import nn

from normlab import norms, surgery

SPECS = [s for s in norms.available() if s != "group"] + ["group:4", "rms:batch", "batch_group:4"]
X = sample(8, 8, 6, 6) * 2 + 1


def trained(spec="batch"):
    """A norm with statistics, weight and bias of its own, in evaluation."""
    layer = norms.norm(spec, 8)
    generator = torch.Generator().manual_seed(4)
    for _ in range(30):
        layer(sample(8, 8, 6, 6) * 2 + 1)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.copy_(torch.rand(8, generator=generator) + 0.5)
    return nn.Sequential(layer).eval()


def kept(model, spec):
    (change,) = surgery.plan(model, spec, where="0").changes
    return change.keeps


def converted(model, spec):
    with warnings.catch_warnings():
        # a norm of single samples has no statistics for one that needs them
        warnings.simplefilter("ignore", surgery.SurgeryWarning)
        return surgery.convert(model, spec, where="0")


@pytest.mark.parametrize("spec", SPECS)
def test_plan_claims_the_function_only_where_it_is_kept(spec):
    model = trained()
    before = model(X).detach()
    claim = kept(model, spec)
    after = converted(model, spec)(X).detach()
    same = torch.allclose(after, before, atol=1e-4)
    assert same == (claim == "function"), claim


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in ("none",)])
def test_conversion_and_back_is_the_function_it_was(spec):
    model = trained()
    before = model(X).detach()
    back = converted(converted(model, spec), "batch")
    assert_within(back(X), before, size=before.abs().max().item() * 8)


@pytest.mark.parametrize("old", SPECS)
@pytest.mark.parametrize("new", ["group:4", "batch", "rms:batch", "dyt", "frozen_batch"])
def test_any_norm_becomes_any_other(old, new):
    model = trained(old)
    before, claim = model(X).detach(), kept(model, new)
    after = converted(model, new)
    assert after[0].name == norms.parse(new)[0].name
    if claim == "function":
        assert_within(after(X), before, size=before.abs().max().item() * 8)


@pytest.mark.parametrize("spec", ["group:4", "layer", "instance", "rms:group:4", "rms:batch"])
def test_moments_match_those_of_the_population(spec):
    """Mean and deviation of every channel are, on average, what they were."""
    model, x = trained(), sample(512, 8, 6, 6, dtype=torch.float32) * 2 + 1
    before = model(x)
    after = converted(model, spec)(x)
    for statistic in (torch.mean, torch.std):
        old, new = statistic(before, (0, 2, 3)), statistic(after, (0, 2, 3))
        # what is left is the spread of samples' own statistics, of 36 values and more
        assert (new - old).abs().max() < 0.15


@pytest.mark.parametrize("spec", ["frozen_batch", "sync_batch"])
def test_what_is_more_than_a_pattern_is_not_left_as_it_is(spec):
    model = nn.Sequential(nn.BatchNorm2d(8))
    surgery_of = surgery.convert(model, spec)
    assert surgery_of[0].name == spec


def test_norm_that_centres_nothing_has_no_strength():
    with pytest.raises(surgery.SurgeryError, match="rms norm is not one pattern"):
        surgery.convert(trained(), "rms", strength=0.5)
