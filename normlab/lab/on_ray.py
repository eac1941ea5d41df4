"""Sweeps on a Ray cluster: an actor per slot has a worker of its machine train run after run.

Runs are written into one folder that all machines share. An actor that is lost, with its machine or
without, is replaced, and its run goes on from its last checkpoint.
"""

import dataclasses
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from normlab.lab import pool
from normlab.lab.compute import Compute
from normlab.lab.run_lock import RunError
from normlab.lab.runs import Run

NEEDED = (2, 52)  # earlier ones take commands from any page a browser shows: CVE-2025-62593
MAX_LOSSES = 3  # of one run's actors, before the run is to blame
_OWN = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # of a cluster made here
_WAIT = 0.5  # seconds an actor waits for news, and we for actors


class ClusterError(RuntimeError):
    """A Ray cluster that cannot run a sweep; says why."""


class Slot:
    """What an actor does: the `pool.Worker` of its machine, by paths instead of runs."""

    def __init__(
        self, compute: dict[str, Any], task: str, run_timeout: float | None, cores: int
    ) -> None:
        self._worker = pool.Worker(pool.compute_of(compute), task, run_timeout, cores=cores)
        self._refused: list[pool.End] = []

    def sees(self, file: str, content: str) -> bool:
        """Whether a file that the driver wrote is here, too."""
        try:
            return Path(file).read_text() == content
        except OSError:
            return False

    def start(self, path: str) -> None:
        try:
            self._worker.start(Run.open(Path(path)))
        except RunError as error:
            self._refused.append(pool.End("failed", str(error)))

    def news(self) -> list[Any]:
        if self._refused:
            return [self._refused.pop()]
        self._worker.wait(_WAIT)
        return self._worker.news()

    def interrupt(self) -> None:
        self._worker.interrupt()

    def stop(self) -> None:
        self._worker.stop()


class RayCrew:
    """Actors of a cluster; as many as there are runs, GPUs or cores, and jobs allow.

    Args:
        root: the folder of the runs.
        number: how many runs there are to train.
        ray: the module; tests have one of their own.

    Raises:
        ImportError: there is no Ray, or an old one.
        ClusterError: the machines do not share the folder, or have nothing to compute on.
    """

    def __init__(
        self,
        root: Path,
        number: int,
        compute: Compute,
        *,
        jobs: int | None = None,
        task: str = pool.TASK,
        run_timeout: float | None = None,
        ray: Any = None,
    ) -> None:
        self._ray, self._started_here = _connected(ray)
        self._root = root.resolve()
        resources = self._ray.cluster_resources()
        self._needs, slots = _share(resources, compute)
        if not slots:
            raise ClusterError(
                f"the Ray cluster has no {self._needs} for a run; ask for fewer --processes"
            )
        cores = max(1, int(resources.get("CPU", 1)) // slots)
        self._given = (dataclasses.asdict(compute), task, run_timeout, cores)
        self._size = min(number, slots, jobs or slots)
        self._idle: list[Any] = []  # actors
        self._runs: dict[Any, Run] = {}  # by actor
        self._calls: dict[Any, Any] = {}  # the actor by its outstanding call
        self._new: set[Any] = set()  # actors that have not answered yet
        self._losses: dict[str, int] = {}  # by the run's id
        self._said: list[tuple[Run, Any]] = []
        self._stopping = False
        self._seen, self._content = self._root / f".tmp-{secrets.token_hex(8)}", "normlab"
        self._seen.write_text(self._content)

    def has_room(self) -> bool:
        return len(self._runs) < self._size

    def start(self, run: Run) -> None:
        if self._idle:
            actor = self._idle.pop()
            actor.start.remote(str(run.path.resolve()))
            self._calls[actor.news.remote()] = actor
        else:
            actor = self._ray.remote(Slot).options(**self._needs).remote(*self._given)
            self._calls[actor.sees.remote(str(self._seen), self._content)] = actor
            self._new.add(actor)
        self._runs[actor] = run

    def news(self) -> list[tuple[Run, Any]]:
        found, self._said = self._said, []
        if not self._calls:
            return found
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_WAIT)
        for call in ready:
            actor = self._calls.pop(call)
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayActorError as error:
                self._new.discard(actor)
                found += self._lost(self._runs.pop(actor), error)
            else:
                found += self._answered(actor, answer)
        return found

    def interrupt(self) -> None:
        self._stopping = True
        for actor, run in list(self._runs.items()):
            if actor not in self._new:
                actor.interrupt.remote()
                continue
            del self._runs[actor]  # it waits for a machine to be free
            self._calls = {call: a for call, a in self._calls.items() if a != actor}
            self._ray.kill(actor)
            self._said.append((run, _recorded(run, "interrupted", signal=signal.SIGTERM)))

    def stop(self) -> None:
        for actor in (*self._runs, *self._idle):
            actor.stop.remote()
            self._ray.kill(actor)
        self._seen.unlink(missing_ok=True)
        if self._started_here:
            self._ray.shutdown()

    def _answered(self, actor: Any, answer: Any) -> list[tuple[Run, Any]]:
        run = self._runs[actor]
        if actor in self._new:
            if not answer:
                raise ClusterError(
                    f"{self._root} of this machine is not there on another one of the Ray cluster; "
                    "choose an --out on a file system they share"
                )
            self._new.remove(actor)
            actor.start.remote(str(run.path.resolve()))
            answer = []
        if answer and isinstance(answer[-1], pool.End):
            del self._runs[actor]
            self._idle.append(actor)
        else:
            self._calls[actor.news.remote()] = actor
        return [(run, message) for message in answer]

    def _lost(self, run: Run, error: Exception) -> list[tuple[Run, Any]]:
        """Start a run again whose actor is gone, or give it up."""
        run_id = run.experiment.id
        self._losses[run_id] = self._losses.get(run_id, 0) + 1
        if self._stopping:
            return [(run, _recorded(run, "interrupted", signal=signal.SIGTERM))]
        if self._losses[run_id] > MAX_LOSSES:
            cause = f"its actor was lost {MAX_LOSSES + 1} times: {error}"
            return [(run, _recorded(run, "failed", cause=cause))]
        self.start(run)
        return []


