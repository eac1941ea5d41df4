"""Any classifier of torchvision: torchvision:resnet50, torchvision:efficientnet_b0, …"""

import torch
from torch import nn

from normlab.lab.experiment import did_you_mean

# classifiers whose training output is a tuple unless asked otherwise
_OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build(variant: str, num_classes: int) -> nn.Module:
    """The classifier torchvision calls `variant`, with random weights.

    Shape: (N, 3, H, W) -> (N, num_classes).

    Raises:
        LookupError: torchvision has no such classifier.
        ImportError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError:
        raise ImportError('this network needs torchvision: pip install "normlab[lab]"') from None
    known = models.list_models(module=models)
    if variant not in known:
        raise LookupError(
            f'"torchvision:{variant}": no such classifier{did_you_mean(variant, known)}'
        )
    how = {"weights": None, "num_classes": num_classes, **_OPTIONS.get(variant, {})}
    try:
        return models.get_model(variant, **how)
    except NotImplementedError:  # RegNets find their widths with tensors, which "meta" has not
        with torch.device("cpu"):
            model = models.get_model(variant, **how)
        return model.to_empty(device=torch.get_default_device())
