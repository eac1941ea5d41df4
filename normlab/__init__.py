"""Fast normalization layers for PyTorch, surgery that swaps them, and a lab that compares them.

    normlab.norm("group", 64)               a layer by name
    normlab.nn.GroupNorm(4, 64)             torch.nn's names, drop-in
    normlab.functional.normalize(x, "n (g c) ... -> n g", g=4)
    normlab.convert(model, "group")         other norms in a model, which keep what it computes
    normlab.fuse(model, x)                  its norms and activations in one pass
    normlab.calibrate, freeze, diagnose, weight_standardize; more in normlab.surgery

Names are imported when they are first used, so that the command line answers without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab import functional, nn, norms, surgery
    from normlab.lab.experiment import Experiment, Sweep
    from normlab.layer import Norm
    from normlab.norms import norm
    from normlab.pattern import PatternError
    from normlab.surgery.calibrate import calibrate
    from normlab.surgery.convert import convert
    from normlab.surgery.diagnose import diagnose
    from normlab.surgery.freeze import freeze, unfreeze
    from normlab.surgery.fuse import fuse
    from normlab.surgery.standardize import weight_standardize
    from normlab.surgery.synchronize import synchronize, unsynchronize


__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "Norm",
    "PatternError",
    "Sweep",
    "calibrate",
    "convert",
    "diagnose",
    "freeze",
    "functional",
    "fuse",
    "nn",
    "norm",
    "norms",
    "surgery",
    "synchronize",
    "unfreeze",
    "unsynchronize",
    "weight_standardize",
]

_HOMES = {
    "Experiment": "normlab.lab.experiment",
    "Norm": "normlab.layer",
    "PatternError": "normlab.pattern",
    "Sweep": "normlab.lab.experiment",
    "calibrate": "normlab.surgery",
    "convert": "normlab.surgery",
    "diagnose": "normlab.surgery",
    "freeze": "normlab.surgery",
    "fuse": "normlab.surgery",
    "norm": "normlab.norms",
    "synchronize": "normlab.surgery",
    "unfreeze": "normlab.surgery",
    "unsynchronize": "normlab.surgery",
    "weight_standardize": "normlab.surgery",
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
