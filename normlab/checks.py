"""What norms refuse, and how they say so: what was wanted, what came, what to do."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from normlab import ops
from normlab import pattern as patterns
from normlab.ops import ACTIVATIONS
from normlab.pattern import PatternError, show


def check_whole(name: str, value: Any) -> None:
    """Raise unless the value is a whole number."""
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a whole number, got {value!r} ({kind})")


def check_channels(num_channels: Any) -> None:
    """Raise unless there can be that many channels."""
    check_whole("num_channels", num_channels)
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1, got {num_channels}")


def check_groups(num_groups: int, num_channels: int) -> None:
    """Raise unless the channels split into that many groups."""
    check_whole("num_groups", num_groups)
    check_whole("num_channels", num_channels)
    if num_groups < 1:
        raise PatternError(f"num_groups must be ≥ 1, got {num_groups}")
    if num_channels % num_groups:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        raise PatternError(
            f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups}); "
            f"divisors of {num_channels}: {', '.join(map(str, divisors))}"
        )


def check_eps(eps: Any) -> None:
    """Raise unless eps is a positive number."""
    is_number = isinstance(eps, int | float) and not isinstance(eps, bool)
    if not is_number or not eps > 0 or math.isinf(eps):
        raise ValueError(f"eps must be a positive number such as 1e-5, got {eps!r}")


def check_momentum(momentum: Any) -> None:
    """Raise unless momentum is a number or None; warn outside 0 to 1."""
    if momentum is None:
        return
    if not isinstance(momentum, int | float) or isinstance(momentum, bool):
        kind = type(momentum).__name__
        raise TypeError(f"momentum must be a number or None, got {momentum!r} ({kind})")
    if not 0 <= momentum <= 1:
        warnings.warn(
            f"momentum is the weight of the new batch, usually 0 to 1; got {momentum}",
            stacklevel=3,
        )


def check_activation(activation: Any) -> None:
    """Raise unless the activation is one of the names, or None."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")


def check_dense(x: Tensor) -> None:
    """Raise unless x is an ordinary tensor."""
    if x.is_nested:
        raise TypeError("expected a dense tensor, got nested; convert it (to_padded_tensor) first")
    if x.is_quantized:
        raise TypeError("expected a dense tensor, got quantized; convert it (x.dequantize()) first")
    if x.layout != torch.strided:
        raise TypeError(f"expected a dense tensor, got {x.layout}; convert it (x.to_dense()) first")


def check_rank(x: Tensor) -> None:
    """Raise unless x is dense, with a sample and a channel axis."""
    check_dense(x)
    if x.dim() < 2:
        raise ValueError(
            f"expected input with at least 2 axes (N, C, ...), got {x.dim()}D input of shape "
            f"{show(x.shape)}; add the missing axis with x.unsqueeze(0)"
        )


# what keeps these: its norm, what has one value, what to use instead
_ONE_VALUE = {
    ("c",): ("batch", "channel", "a larger batch or group norm"),
    ("n", "c"): ("instance", "sample and channel", "a larger input or group norm"),
}


def check_count(shape: Sequence[int], pattern: str) -> None:
    """Raise where a variance would be taken of one value.

    Groups of one value are let through if there are several samples, as torch does.
    """
    if patterns.geometry(pattern, shape).count != 1:
        return
    kept = patterns.parse(pattern).kept
    known = _ONE_VALUE.get(kept if "n" in kept else ("c",))
    if known is None and shape[0] > 1:
        return
    norm, per, instead = known or ("group", "group", "a larger input or fewer groups")
    raise ValueError(
        f"Expected more than 1 value per channel when training, got input size {list(shape)}: "
        f"{norm} norm got one value per {per} (shape {show(shape)}); its variance would be 0. "
        f"Use {instead}."
    )


def check_joinable(pattern: str) -> None:
    """Raise unless statistics can be those of several processes' samples."""
    parsed = patterns.parse(pattern)
    if any(name in parsed.kept for name in parsed.axes[0]):
        raise ValueError(
            f'statistics "{pattern}" are of single samples, or of parts of a batch, which other '
            "processes have no part in; leave out the synchronization"
        )


def refuse_mask(name: str, mask: Tensor | None) -> None:
    """Raise where a norm that knows no masks is given one."""
    if mask is not None:
        raise ValueError(
            f"norm {name!r} takes no mask; norms that are one pattern do, such as batch and group"
        )


def check_tensors(
    x: Tensor, residual: Tensor | None, activation: str | None, **parameters: Tensor | None
) -> None:
    """Raise unless type, size and device of all that goes into a norm fit x."""
    if not x.is_floating_point():
        raise NotImplementedError(
            f'"normalize" is not implemented for {x.dtype}; convert first, as in x.float()'
        )
    if activation is not None and activation not in ops.ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ops.ACTIVATIONS)}")
    channels = x.shape[1:2]
    for name, parameter in parameters.items():
        if parameter is not None and not (
            parameter.dtype is x.dtype
            and parameter.shape == channels
            and parameter.device == x.device
        ):
            _check_parameter(x, name, parameter)
    if residual is None:
        return
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise RuntimeError(
            f"expected residual like x, {show(x.shape)} {x.dtype} on {x.device}, "
            f"got {show(residual.shape)} {residual.dtype} on {residual.device}"
        )


def _check_parameter(x: Tensor, name: str, parameter: Tensor) -> None:
    """Raise unless a parameter is one of x's channels, or of a type that goes with x."""
    if parameter.shape != x.shape[1:2]:
        raise RuntimeError(
            f"expected {name} with one value for each of the {x.shape[1]} channels of input "
            f"{show(x.shape)}, got shape {show(parameter.shape)}"
        )
    if parameter.device != x.device:
        raise RuntimeError(
            f"expected {name} on the device of the input, {x.device}, got {parameter.device}; "
            f"move the layer with .to({str(x.device)!r})"
        )
    allowed = (x.dtype, ops.compute_dtype(x))
    if parameter.dtype not in allowed:
        raise RuntimeError(
            f"mixed dtype: input {x.dtype} with {name} {parameter.dtype}; "
            f"expected {' or '.join(dict.fromkeys(map(str, allowed)))}"
        )


def check_running(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> None:
    check_rank(x)
    if running_mean is None or running_var is None:
        if running_mean is not running_var:
            missing = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(
                f"expected running_mean and running_var or neither; {missing} is None"
            )
        if training:
            return
        raise RuntimeError(
            "Expected running_mean and running_var to be defined when training=False; "
            "there are no statistics to evaluate with"
        )
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic.shape != x.shape[1:2]:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements, one per channel of input "
                f"{show(x.shape)}, not {statistic.numel()}"
            )
        if statistic.device != x.device:
            raise RuntimeError(
                f"expected {name} on the device of the input, {x.device}, got {statistic.device}"
            )


def check_movable(running: Tensor | None) -> None:
    """Raise under a function transform that running statistics are no argument of."""
    if running is None or torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active() and not is_functorch_wrapped_tensor(running):
        raise RuntimeError(
            "running statistics cannot be updated under vmap, grad, jacrev, …, which allow no side "
            "effects; call layer.eval(), or make the layer with track_running_stats=False"
        )


def refuse_script(layer: Any) -> NoReturn:
    """What torch.jit.script calls of a layer first; its language lacks what ours are written in."""
    raise RuntimeError(
        f"TorchScript cannot read {type(layer).__name__} of normlab; "
        "use torch.jit.trace or torch.export"
    )
