"""The processes that compute one run together: who they are, how they start, what they add up.

Each computes its part of every batch. The first, rank 0, is the one that was asked to train: it
alone writes, and starts the others unless torchrun has. They meet through a file, or where torchrun
says, and speak over the loopback device if all are on this machine.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from normlab.lab.compute import Compute, ComputeError

_PATIENCE = 5  # seconds for another process to end by itself, or to have said why it did
_REASON = "reason"  # what a process says to the others, in the store, before it ends


class ProcessError(RuntimeError):
    """Another process of a run ended; says which and why."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Args:
        rank: of this one, 0 for the first.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes, in float64."""
        if self.size == 1:
            return values
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=dtype, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are true in any process."""
        return [count > 0 for count in self.sum([float(flag) for flag in flags])]

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in their order; text, numbers, lists and dicts of them."""
        if self.size == 1:
            return [value]
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        ranks = range(self.size)
        lengths = [int(n) for n in self.sum([len(data) * (r == self.rank) for r in ranks])]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded, device=self.device) for _ in ranks]
        distributed.all_gather(parts, padded.to(self.device))
        return [json.loads(bytes(p[:n].tolist())) for p, n in zip(parts, lengths)]

    def average(self, tensors: Iterable[Tensor], share: float) -> None:
        """Replace tensors, the same ones in every process, by their mean over the processes.

        Args:
            share: how much those of this one count, all together 1.
        """
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        joined = torch.cat([t.detach().flatten() for t in tensors]) * share
        distributed.all_reduce(joined)
        for tensor, mean in zip(tensors, joined.split([t.numel() for t in tensors])):
            tensor.copy_(mean.view_as(tensor))


def find_device(name: str | None, place: int = 0) -> torch.device:
    """The device called so; None is a GPU if there is any, for the `place`-th process its own."""
    if name is not None and name != "cuda":
        return torch.device(name)
    gpus = torch.cuda.device_count()
    if gpus:  # a launcher may show each process one of them only
        return torch.device("cuda", place % gpus)
    return torch.device("cpu" if name is None else name)


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher that speaks like it, has started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def follows() -> bool:
    """Whether a launcher has started this process and it is not the first."""
    return under_torchrun() and os.environ["RANK"] != "0"


@contextlib.contextmanager
def together(compute: Compute, follow: Callable[..., None], *given: Any) -> Iterator[Group]:
    """The group of this process while entered; starts the others where no launcher has.

    Args:
        follow: a function of a module, which every other process calls as follow(*given, group).

    Raises:
        ProcessError: another process ended, or said nothing, before the work was done.
    """
    if under_torchrun():
        rank = int(os.environ["RANK"])
        place = int(os.environ.get("LOCAL_RANK", rank))
        with _joined(rank, int(os.environ["WORLD_SIZE"]), place, compute, None) as group:
            yield group
    elif compute.processes == 1:
        yield Group(0, 1, find_device(compute.device))
    else:
        with _started(compute, follow, given) as group:
            yield group


@contextlib.contextmanager
def _started(compute: Compute, follow: Callable[..., None], given: tuple) -> Iterator[Group]:
    size, threads = compute.processes, torch.get_num_threads()
    _check_gpus(compute)
    folder = Path(tempfile.mkdtemp(prefix="normlab-"))  # of mode 0700
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = [
        context.Process(target=_follow, args=(rank, folder, compute, follow, given))
        for rank in range(1, size)
    ]
    try:
        for other in others:
            other.start()
        torch.set_num_threads(_threads(size))
        store = distributed.FileStore(str(folder / "store"), size)
        try:
            with _joined(0, size, 0, compute, store) as group:
                yield group
        except RuntimeError as error:
            if _is_echo(error):
                raise ProcessError(_cause(others, store, compute.timeout)) from error
            raise
        for other in others:
            other.join(_PATIENCE)
    finally:
        torch.set_num_threads(threads)
        for other in others:
            if other.pid is not None:
                other.kill()
                other.join()
        shutil.rmtree(folder, ignore_errors=True)


def _check_gpus(compute: Compute) -> None:
    """Each process on this machine needs a GPU of its own, or none may have one."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < compute.processes and compute.device in (None, "cuda"):
        raise ComputeError(
            f"{compute.processes} processes need as many GPUs, and there are {gpus}; "
            f"use --processes {gpus}, or --device cpu"
        )


def _follow(
    rank: int, folder: Path, compute: Compute, follow: Callable[..., None], given: tuple
) -> None:
    """The life of a process that another one has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the work begins, and obeys it
    torch.set_num_threads(_threads(compute.processes))
    store = distributed.FileStore(str(folder / "store"), compute.processes)
    try:
        with _joined(rank, compute.processes, rank, compute, store) as group:
            follow(*given, group)
    except Exception:
        sys.exit(1)  # what it was has been said


@contextlib.contextmanager
def _joined(rank: int, size: int, place: int, compute: Compute, store: Any) -> Iterator[Group]:
    """A member of the group; an error of its own is said to the others before it ends."""
    device = find_device(compute.device, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if store is not None:  # all are here, so that no word of theirs has to leave the machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size,
            # longer than images are waited for, so that the process that lacks them says so first
            timeout=timedelta(seconds=compute.timeout + _PATIENCE),
        )  # fmt: skip
        if store is None:  # torchrun's are one group until they end, for one training or several
            atexit.register(distributed.destroy_process_group)
    known = store if store is not None else distributed.distributed_c10d._get_default_store()
    try:
        yield Group(rank, size, device)
    except Exception as error:
        if not _is_echo(error) and not known.check([_REASON]):
            known.set(_REASON, f"process {rank} of 0 to {size - 1}: {_said(error)}")
        raise
    finally:
        if store is not None:
            distributed.destroy_process_group()


def _cause(others: list[Any], store: Any, timeout: int) -> str:
    """Why a collective failed in the first process: what another one said, or how it ended."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and all(other.is_alive() for other in others):
        time.sleep(0.05)
    if store.check([_REASON]):
        return store.get(_REASON).decode()
    for rank, other in enumerate(others, start=1):
        if other.exitcode is not None and other.exitcode < 0:
            name = signal.Signals(-other.exitcode).name
            hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
            return f"process {rank} of 0 to {len(others)} was ended by {name}{hint}"
    return f"another process said nothing for {timeout} seconds, or ended without a word"


def _is_echo(error: Exception) -> bool:
    """Whether an error only says that another process is gone, or silent."""
    of_torch = isinstance(error, distributed.DistError)
    return of_torch or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _threads(size: int) -> int:
    """Threads of arithmetic for each of so many processes on this machine."""
    return max(1, torch.get_num_threads() // size)
