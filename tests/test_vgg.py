"""The networks of the group norm paper's figure 6."""

import pytest
import torch
from torch import nn

from normlab import norms
from normlab.lab import models


@pytest.mark.parametrize(("variant", "layers"), [("11", 9), ("13:8", 11), ("16", 14), ("19:4", 17)])
def test_vgg_has_a_norm_after_every_convolution(variant, layers):
    with torch.device("meta"):
        model = models.build(f"vgg:{variant}", 10)
    kinds = [type(m).__name__ for m in model]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model) == layers
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind == "Conv2d"]
    assert after == [["TorchBatchNorm", "ReLU"]] * (layers - 1)


@pytest.mark.parametrize("size", [1, 8, 28, 33], ids="{} pixels".format)
def test_vgg_takes_images_of_any_size(size):
    assert models.build("vgg:11:4", 7, norm="layer")(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_large_linear_layers_make_the_paper_s_network():
    """138,357,544 weights and biases: table 2 of Simonyan and Zisserman says 138 million."""
    with torch.device("meta"):
        model = models.build("vgg:16:64:4096", 1000, norm="none")
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == 138_357_544
    assert [type(m).__name__ for m in model][-8:] == [
        "Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip


def test_norms_are_after_convolutions_only():
    with torch.device("meta"):
        model = models.build("vgg:16:64:4096", 1000, norm="group:32")
    assert sum(isinstance(m, norms.GroupNorm) for m in model) == 13


def test_responses_are_called_as_in_figure_6():
    """conv5_3 feeds norm5_3, whether there is a norm or not."""
    with torch.device("meta"):
        names = [
            name for name, _ in models.build("vgg:16:64:4096", 10, norm="none").named_children()
        ]
    at = names.index("conv5_3")
    assert names[at : at + 4] == ["conv5_3", "norm5_3", "relu5_3", "pool5"]


def test_network_for_small_images_takes_large_linear_layers_too():
    assert models.build("vgg:11:4:8", 7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    "variant",
    ["", "12", "16:0", "16:x", "16:4:x", "16:4:4:4", "16:99999", "16:4097", "16:4:999999"],
)
def test_other_vggs_are_refused(variant):
    with pytest.raises(LookupError, match="there are vgg:11, vgg:13, vgg:16, vgg:19"):
        models.build(f"vgg:{variant}", 10)