def _recorded(run: Run, state: str, **fields: Any) -> pool.End:
    try:
        run.set_status(state, **fields)
    except RunError as error:
        return pool.End("failed", str(error))
    return pool.End(state, fields.get("cause", ""))


def _connected(ray: Any = None) -> tuple[Any, bool]:
    """The module, and whether a cluster was started for this; else there is one, which is used."""
    address = os.environ.get("RAY_ADDRESS") or ("auto" if _is_running() else "local")
    own = address == "local"
    if own and "RAY_AUTH_MODE" not in os.environ:
        # its services listen on every interface, whatever they are told, but obey only this;
        # Ray reads it when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = ray or _imported()
    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, **(_OWN if own else {}), **quiet)
    except ConnectionError as error:
        raise ClusterError(f"no Ray cluster at {address}: {error}") from error
    return ray, own


def _imported() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise ImportError('--on ray needs ray: pip install "normlab[cluster]"') from None
    version = tuple(map(int, re.findall(r"\d+", ray.__version__)[:2]))
    if version < NEEDED:
        raise ImportError(
            f"ray {ray.__version__} is open to attacks by web pages (CVE-2025-62593); "
            'pip install "normlab[cluster]" brings 2.52 or newer'
        )
    return ray


def _is_running() -> bool:
    """Whether this machine is part of a cluster; the note of one that was killed may be left."""
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    if not (folder / "ray_current_cluster").exists():
        return False
    code = "import ray; ray.init(address='auto', logging_level='ERROR')"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _share(resources: dict[str, float], compute: Compute) -> tuple[dict[str, int], int]:
    """What one run needs of a cluster, and how many of them it holds."""
    gpus = compute.device in (None, "cuda") and resources.get("GPU", 0) > 0
    if gpus:
        needs = {"num_gpus": compute.processes, "num_cpus": 1}
        return needs, int(resources["GPU"] // compute.processes)
    cores = compute.processes * max(1, compute.workers or 0)
    return {"num_cpus": cores}, int(resources.get("CPU", 0) // cores)
