"""Classifiers of torchvision and timm, with their batch norms exchanged."""

import sys
import warnings

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from normlab import norms
from normlab.lab import models
from normlab.lab.models import ModelError
from normlab.layer import Norm

SIZES = (224, 256, 299, 240, 288, 320, 384, 448, 512, 192, 160, 128)  # some take one size only
SAMPLE = {
    "torchvision": ("resnet50", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
                    "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5",
                    "vgg11_bn"),
    "timm": ("resnet50", "regnety_002", "efficientnet_b0", "mobilenetv3_small_050",
             "hrnet_w18_small", "res2net50_26w_4s", "resnest26d", "levit_128s", "fastvit_t8",
             "repvgg_a0", "inception_v3", "dla34"),
}  # fmt: skip
ADDRESSES = [f"{library}:{name}" for library, names in SAMPLE.items() for name in names]
NONE = "has no batch norm"


def outcome(address, norm):
    """The shape of a network's output, found without memory, or why there is none."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # timm deprecates names
        try:
            model = models.build(address, 7, norm=norm)
        except ModelError as error:
            return str(error)
        assert any(isinstance(m, Norm) for m in model.modules())
        reasons = []
        for size in SIZES:
            try:
                return tuple(model(torch.empty(2, 3, size, size)).shape)
            except (RuntimeError, AssertionError, ValueError, IndexError) as error:
                reasons.append(f"{size}: {type(error).__name__}: {error}"[:200])
        return reasons[0]


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_classifier_with_another_norm_is_built(address, norm):
    assert outcome(address, norm) == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("library", SAMPLE)
def test_every_classifier_with_batch_norm_is_built(library, capsys):
    module = pytest.importorskip({"torchvision": "torchvision.models"}.get(library, library))
    names = module.list_models(**({"module": module} if library == "torchvision" else {}))
    found = {name: outcome(f"{library}:{name}", "group") for name in names}
    without = [name for name, said in found.items() if NONE in said]
    failed = {n: said for n, said in found.items() if n not in without and said != (2, 7)}
    with capsys.disabled():
        print(f"\n{library}: {len(found)} classifiers, {len(without)} without batch norm, failed:")
        print(*failed.items(), sep="\n")
    assert not failed


@pytest.mark.parametrize(
    ("address", "has", "remedy"),
    [
        pytest.param("torchvision:vgg11", "8 Conv2d", 'such as resnet:50, or norm "none"', id="18"),
        pytest.param("torchvision:vit_b_16", "LayerNorm", "such as resnet:50$", id="other norms"),
        pytest.param("timm:test_convnext", "LayerNorm", "such as resnet:50$", id="timm's norms"),
    ],
)
def test_network_without_batch_norm_is_refused(address, has, remedy):
    said = rf"{address} has no batch norm that 'group'.*{has}.*{remedy}"
    with torch.device("meta"), pytest.raises(ModelError, match=said):
        models.build(address, 10, norm="group")


def test_network_without_norms_is_what_none_asks_for():
    with torch.device("meta"):
        model = models.build("torchvision:vgg11", 10, norm="none")
        with pytest.raises(ModelError, match="has no batch norm that 'none' could take"):
            models.build("torchvision:vit_b_16", 10, norm="none")
    assert not any(isinstance(m, Norm) for m in model.modules())


def test_timm_s_norm_and_activation_become_one_layer():
    """P17: norms of timm's subclass keep the activation inside them."""
    model = models.build("timm:regnetx_002", 10, norm="group:4")
    found = [m for m in model.modules() if isinstance(m, norms.GroupNorm)]
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    assert {m.activation for m in found} == {None, "relu"}


@pytest.mark.parametrize(
    ("variant", "rest"),
    [
        ("resnt50", "did you mean 'resnet50'"),
        pytest.param("", r"timm.list_models\(\) names them all", id="no name"),
        pytest.param("hf_hub:timm/resnet50", "no such classifier", id="nothing is fetched"),
    ],
)
def test_unknown_timm_classifier_names_what_there_is(variant, rest):
    with pytest.raises(LookupError, match=rest):
        models.build(f"timm:{variant}", 10)


def test_missing_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'needs timm: pip install "normlab\[models\]"'):
        models.build("timm:resnet18", 10)
