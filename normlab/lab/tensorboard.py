"""The epochs of a run as TensorBoard scalars, over samples seen, if NORMLAB_TENSORBOARD=1."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def writer(path: Path) -> Callable[[Mapping[str, Any]], None] | None:
    """What writes an event into the folder, or None where nobody asked: the import takes seconds.

    Raises:
        ImportError: tensorboard is wanted and not installed.
    """
    if os.environ.get("NORMLAB_TENSORBOARD") != "1":
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            'NORMLAB_TENSORBOARD=1 needs tensorboard: pip install "normlab[lab]"'
        ) from None
    summary = SummaryWriter(str(path))

    def write(event: Mapping[str, Any]) -> None:
        if "samples" not in event:
            return
        for name, value in event.items():
            if isinstance(value, int | float):
                summary.add_scalar(name, value, event["samples"])
        summary.flush()

    return write
