"""What a run may tell about the machine: versions and hardware, no secrets and no home folder."""

import contextlib
import importlib.metadata
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_environment(device: str = "cpu") -> dict[str, Any]:
    """What results and speed depend on, and nothing that tells whose machine it is."""
    torch = sys.modules.get("torch")  # not imported for this
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "normlab": _version("normlab"),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads() if torch else None,
        "device": device,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        names = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if names:
            return names[1]
    return platform.processor() or platform.machine()


def presentable(value: Any, name: str = "") -> Any:
    """Strict JSON without secrets: no NaN, no passwords, the home folder as ~."""
    if isinstance(value, Mapping):
        return {str(k): presentable(v, name=f"{name} {k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [presentable(v, name=name) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return "***" if _SECRET_NAME.search(name) else _without_secrets(value)
    return value


def _without_secrets(text: str) -> str:
    text = _URL.sub(r"\1\2", text)
    text = _SECRET_TEXT.sub(r"\1***", text)
    home = os.path.expanduser("~")
    if len(home) < 2:  # "/" in some containers
        return text
    return re.sub(re.escape(home) + r"(?![\w.-])", "~", text)


_SECRET_NAME = re.compile(r"token|secret|password|key|credential", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"""(\w*(?:token|secret|password|credential|api_?key)\w*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|\S+)""",
    re.IGNORECASE,
)
_URL = re.compile(r"""\b([a-z][a-z0-9+.-]*://)(?:[^\s/@]*@)?([^\s?#"'<>]*)(?:[?#][^\s"'<>]*)?""")
