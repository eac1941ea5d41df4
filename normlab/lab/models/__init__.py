"""Networks, one file per family: `build(variant, num_classes) -> Module`, written with batch norm.

Images enter every network as (N, 3, H, W), normalized; grey ones have three equal channels.
"""

from typing import Any

from torch import nn

from normlab import surgery
from normlab.lab.address import resolve
from normlab.lab.norm_names import parts


class ModelError(ValueError):
    """A network that cannot be built as asked."""


def build(
    address: str,
    num_classes: int,
    *,
    norm: str = "torch_bn",
    norm_batch_size: int | None = None,
    zero_init: bool = False,
    strength: float | None = None,
) -> nn.Module:
    """The network at an address with another norm in every place of a batch norm.

    Args:
        address: cifar_resnet:N, convnet, torchvision:NAME or a module of yours, "mine.nets:small".
        norm: see `normlab.norm`; "group+ws" is group norm, and weight standardization of every
            convolution: after +, a name of `surgery.reparametrize`.
        norm_batch_size: samples that share statistics; None: the whole batch.
        zero_init: start the last norm of each residual block at weight 0.
        strength: shrink statistics by so much towards those of a population; see
            `normlab.convert`.

    Raises:
        LookupError: no such family, variant or norm.
        ModelError, SurgeryError: what was asked for does not fit the network.
    """
    module, variant = resolve("models", address)
    model = module.build(variant, num_classes)
    if zero_init:
        _zero_last_norms(model, address)
    sliced: Any = {} if norm_batch_size is None else {"norm_batch_size": norm_batch_size}
    how: Any = {"where": _is_batch_norm, "keep": "affine", "strength": strength}
    layer, weights = parts(norm)
    try:
        model = surgery.convert(model, layer, **how, **sliced)
        return surgery.reparametrize(model, weights) if "+" in norm else model
    except surgery.SurgeryError as error:
        raise ModelError(f"{address}: {error}") from None


def _is_batch_norm(name: str, layer: nn.Module) -> bool:
    return type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _zero_last_norms(model: nn.Module, address: str) -> None:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    last_norms = [
        block.bn2 if isinstance(block, BasicBlock) else block.bn3
        for block in model.modules()
        if isinstance(block, BasicBlock | Bottleneck)
    ]
    if not last_norms:
        raise ModelError(f"zero_init: {address} has no residual blocks; leave it out")
    for layer in last_norms:
        nn.init.zeros_(layer.weight)
