"""Frozen norms: fixed through everything that is done to a model, and released as they were."""

import copy
import pickle

import pytest
import torch
from oracle import assert_within, sample
from torch import nn

import normlab.nn
from normlab import norms
from normlab.layer import CATALOGUE
from normlab.surgery.freeze import freeze, is_frozen, unfreeze
from normlab.surgery.layers import SurgeryError

X = sample(6, 3, 5, 5)
LAYERS = {
    "torch": lambda: nn.BatchNorm2d(3),
    "normlab.nn": lambda: normlab.nn.BatchNorm2d(3, activation="relu"),
    "normlab.norms": lambda: norms.BatchNorm(3),
    "in slices": lambda: norms.norm("batch:n=2", 3),
    "batch_instance": lambda: norms.BatchInstanceNorm(3),
    "torch_bn": lambda: norms.TorchBatchNorm(3),
    "instance": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "BatchNormAct2d of timm": lambda: pytest.importorskip("timm.layers").BatchNormAct2d(3),
}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_state(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return model


CHANGES = {
    "train": lambda model: model.train(),
    "eval, then train": lambda model: model.eval().train(),
    "modes set one by one": lambda model: (
        [setattr(m, "training", True) for m in model.modules()] and model
    ),
    "deepcopy": lambda model: copy.deepcopy(model).train(),
    "deepcopy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)).train(),
    "pickle": lambda model: by_pickle(model).train(),
    "state_dict": lambda model: by_state(model).train(),
    "double": lambda model: model.double().float().train(),
}


def network(layer=None):
    """Statistics away from 0 and 1."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer or nn.BatchNorm2d(3), nn.Dropout(0.0))
    generator = torch.Generator().manual_seed(0)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_statistics_stay_fixed(build, change):
    model = network(build())
    expected = model.eval()(X)
    before = copy.deepcopy(model.state_dict())
    freeze(model)
    model = change(model)
    assert torch.equal(model(X), expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert is_frozen(model[1])
    assert model[2].training


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_unfrozen_layer_is_what_it_was(build):
    model = network(build()).train()
    cls, keys = type(model[1]), list(model.state_dict())
    freeze(model)
    assert isinstance(model[1], cls)
    assert list(model.state_dict()) == keys
    unfreeze(by_pickle(model))
    assert str(unfreeze(model)) == "statistics of 1 norm (1)"
    assert type(model[1]) is cls
    assert all(m.training for m in model.modules())


def test_mode_asked_for_meanwhile_shows_once_released():
    model = network().train()
    freeze(model)
    model.eval()
    unfreeze(model)
    assert not model[1].training


def test_gradients_are_those_of_evaluation():
    model = network().double()
    evaluated = copy.deepcopy(model).eval()
    freeze(model)
    found = [
        torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()])
        for m in (model.train(), evaluated)
        for x in [X.double().requires_grad_()]
    ]
    for actual, expected in zip(*found):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("build", [LAYERS["torch"], LAYERS["normlab.nn"]], ids=["torch", "normlab"])
@pytest.mark.parametrize("first", ["frozen, then compiled", "compiled, then frozen"])
def test_compiled_model_stays_frozen(build, first):
    model = network(build()).train()
    compiled = torch.compile(model, backend="eager")
    if first == "compiled, then frozen":
        compiled(X)
    freeze(compiled)
    before = model[1].running_mean.clone()
    assert_within(compiled(X), model(X))
    assert torch.equal(model[1].running_mean, before)


def test_affine_needs_no_gradient_and_is_released():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    model[2].bias.requires_grad_(False)
    said = freeze(model, "affine")
    assert said.affine == ("1", "2")
    assert said.stats == ()
    needing = {name for name, p in model.named_parameters() if p.requires_grad}
    assert needing == {"0.weight", "0.bias"}
    assert model.train()[1].training
    model = by_pickle(copy.deepcopy(model))
    unfreeze(model)
    needing = {name for name, p in model.named_parameters() if p.requires_grad}
    assert needing == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}


def test_both_are_frozen_and_released_one_after_the_other():
    model = network()
    text = "statistics of 1 norm (1); weight and bias of 1 norm (1)"
    assert str(freeze(model, "both")) == text
    assert str(freeze(model, "both")) == text
    assert str(unfreeze(model, "affine")) == "weight and bias of 1 norm (1)"
    assert is_frozen(model[1])
    assert model[1].weight.requires_grad
    unfreeze(model, "stats")
    assert not is_frozen(model[1])


WHERE = {
    "a glob": "body.*",
    "one name": "body.0",
    "a predicate of the name": lambda name, layer: name.startswith("body"),
    "a predicate of the layer": lambda name, layer: layer.num_features == 4,
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
def test_where_chooses(where):
    model = nn.ModuleDict({"stem": nn.BatchNorm2d(3), "body": nn.Sequential(nn.BatchNorm2d(4))})
    assert freeze(model, where=where).stats == ("body.0",)
    assert not is_frozen(model["stem"])


def test_shared_norm_is_chosen_by_any_of_its_names():
    shared = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert freeze(model, where="b").stats == ("a",)
    assert model["a"] is model["b"] is shared


def test_model_that_is_a_norm_is_frozen_in_place():
    model = nn.BatchNorm2d(3)
    assert str(freeze(model)) == "statistics of 1 norm (the model)"
    assert is_frozen(model)


def test_catalogue_gains_no_norm():
    names = {name: id(cls) for name, cls in CATALOGUE.items()}
    freeze(network(norms.BatchNorm(3)))
    assert {name: id(cls) for name, cls in CATALOGUE.items()} == names


REFUSED = {
    "18: no norm": (lambda: nn.Linear(2, 2), {}, "0 of 0 norms .*; it has 1 Linear"),
    "nothing there": (
        network, {"where": "layer9.*"},
        r"0 of 1 norms have running statistics to freeze where 'layer9.\*' \(first '1'\)",
    ),
    "no statistics": (
        lambda: nn.GroupNorm(1, 2), {}, "0 of 1 norms have running statistics to freeze",
    ),
    "no parameters": (
        lambda: nn.BatchNorm2d(2, affine=False), {"what": "affine"}, "0 of 1 norms have parameters",
    ),
    "no such thing": (network, {"what": "all"}, "what is one of 'stats', 'affine', 'both', got 'a"),
    "24: lazy": (nn.LazyBatchNorm2d, {}, "has no size yet; run one batch first"),
    "27: script": (lambda: torch.jit.script(network()), {}, "freeze before torch.jit.script"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("build", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_frozen_is_refused(build, options, message):
    with pytest.raises(SurgeryError, match=message):
        freeze(build(), **options)


def test_releasing_what_is_not_frozen_is_refused():
    with pytest.raises(SurgeryError, match="0 of 1 norms are frozen; freeze first"):
        unfreeze(network())
