"""What doctests may call without importing it, and what pytest does not collect."""

import importlib.util
from typing import Any

import pytest

# kernels whose compiler is not installed
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["normlab/ops/cuda/*"]


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> None:
    """torch, and every norm of the catalogue, in the examples of the catalogue."""
    if not request.node.nodeid.startswith("normlab/norms/"):
        return
    import torch

    from normlab import norms

    names: dict[str, Any] = request.getfixturevalue("doctest_namespace")
    names.update(torch=torch, **{name: getattr(norms, name) for name in norms.__all__})
