"""Networks, one file per family: `build(variant, num_classes) -> Module`, written with batch norm.

Images enter every network as (N, 3, H, W), normalized; grey ones have three equal channels.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab import surgery
from normlab.lab.address import resolve
from normlab.lab.models.zero_init import last_norms, zero_convolutions
from normlab.lab.norm_names import family, parts
from normlab.surgery import rules
from normlab.surgery.layers import show_leaves


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
        address: cifar_resnet:N, resnet:50, vgg:16, convnet, torchvision:NAME, timm:NAME or a module
            of yours, "mine.nets:small".
        norm: see `normlab.norm`; "group+ws" is group norm, and weight standardization of every
            convolution: after +, a name of `surgery.reparametrize`.
        norm_batch_size: samples that share statistics; None: the whole batch.
        zero_init: start the last norm of each residual block at weight 0; where that becomes none,
            the convolution before it.
        strength: shrink statistics by so much towards those of a population; see
            `normlab.convert`.

    Raises:
        LookupError: no such family, variant or norm.
        ModelError, SurgeryError: what was asked for does not fit the network.
    """
    module, variant = resolve("models", address)
    model = module.build(variant, num_classes)
    last = last_norms(model) if zero_init else {}
    if zero_init and not last:
        raise ModelError(
            f"zero_init: {address} has no residual blocks whose last norm is known; leave it out"
        )
    for batch_norm in last.values():
        nn.init.zeros_(batch_norm.weight)
    layer, weights = parts(norm)
    sliced: Any = {} if norm_batch_size is None else {"norm_batch_size": norm_batch_size}
    how: Any = {"where": _is_batch_norm, "keep": "affine", "strength": strength}
    try:
        if not _is_as_asked(model, address, norm):
            model = surgery.convert(model, layer, **how, **sliced)
        model = surgery.reparametrize(model, weights) if "+" in norm else model
    except surgery.SurgeryError as error:
        raise ModelError(f"{address}: {error}") from None
    left = zero_convolutions(model, last) if family(layer) == "none" else []
    if left:
        raise ModelError(
            f"zero_init: with norm {norm!r} nothing before {left[0]} can start at 0; leave it out"
        )
    return model


def _is_batch_norm(name: str, layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm)


def _is_as_asked(model: nn.Module, address: str, norm: str) -> bool:
    """Whether there is nothing to replace, which is right for a network without norms and `none`.

    Raises:
        ModelError: nothing to replace, and something was to be.
    """
    if any(isinstance(m, _BatchNorm) for m in model.modules()):
        return False
    norms = [m for m in model.modules() if rules.read(m) or rules.reason_to_leave(m)]
    if family(norm).partition("+")[0] == "none" and not norms:
        return True
    raise ModelError(
        f"{address} has no batch norm that {norm!r} could take the place of; it has "
        f"{show_leaves(model)}. Choose a network written with batch norm, such as resnet:50"
        + ("" if norms else ', or norm "none"')
    )
