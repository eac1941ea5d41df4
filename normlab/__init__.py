"""Fast normalization layers for PyTorch, and a lab that shows which one to use.

    normlab.norm("group", 64)               a layer by name
    normlab.nn.GroupNorm(4, 64)             torch.nn's names, drop-in
    normlab.functional.normalize(x, "n (g c) ... -> n g", g=4)

Names are imported when they are first used, so that the command line answers without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab import functional, nn, norms
    from normlab.lab.experiment import Experiment, Sweep
    from normlab.layer import Norm
    from normlab.norms import norm
    from normlab.pattern import PatternError

__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "Norm",
    "PatternError",
    "Sweep",
    "functional",
    "nn",
    "norm",
    "norms",
]

_HOMES = {
    "Experiment": "normlab.lab.experiment",
    "Norm": "normlab.layer",
    "PatternError": "normlab.pattern",
    "Sweep": "normlab.lab.experiment",
    "norm": "normlab.norms",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"normlab.{name}")
    else:
        raise AttributeError(f"module 'normlab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
