"""The networks of the group norm paper's figure 6."""

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("variant", ["", "12", "16:0", "16:x", "16:4:4", "16:99999"])
def test_other_vggs_are_refused(variant):
    with pytest.raises(LookupError, match="there are vgg:11, vgg:13, vgg:16, vgg:19"):
        models.build(f"vgg:{variant}", 10)
