"""Processes of this machine that train run after run, and what becomes of them.

They are programs of their own that speak in lines of JSON, so that one that is killed, hangs or
runs out of memory takes nothing with it, and each ends when the one that drives it is gone.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from normlab.lab import tracking
from normlab.lab.compute import Compute
from normlab.lab.run_lock import RunError, RunInUse
from normlab.lab.runs import Run

TASK = "normlab.lab.train:train"  # what trains a run: module and function
REPORT_SECONDS = 0.2  # at least, between two messages of a worker about its progress
_TICK = 0.5  # seconds between looks at whether processes live


@dataclasses.dataclass(frozen=True)
class End:
    """How a run has ended in this attempt.

    Args:
        state: as in its status, or IN_USE where another process trains it.
        cause: why it failed.
        oom: whether memory ran out, so that its process had better be replaced.
    """

    state: str
    cause: str = ""
    oom: bool = False


IN_USE = "in use"


class Crew(Protocol):
    """Who trains the runs of a sweep: so many at once, one after the other."""

    def has_room(self) -> bool:
        """Whether a run can be started."""

    def start(self, run: Run) -> None:
        """Have a run trained."""

    def news(self) -> list[tuple[Run, Any]]:
        """Progress and ends of runs; waits for some, but not long."""

    def interrupt(self) -> None:
        """Ask every run to stop after the step at hand."""

    def stop(self) -> None:
        """End all processes."""


class Pool:
    """Workers on this machine: one per GPU, or as many as the cores allow."""

    def __init__(
        self,
        compute: Compute,
        number: int,
        *,
        jobs: int | None = None,
        task: str = TASK,
        run_timeout: float | None = None,
    ) -> None:
        """Workers for so many runs, which they start when they are needed."""
        gpus = _gpus(compute)
        size = min(number, jobs or (len(gpus) if gpus else _fitting(compute)))
        shares = [gpus[i % len(gpus)] if gpus else None for i in range(size)]
        cores = max(1, num_cores() // size)
        self._workers = [
            Worker(compute, task, run_timeout, cores=cores, gpus=share) for share in shares
        ]

    def has_room(self) -> bool:
        return any(worker.run is None for worker in self._workers)

    def start(self, run: Run) -> None:
        next(worker for worker in self._workers if worker.run is None).start(run)

    def news(self) -> list[tuple[Run, Any]]:
        busy = [worker for worker in self._workers if worker.run is not None]
        wait([worker.messages for worker in busy if worker.messages], timeout=_TICK)
        return [
            (run, message)
            for worker in busy
            if (run := worker.run) is not None
            for message in worker.news()
        ]

    def interrupt(self) -> None:
        for worker in self._workers:
            worker.interrupt()

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()


class Worker:
    """A process that trains runs one after the other; started when it is first needed.

    Args:
        cores: its share of the machine, for processes that decode its images.
        gpus: those it sees, as in CUDA_VISIBLE_DEVICES; None: all.
    """

    def __init__(
        self,
        compute: Compute,
        task: str,
        run_timeout: float | None,
        *,
        cores: int,
        gpus: str | None = None,
    ) -> None:
        self._given = json.dumps({"compute": dataclasses.asdict(compute), "task": task})
        self._timeout, self._cores, self._gpus = run_timeout, cores, gpus
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False
        self.messages: Any = None  # the end of a pipe, while there is a process
        self.run: Run | None = None

    def start(self, run: Run) -> None:
        """Have a run trained; there must be none at work."""
        assert self.run is None
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._spawn()
        assert self._process is not None
        assert self._process.stdin is not None
        self.run, self._heard = run, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # its death is news
            self._process.stdin.write(json.dumps(str(run.path)).encode() + b"\n")
            self._process.stdin.flush()

    def wait(self, seconds: float) -> None:
        """Return when something is said, or after so many seconds."""
        wait([self.messages] if self.messages else [], timeout=seconds)

    def news(self) -> list[Any]:
        """What was said since the last call: progress, or the End of the run at work."""
        if self.run is None:
            return []
        assert self._process is not None
        died = self._process.poll() is not None  # before the last words are read
        found = self._heard_messages()
        if found:
            self._heard = time.monotonic()
        if not any(isinstance(message, End) for message in found):
            silence = time.monotonic() - self._heard
            if died:
                found.append(self._recorded(*self._death()))
            elif self._timeout is not None and silence > self._timeout:
                self.stop()
                cause = f"said nothing for {self._timeout:g} seconds (--run-timeout)"
                found.append(self._recorded("failed", {"cause": cause}))
        last = found[-1] if found else None
        if isinstance(last, End):
            self.run = None
            if last.oom:
                self.stop()
        return found

    def interrupt(self) -> None:
        """Ask the run at work to stop after the step at hand."""
        self._asked_to_stop = True
        if self.run is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End the process and all it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its loaders and ranks, too
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        self.messages.close()
        self.messages = None

    def _spawn(self) -> None:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        environment = {
            **os.environ,
            "NORMLAB_CORES": str(self._cores),
            "OMP_NUM_THREADS": "1",  # the same for any number of jobs, since it changes last bits
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        if self._gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus
        code = f"from normlab.lab.pool import work; work({theirs})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, self._given], stdin=subprocess.PIPE, pass_fds=[theirs],
            env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.messages = os.fdopen(ours, "rb", buffering=0)
        self._half = b""

    def _heard_messages(self) -> list[Any]:
        while data := self.messages.read(2**16):  # None where there is nothing yet
            self._half += data
        *lines, self._half = self._half.split(b"\n")
        return [_understood(line) for line in lines]

    def _death(self) -> tuple[str, dict[str, Any]]:
        """The state and what to say of a run whose process is gone without a word."""
        assert self._process is not None
        code = self._process.returncode
        self.stop()
        if self._asked_to_stop and code == -signal.SIGTERM:  # before training had begun
            return "interrupted", {"signal": signal.SIGTERM}
        if code == -signal.SIGKILL:
            return "failed", {
                "cause": "out of memory, most likely: its process was ended by SIGKILL; try a "
                "smaller batch, or fewer jobs",
                "oom": True,
            }
        if code < 0:
            return "failed", {"cause": f"its process was ended by {signal.Signals(-code).name}"}
        return "failed", {"cause": f"its process ended with exit code {code}"}

    def _recorded(self, state: str, fields: dict[str, Any]) -> End:
        assert self.run is not None
        cause = fields.get("cause", "")
        try:
            there = self.run.status["state"]
            if there in ("finished", "diverged"):  # and then died
                return End(there)
            self.run.set_status(state, **fields)
        except RunError as error:
            cause = f"{cause}; {error}"
        return End(state, cause)


def compute_of(fields: dict[str, Any]) -> Compute:
    """The settings described by JSON, which has lists for tuples."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Compute(**given)


