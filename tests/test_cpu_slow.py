"""Every kernel there is, against the definition: minutes of compiling from a cold cache."""

import pytest
import torch
from test_cpu_kernels import CASES, Kind, assert_right, count_launches, define, make, run

from normlab import reference
from normlab.ops import ACTIVATIONS

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KINKS = {"relu": [0.0], "leaky_relu": [0.0], "hardswish": [-3.0, 3.0]}


@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "with residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["planes", "rows", "lines"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_kernel_follows_the_definition(activation, family, dtype, has_residual, monkeypatch):
    launches = count_launches(monkeypatch)
    kind = Kind(dtype, activation, has_residual)
    cases = [case for case in CASES.values() if case.family == family]
    for case in cases:
        given = make(case, kind)
        z = reference.normalize(
            *given[:1], case.pattern, *given[1:3], residual=given.residual, center=case.center
        )
        near = sum((z - kink).abs() < 1e-4 for kink in KINKS.get(activation, [9e9]))
        given = given._replace(dy=given.dy * ~near.bool())
        _, *found = run(given, case, kind)
        truth = define(given, case, kind)
        if has_residual and activation == "none":  # its gradient is dy itself, and not computed
            found, truth = found[:4], truth[:4]
        assert_right(found, truth, kind)
    assert len(launches) == 2 * len(cases)
