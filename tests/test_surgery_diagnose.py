"""Planted faults are named, healthy networks are not, and the network stays as it is.

`benchmarks/diagnose.py` does the same with 96 trained networks and data.
"""

import ast
import copy
import random
import re

import numpy as np
import pytest
import torch
from oracle import sample
from torch import nn
from torch.nn import functional as F

from normlab import norms
from normlab.surgery import convert, findings
from normlab.surgery.calibrate import calibrate
from normlab.surgery.diagnose import diagnose
from normlab.surgery.facts import watching
from normlab.surgery.freeze import freeze
from normlab.surgery.layers import SurgeryError

NUM_SAMPLES, BATCH_SIZE = 480, 24
LABELS = torch.arange(NUM_SAMPLES) % 4


def images(seed=0):
    """Four classes by their pattern; a brightness of each image that says nothing."""
    pattern = sample(4, 2, 6, 6, seed=9)[LABELS]
    brightness = 2 * sample(NUM_SAMPLES, 1, 1, 1, seed=seed + 1)
    return pattern + brightness + sample(NUM_SAMPLES, 2, 6, 6, seed=seed)


def batches(x=None, order=None, size=BATCH_SIZE):
    x = images() if x is None else x
    order = torch.arange(NUM_SAMPLES) if order is None else order
    return list(zip(x[order].split(size), LABELS[order].split(size)))


def updated(model, loader):
    model.train()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    return model.eval()


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), norm(8), nn.ReLU(inplace=True), nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, bias=False), norm(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def healthy(norm=nn.BatchNorm2d):
    return updated(network(norm), batches(images(seed=5)) * 3)


def tiny_batches():
    """Averages as batches of 2 leave them: long and short of what is between two images."""
    model = network()
    for layer in norms_of(model):
        layer.momentum = 0.01
    updated(model, batches(images(seed=5), size=2) * 3)
    for layer in norms_of(model):
        layer.momentum = 0.1
    return model


def norms_of(model):
    return [layer for layer in model.modules() if hasattr(layer, "running_var")]


def never_updated():
    return network().eval()


def few_steps():
    return updated(network(), batches()[:6])


def not_finite():
    model = healthy()
    model[5].running_var[2] = float("nan")
    return model


def dead(weight, bias):
    model = healthy()
    with torch.no_grad():
        model[5].weight[:3], model[5].bias[:3] = weight, bias
    return model


SORTED = LABELS.argsort(stable=True)
FAULTS = {
    "trained at batch 2": (findings.SMALL_BATCH, tiny_batches, batches, "1"),
    "never updated": (findings.STALE, never_updated, batches, "1"),
    "few steps": (findings.STALE, few_steps, batches, "5"),
    "brighter": (findings.SHIFTED, healthy, lambda: batches(images() + 3), "1"),
    "less contrast": (findings.SHIFTED, healthy, lambda: batches(images() / 2), "1"),
    "sorted by class": (findings.BATCHES, healthy, lambda: batches(order=SORTED), "5"),
    "not finite": (findings.NAN, not_finite, batches, "5"),
    "dead: weight 0": (findings.DEAD, lambda: dead(0.0, 0.0), batches, "5"),
    "dead: below the ReLU": (findings.DEAD, lambda: dead(0.1, -9.0), batches, "5"),
    "few values": (findings.FEW_VALUES, healthy, lambda: batches(images()[..., :5, :5], size=4),
                   "5"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "build", "loader", "layer"), FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_named(kind, build, loader, layer):
    found = diagnose(build(), loader())
    first = found.findings[0]
    assert first.kind == kind, str(found)
    assert layer in first.layers
    assert any(c.isdigit() for c in first.evidence)
    assert "normlab." in first.fix or kind == findings.BATCHES
    assert str(first) in str(found)


CURED = [name for name, fault in FAULTS.items() if fault[0] not in
         (findings.BATCHES, findings.FEW_VALUES)]  # fmt: skip


@pytest.mark.parametrize("name", CURED)
def test_fix_cures(name):
    kind, build, loader, _ = FAULTS[name]
    model = build()
    first = diagnose(model, loader()).findings[0]
    for call in re.findall(r"normlab\.\w+\([^)]*\)", first.fix):
        verb = ast.parse(call).body[0].value
        options = {k.arg: ast.literal_eval(k.value) for k in verb.keywords}
        if verb.func.attr == "calibrate":
            calibrate(model, loader(), **options)
        elif kind == findings.DEAD:
            convert(model, ast.literal_eval(verb.args[1]), **options)
            calibrate(model, loader())
    assert not diagnose(model, loader()).findings


HEALTHY = {
    "batch norm": (healthy, batches),
    "normlab.norms": (lambda: healthy(norms.BatchNorm), batches),
    "other images": (healthy, lambda: batches(images(seed=7))),
    "few images": (healthy, lambda: batches()[:5]),
    "batches without labels": (healthy, lambda: [x for x, _ in batches()]),
    "group norm": (lambda: network(norms.GroupNorm).eval(), batches),
    "frozen": (lambda: (lambda m: (freeze(m), m)[1])(healthy()), batches),
}


@pytest.mark.parametrize(("build", "loader"), HEALTHY.values(), ids=HEALTHY)
def test_healthy_network_is_left_in_peace(build, loader):
    found = diagnose(build(), loader())
    assert found.findings == (), str(found)
    assert str(found).endswith("nothing is wrong with the norms")


def test_model_modes_and_random_numbers_stay():
    model = healthy().train()
    model[1].eval()
    before = copy.deepcopy(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images(), LABELS), 24, shuffle=True
    )
    diagnose(model, loader)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]
    for (name, value), old in zip(model.state_dict().items(), before.state_dict().values()):
        assert torch.equal(value, old), name
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_scores_are_those_of_the_four_statistics():
    model = healthy()
    loader = batches(images() + 3)
    scores = diagnose(model, loader, loss=lambda y, batch: F.cross_entropy(y, batch[1])).scores
    assert list(scores) == ["running", "population", "batch", "frozen"]
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in loader])
    labels = torch.cat([y for _, y in loader])
    assert scores["running"].top1 == pytest.approx(
        100 * (logits.argmax(1) == labels).double().mean()
    )
    assert scores["running"].loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert scores["running"].loss != pytest.approx(scores["population"].loss, rel=1e-3)
    assert scores["frozen"].loss != scores["running"].loss  # dropout


