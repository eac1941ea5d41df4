"""What doctests may call without importing it, and what pytest does not collect."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

# kernels whose compiler is not installed
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["normlab/ops/cuda/*"]


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch, and every norm of the catalogue, in the examples of the catalogue alone."""
    if not request.node.nodeid.startswith("normlab/norms/"):
        yield
        return
    import torch

    from normlab import norms

    names: dict[str, Any] = request.getfixturevalue("doctest_namespace")  # one for all tests
    names.update(torch=torch, **{name: getattr(norms, name) for name in norms.__all__})
    yield
    names.clear()
