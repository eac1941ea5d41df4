"""Swap the norms of any model by those of the catalogue, and keep what it knows."""

import logging
import warnings
from typing import Any

from torch import nn

from normlab.surgery.layers import Where
from normlab.surgery.optimizers import SurgeryWarning
from normlab.surgery.plan import plan

_log = logging.getLogger(__name__)
POOR = 1.0  # of the norm of the outputs; zeros would be as near


def convert(
    model: nn.Module,
    spec: str,
    *,
    where: Where | None = None,
    keep: str = "function",
    strength: float | None = None,
    sample_input: Any = None,
    optimizer: Any = None,
    **options: Any,
) -> nn.Module:
    """Replace the norms of a model by the norm a spec describes, and return the model.

    With keep="function", batch norms become norms over groups of channels whose weight and bias
    make up for the groups' moments, known in closed form from the running statistics:

    weight * sqrt(S² + eps) / sqrt(var + eps),   bias + weight * (M - mean) / sqrt(var + eps),
    M = mean_c(mean),   S² = mean_c(var + (mean - M)²)

    What was converted can be converted back: the layer returns as it was, bit for bit, and what was
    trained in between is taken along by the inverse of these equations. The model is changed in
    place, all norms or none, unless it is a norm itself. Names, sharing, hooks, modes, devices,
    types, and which parameters are trained, stay.

    Args:
        model: any module of torch, torchvision, timm, …; see `surgery.rules` for the layers known.
        spec: see `normlab.norm`. "batch" from another norm starts with running statistics of no
            data, unless the layer was a batch norm before; `normlab.calibrate` fills them.
        where: None is every norm whose statistics are not those wanted already; a glob
            ("layer4.*"), a list of globs, a compiled regular expression, or a function of
            (name, layer) chooses among all norms.
        keep: "function"; or "affine": weight and bias themselves; or "fresh": nothing.
        strength: 0 to 1: statistics are shrunk by so much towards those of the population; 1 is
            the batch norm in evaluation; see `surgery.Shrunk`. None is the plain norm.
        sample_input: run once before and once after, in evaluation, to compare outputs and to
            refuse layers with one value per statistic. A tuple is the arguments, a dict the named
            ones. Hooks see these runs.
        optimizer: made before; trains the new parameters in place of the old, state included.
        options: further arguments of the new layers, as eps.

    Raises:
        SurgeryError: no norm matched, or some cannot be replaced; the model is unchanged.
        LookupError: no norm is called like that.

    Logs:
        Norms without a rule and norms called as functions, which stay, as warnings; the report, as
        information.

    Warns:
        SurgeryWarning: outputs are no nearer to those before than zeros are, running statistics are
            of no data, tied parameters could not keep the function, the model was compiled, or the
            optimizer holds parameters that are not in the model.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> convert(model, "group:4", keep="affine")[1].num_groups
    4
    """
    planned = plan(
        model, spec, where=where, keep=keep, strength=strength, sample_input=sample_input, **options
    )
    report = planned.commit(sample_input, optimizer)
    found = list(planned.warnings)
    if report.agreement is not None and not report.agreement.relative <= POOR:
        found.append(f"{report.agreement}; look at print(surgery.plan(…)) before going on")
    for warning in found:
        warnings.warn(warning, SurgeryWarning, stacklevel=2)
    for line in planned.untouched():
        _log.warning(line)
    _log.info("%s", report)
    return report.model
