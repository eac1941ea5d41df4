"""What doctests may call without importing it, what is not collected, what is said at the end."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

# kernels whose compiler is not installed
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["normlab/ops/cuda/*"]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What failed is said also where an error of pytest's own ends the session, as a full disk
    does; pytest would say the number only."""
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == pytest.ExitCode.INTERNAL_ERROR and reporter is not None:
        config.hook.pytest_terminal_summary(
            terminalreporter=reporter, exitstatus=exitstatus, config=config
        )


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