def _understood(line: bytes) -> Any:
    message = json.loads(line)
    if "progress" in message:
        return SimpleNamespace(**message["progress"])
    return End(**message)


def work(descriptor: int) -> None:
    """The life of a worker: paths come in by stdin; progress and ends go out by a pipe."""
    # Ctrl-C is for the process that drives; it passes it on as SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = json.loads(sys.argv[1])
    compute = compute_of(given["compute"])
    paths: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(paths,), daemon=True).start()
    out = os.fdopen(descriptor, "wb", buffering=0)
    with contextlib.suppress(BrokenPipeError):
        while True:
            end = _trained(Path(paths.get()), compute, given["task"], out)
            _say(out, dataclasses.asdict(end))


def _listen(paths: "queue.SimpleQueue[str]") -> None:
    """Hand on what the driver says; once it is gone, end this process and all it has started."""
    for line in sys.stdin.buffer:
        paths.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


def _trained(path: Path, compute: Compute, task: str, out: Any) -> End:
    """How a run has ended, which is recorded in its folder."""
    last = 0.0

    def report(progress: Any) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            _say(out, {"progress": dataclasses.asdict(progress)})

    try:
        run = Run.open(path)
    except RunError as error:
        return End("failed", str(error))
    try:
        module, _, name = task.partition(":")
        train = getattr(importlib.import_module(module), name)
        with tracking.following(run, compute.track):
            return End(train(run, compute=compute, report=report))
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except RunInUse:
        return End(IN_USE)
    except (Exception, SystemExit) as error:
        return _failed(run, error)


def _failed(run: Run, error: BaseException) -> End:
    """Record an error that the task has not, or not fully."""
    memory = is_out_of_memory(error)
    cause = f"{type(error).__name__}: {error}"
    if memory:
        cause = f"out of memory, try a smaller batch: {cause}"
    try:
        status = run.status
        if memory or status["state"] != "failed":
            run.set_status("failed", cause=cause, **({"oom": True} if memory else {}))
        cause = run.status.get("cause", cause)
    except RunError as unwritten:
        cause = f"{cause}; {unwritten}"
    return End("failed", cause, memory)


@contextlib.contextmanager
def memory_recorded(run: Run) -> Iterator[None]:
    """Say in the status of a run that memory ran out, where that is what ends it."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            _failed(run, error)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of a GPU."""
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or said


# what torch says in errors without a type of their own
_ALLOCATORS = ("DefaultCPUAllocator: can't allocate", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")


def _gpus(compute: Compute) -> list[str]:
    """For each run that fits on the GPUs at once, those it sees; none where the CPU computes."""
    if compute.device not in (None, "cuda"):
        return []
    import torch

    number = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = seen if len(seen) == number else [str(i) for i in range(number)]
    each = min(compute.processes, number) or 1
    return [",".join(names[i : i + each]) for i in range(0, number - each + 1, each)]


def _fitting(compute: Compute) -> int:
    """Runs that have a core for each of their processes."""
    if compute.device not in (None, "cpu"):
        return 1
    return max(1, num_cores() // (compute.processes * max(1, compute.workers or 0)))


def num_cores() -> int:
    """Cores this process may use; NORMLAB_CORES says so, where several share a machine."""
    if os.environ.get("NORMLAB_CORES", "").isdigit():
        return max(1, int(os.environ["NORMLAB_CORES"]))
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
