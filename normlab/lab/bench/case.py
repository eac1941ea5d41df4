"""What is measured of a norm: the tensor, the norm, what is fused with it."""

from dataclasses import dataclass

import torch

from normlab import norms
from normlab.checks import check_count
from normlab.lab.bench.results import BenchError
from normlab.ops import ACTIVATIONS
from normlab.pattern import show

DTYPES = ("float32", "bfloat16", "float16", "float64")
FORMATS = {
    "contiguous": dict.fromkeys(range(2, 9), torch.contiguous_format),
    "channels_last": {4: torch.channels_last, 5: torch.channels_last_3d},
}


@dataclass(frozen=True)
class Case:
    """One norm over one tensor.

    Args:
        shape: (N, C, ...).
        norm: see `normlab.norm`.
        activation: see `normlab.functional.normalize`.
        residual: add a tensor before the activation.
        dtype: of the tensor and of the parameters, by its name in torch.
        memory_format: contiguous or channels_last.
        backward: measure the backward pass too; without, nothing is kept for one.

    Raises:
        BenchError, LookupError: a case there cannot be.
    """

    shape: tuple[int, ...]
    norm: str = "group"
    activation: str = "none"
    residual: bool = False
    dtype: str = "float32"
    memory_format: str = "contiguous"
    device: str = "cpu"
    backward: bool = True

    def __post_init__(self) -> None:
        if not 2 <= len(self.shape) <= 8 or min(self.shape) < 1:
            raise BenchError(
                f"shape {show(self.shape)}: wanted N×C×…, 2 to 8 sizes of at least 1 each"
            )
        check_names(self.dtype, self.memory_format)
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise BenchError(f"activation {self.activation!r}: there are {known}")
        if len(self.shape) not in FORMATS[self.memory_format]:
            raise BenchError(
                f"channels_last is for 4 or 5 axes, got shape {show(self.shape)}; choose contiguous"
            )
        check_norm(self.norm)
        try:
            layer = norms.norm(self.norm, self.shape[1], device="meta")
            check_count(self.shape, layer.pattern)
        except (TypeError, ValueError) as error:
            raise BenchError(f"norm {self.norm!r}, shape {show(self.shape)}: {error}") from None

    @property
    def passes(self) -> str:
        return "forward+backward" if self.backward else "forward"


def check_names(dtype: str, memory_format: str) -> None:
    """Raise unless a type and a memory format are called that."""
    for what, name, known in (
        ("dtype", dtype, DTYPES),
        ("memory format", memory_format, tuple(FORMATS)),
    ):
        if name not in known:
            raise BenchError(f"{what} {name!r}: there are {', '.join(known)}")


def check_norm(norm: str) -> None:
    """Raise unless a norm is called that and is ours."""
    if norms.parse(norm)[0].name == "torch_bn":
        raise BenchError("norm 'torch_bn' is what norms are compared with; choose batch")


def read_shape(text: str) -> tuple[int, ...]:
    """Sizes out of text.

    Raises:
        BenchError: anything but whole numbers.

    >>> read_shape("8x256x56x56")
    (8, 256, 56, 56)
    """
    sizes = text.replace("×", "x").split("x")
    if not all(size.isdecimal() and len(size) < 12 for size in sizes):
        raise BenchError(f"shape {text!r}: wanted sizes with x between them, as in 8x256x56x56")
    return tuple(map(int, sizes))
