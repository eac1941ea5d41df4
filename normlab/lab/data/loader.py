"""Batches fetched by other processes, ahead of time; what goes wrong there is said here."""

import os
import signal
import tempfile
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Listener
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from normlab.lab.data.dataset import DataError, Dataset

_AHEAD = 2  # batches that each worker has in hand or ready
# what to do where a worker was killed by a signal
_ADVICE = defaultdict(
    str,
    SIGKILL="; if nobody killed it, memory ran out: use fewer --workers",
    SIGBUS="; shared memory, /dev/shm, is full: use fewer --workers, or make it larger",
)


class Source(Protocol):
    """Anything that can be asked for batches by place, in any process."""

    def __getitem__(self, place: Any) -> Any:
        """The batch at a place."""


def stream(
    source: Source,
    places: Iterable[Any],
    *,
    workers: int,
    timeout: int = 120,
    pin_memory: bool = False,
) -> Generator[Any, None, None]:
    """`source[place]` for every place, in order.

    Args:
        workers: processes that fetch ahead, two batches each, until the last place; 0: this one
            fetches. They end when the iterator is closed.
        timeout: seconds without a batch after which the workers are given up.
        pin_memory: copy what workers fetch to memory that a GPU reads faster.

    Raises:
        DataError: that of the source; a worker was killed; none has sent anything for so long; or
            none could, since the temporary folder is full or its name too long.

    >>> list(stream([10, 11, 12], [2, 0], workers=0))
    [12, 10]
    """
    if workers == 0:
        for place in places:
            yield source[place]
        return
    _check_sockets()
    waiting: deque[Any] = deque()
    loader: DataLoader[Any] = DataLoader(
        _Carefully(source),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_noted(places, waiting),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=_AHEAD,
        timeout=timeout,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # or starting workers would draw from torch's own
    )
    batches: Any = iter(loader)
    _gate.install()
    try:
        while True:
            try:
                with _gate:
                    batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                raise _explained(error, waiting, batches._workers, timeout) from error
            if isinstance(batch, DataError):
                raise batch
            waiting.popleft()
            yield batch
    finally:
        for worker in batches._workers:
            worker.terminate()  # one that hangs would be waited for
        batches._shutdown_workers()


def _check_sockets() -> None:
    """Workers send through sockets in the temporary folder; one that cannot drops its images."""
    try:
        Listener().close()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise DataError(
            f"processes that read images cannot send them through the temporary folder {folder} "
            f"({len(folder)} characters): {error}; set TMPDIR to a folder with room and a name of "
            "at most 70 characters, or use --workers 0"
        ) from error


def num_workers(dataset: Dataset, wanted: int | None, processes: int = 1) -> int:
    """Workers for each of several processes.

    Args:
        wanted: None: none for images in memory, else one for each core that is left, at least one.
    """
    if wanted is not None:
        return wanted
    if isinstance(dataset.images, Tensor):
        return 0
    return max(1, _cores() // processes - 1)


def _cores() -> int:
    share = os.environ.get("NORMLAB_CORES", "")  # of a run beside others, see pool.py
    if share.isdigit():
        return max(1, int(share))
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Carefully:
    """Sends errors as values: torch would wrap them in the text of a traceback."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, place: Any) -> Any:
        try:
            return self._source[place]
        except DataError as error:
            return DataError(str(error))
        except Exception as error:  # a fault of someone's source
            said = DataError(f"batch {place} was not fetched: {type(error).__name__}: {error}")
            said.add_note(traceback.format_exc())
            return said


def _noted(places: Iterable[Any], waiting: deque[Any]) -> Iterator[Any]:
    for place in places:
        waiting.append(place)
        yield place


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides


def _explained(
    error: RuntimeError, waiting: Iterable[Any], workers: Iterable[Any], timeout: int
) -> Exception:
    batches = "while waiting for batches " + ", ".join(str(place) for place in waiting)
    if "timed out" in str(error):
        return DataError(
            f"no images came for {timeout} seconds, {batches}; is the disk or network drive "
            "stuck? Give it more time by --timeout"
        )
    dead = [worker for worker in workers if not worker.is_alive()]
    if not dead:
        return error
    code = dead[0].exitcode
    if code >= 0:
        return DataError(f"a process that reads images ended with code {code}, {batches}")
    name = signal.Signals(-code).name
    return DataError(f"a process that reads images was killed by {name}, {batches}{_ADVICE[name]}")


class _Gate:
    """Lets torch's SIGCHLD handler raise while a batch is waited for, and only then.

    It raises wherever the main thread is when a worker dies, in the middle of a step or of a
    checkpoint. What it would have said is asked for when the next batch is.
    """

    def __init__(self) -> None:
        self._torch: Callable[..., Any] | None = None
        self._open = self._missed = False

    def install(self) -> None:
        """Stand before torch's handler, which is there once any workers are."""
        current = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if not callable(current) or current == self._handle:
            return
        if threading.current_thread() is threading.main_thread():
            self._torch = current
            signal.signal(signal.SIGCHLD, self._handle)

    def __enter__(self) -> None:
        if self._missed and self._torch:
            self._missed = False
            self._torch(signal.SIGCHLD, None)
        self._open = True

    def __exit__(self, *_: Any) -> None:
        self._open = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._open and self._torch:
            self._torch(number, frame)
        else:
            self._missed = True


_gate = _Gate()
