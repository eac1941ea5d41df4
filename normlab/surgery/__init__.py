"""Swap the norms of a model, and look after those it has; nothing is changed by halves.

What there is:

    plan, convert    other norms in place of those a model has, which keep what it computes
    set_strength     from frozen batch norm to the norm it became
    calibrate        running statistics of a data set
    freeze           statistics or weights that train no more; unfreeze
    fusible, fuse    norm, addition and activation in one pass
    foldable, fold   batch norms into the convolutions before them, for inference
    reparametrize    norms of weights: standardized, scaled, of length 1, of spectral norm 1
    weight_standardize   filters of mean 0 and variance 1
    synchronize      batch norms share statistics between processes; unsynchronize
    diagnose         what a network's norms suffer from
"""

from normlab.surgery.calibrate import calibrate
from normlab.surgery.commit import Report
from normlab.surgery.convert import convert
from normlab.surgery.diagnose import Diagnosis, diagnose
from normlab.surgery.findings import Finding
from normlab.surgery.fold import Folding, fold, foldable
from normlab.surgery.freeze import freeze, is_frozen, unfreeze
from normlab.surgery.fuse import Fusion, fuse, fusible
from normlab.surgery.layers import SurgeryError
from normlab.surgery.optimizers import SurgeryWarning
from normlab.surgery.plan import Change, Plan, plan
from normlab.surgery.shrunk import Shrunk, set_strength
from normlab.surgery.standardize import weight_standardize
from normlab.surgery.synchronize import synchronize, unsynchronize
from normlab.surgery.weights import reparametrize

__all__ = [
    "Change",
    "Diagnosis",
    "Finding",
    "Folding",
    "Fusion",
    "Plan",
    "Report",
    "Shrunk",
    "SurgeryError",
    "SurgeryWarning",
    "calibrate",
    "convert",
    "diagnose",
    "fold",
    "foldable",
    "freeze",
    "fuse",
    "fusible",
    "is_frozen",
    "plan",
    "reparametrize",
    "set_strength",
    "synchronize",
    "unfreeze",
    "unsynchronize",
    "weight_standardize",
]
