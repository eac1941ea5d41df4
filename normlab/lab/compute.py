"""How runs are computed: where, by how many processes, how fast; not what they find.

Imports neither torch nor data: the command line builds its flags from these fields.
"""

from dataclasses import dataclass

TRACKERS = ("tensorboard", "trackio", "wandb")


class ComputeError(ValueError):
    """A way of computing that is not possible here; says what is."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a run is computed. Its result is the same for all of these, but for rounding.

    Raises:
        ComputeError: a number out of its range.
    """

    device: str | None = None
    """cpu, cuda, cuda:N or mps; None: a GPU if there is any."""
    processes: int = 1
    """Processes that share every batch of a run."""
    workers: int | None = None
    """Processes that fetch and decode images for each of these; None: one per core that is left
    where images are decoded, none where they are in memory."""
    timeout: int = 120
    """Seconds without an image, or a word of another process, after which a run gives up."""
    skip_bad: int = 0
    """Unreadable images that may be passed over; each is recorded."""
    channels_last: bool = False
    """Keep channels next to each other in memory."""
    compile: bool = False
    """Let torch.compile generate code for the network."""
    track: tuple[str, ...] = ()
    """Trackers told about every epoch, besides the run's own files: tensorboard, trackio, wandb."""
    allow_change: tuple[str, ...] = ()
    """Conditions that may be others when a run goes on: torch, device, processes, images."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ComputeError(f"{name} must be {low} to {high}, got {value}")
        unknown = [name for name in self.track if name not in TRACKERS]
        if unknown:
            raise ComputeError(f"no tracker {unknown[0]!r}; there are {', '.join(TRACKERS)}")


_RANGES = {
    "processes": (1, 2**16),
    "workers": (0, 1024),
    "timeout": (1, 86_400),
    "skip_bad": (0, 2**40),
}
