"""Batch norms of several domains: each has its own, and is told whose a batch is."""

import pytest
import torch
from oracle import assert_within, definition, double, make, sample
from torch import nn

from normlab import norms
from normlab.norms import domain, set_domain
from normlab.norms.mixed import DomainBatchNorm

SHAPE = (4, 6, 3, 5)
DOMAINS = ["photo", "sketch"]


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 6, 1), norms.norm("domain_batch", 6, domains=DOMAINS))
    return nn.Sequential(inner, nn.ReLU(), DomainBatchNorm(6, domains=DOMAINS))


def test_each_domain_is_a_batch_norm_of_its_own():
    layer, twins = DomainBatchNorm(6, domains=DOMAINS), {}
    for at, name in enumerate(DOMAINS):
        twins[name] = make("batch", eps=layer.eps)
        owner = layer.get_submodule(f"domain{at}") if at else layer
        owner.load_state_dict(twins[name].state_dict(), strict=False)
    for step, name in enumerate(["photo", "sketch", "sketch"]):
        x = sample(*SHAPE, seed=step) * (step + 1) + step
        with domain(nn.Sequential(layer), name):
            assert torch.equal(layer(x), twins[name](x))
    state = layer.state_dict()
    for prefix, name in (("", "photo"), ("domain1.", "sketch")):
        for key, value in twins[name].state_dict().items():
            assert torch.equal(state[prefix + key], value)


def test_gradients_reach_the_parameters_of_the_domain_alone():
    model = network()
    set_domain(model, 1)
    model(sample(4, 3, 2, 2)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    own = {f"{at}.domain1.{key}" for at in ("0.1", "2") for key in ("weight", "bias")}
    assert reached == own | {"0.0.weight", "0.0.bias"}


def test_a_domain_holds_within_its_context_only_even_if_that_fails():
    model = network()
    set_domain(model, "photo")
    with pytest.raises(KeyError), domain(model, "sketch"):
        assert model[2].domain == model[0][1].domain == "sketch"
        raise KeyError
    assert model[2].domain == model[0][1].domain == "photo"


def test_a_batch_of_an_unsaid_domain_is_refused():
    with pytest.raises(ValueError, match=r"not said; there are photo, sketch\. Call .*set_domain"):
        network()(sample(4, 3, 2, 2))


def test_an_unknown_domain_is_refused_and_changes_nothing():
    model = network()
    model[2] = DomainBatchNorm(6, domains=["sketch"])
    with pytest.raises(LookupError, match=r"'photo': 2 has sketch \(0 to 0\)"):
        set_domain(model, "photo")
    assert model[0][1].domain is None
    for which in (2, -1, True, "paint"):
        with pytest.raises(LookupError, match=r"0\.1 has photo, sketch \(0 to 1\)"):
            set_domain(model, which)
    with pytest.raises(LookupError, match="ReLU has no DomainBatchNorm"):
        set_domain(nn.ReLU(), 0)


@pytest.mark.parametrize("domains", [0, -1, [], ["a", "a"]], ids=str)
def test_no_domain_or_one_twice_is_refused(domains):
    with pytest.raises(ValueError, match="domains must be at least one, each once"):
        norms.norm("domain_batch", 6, domains=domains)


def test_domain_batch_has_the_definition_in_every_domain():
    x, residual, dy = (sample(*SHAPE, seed=seed) for seed in range(3))
    layer = make("domain_batch:3", activation="silu")
    for at in range(3):
        set_domain(layer, at)
        twin = double(layer.get_submodule(f"domain{at}") if at else layer)
        twin.activation = "silu"
        found = []
        for function in (layer, lambda *t, twin=twin: definition(twin, *t)):
            given = [t.clone().requires_grad_() for t in (x, residual)]
            y = function(*given)
            found.append([y, *torch.autograd.grad(y, given, dy.to(y.dtype))])
        for actual, expected in zip(*found):
            assert_within(actual, expected)