def test_gap_of_accuracy_is_named_with_its_error():
    scores = {"running": findings.Score(50.0, None, 400), "batch": findings.Score(70.0, None, 400)}
    (found,) = findings.find([], scores)
    assert found.kind == findings.SCORES
    assert (
        "top-1 50.0 % under running and 70.0 % under batch statistics (3.4 stan" in found.evidence
    )
    scores["batch"] = findings.Score(58.0, None, 400)
    assert findings.find([], scores) == []


def test_batch_size_of_training_is_read_off():
    model = tiny_batches()
    calibrated = calibrate(copy.deepcopy(model), batches())
    with watching(calibrated, model) as facts, torch.no_grad():
        for x, _ in batches():
            calibrated.eval()(x)
    inverse, explained = findings.small_batch(facts[0])
    assert 1 / inverse == pytest.approx(2, rel=0.2)
    assert explained > findings.FIT


def test_random_batches_deviate_by_chance_only():
    """Over 20 shuffles the deviates of the first norm are about standard normal."""
    model, found = healthy(), []
    for seed in range(20):
        order = torch.randperm(NUM_SAMPLES, generator=torch.Generator().manual_seed(seed))
        with watching(model, model) as facts, torch.no_grad():
            for x, _ in batches(order=order):
                model(x)
        found.append(findings.deviates(facts[0]))
    assert abs(sum(found) / 20) < 4 / 20**0.5
    assert max(map(abs, found)) < 4


def test_residual_added_in_place_hides_no_channel():
    """The ReLU then follows the sum, in which a low output is not dead."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu = nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, x):
            y = self.norm(x)
            y += x
            return self.relu(y)

    model = Block()
    nn.init.constant_(model.norm.bias, -9.0)
    updated(model, batches() * 2)
    assert not any(f.kind == findings.DEAD for f in diagnose(model, batches()).findings)


def test_table_shows_every_norm_and_statistics():
    text = str(diagnose(healthy(), batches()))
    for word in ("norm", "values", "eval gap", "train/eval", "noise", "dead", "BatchNorm2d",
                 "running", "population", "batch", "frozen", "0/8"):  # fmt: skip
        assert word in text


def test_norm_that_never_ran_is_shown():
    model = nn.ModuleDict({"used": nn.BatchNorm2d(2), "spare": nn.BatchNorm2d(2)})
    updated(model["used"], batches() * 3)
    found = diagnose(model, batches(), forward=lambda m, batch: m["used"](batch[0]))
    assert found.findings == ()
    assert "did not run" in str(found)


REFUSED = {
    "18: no norm": (lambda: nn.Linear(2, 2), batches, "0 norms to diagnose; it has 1 Linear"),
    "no data": (healthy, list, "the loader has no batches"),
    "no data, group norm": (lambda: network(norms.GroupNorm), list, "the loader has no batches"),
    "generator": (healthy, lambda: iter(batches()), "the data several times, and a list_iter"),
    "27: script": (lambda: torch.jit.script(healthy()), batches, "before torch.jit.script"),
    "not finite": (
        healthy, lambda: batches(images() / 0), "^1: population statistics of 8 of 8 channels",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(("build", "loader", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_diagnosed_is_refused(build, loader, message):
    with pytest.raises(SurgeryError, match=message):
        diagnose(build(), loader())
