"""A run's folder: written while training, read ever after.

    experiment.json    what is run; written last, so a folder that has it is complete
    environment.json   versions and hardware of the process that trains
    status.json        new, running, finished, interrupted, diverged or failed
    metrics.jsonl      one event per line
    checkpoints/       see checkpoint.py
    lock               held by the process that trains
    claim              held by the sweep that has it trained
    tensorboard/       events, see tracking.py

Does not import torch, so that reports start quickly.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normlab.lab.environment import describe_environment, presentable
from normlab.lab.experiment import Experiment, ExperimentError, from_mapping
from normlab.lab.run_lock import RunError, RunInUse, locked, name_of, own_name

__all__ = ["STATES", "Run", "RunError", "RunInUse", "describe_environment", "find"]

STATES = ("new", "running", "finished", "interrupted", "diverged", "failed")

_FILES = ("experiment.json", "environment.json", "status.json", "metrics.jsonl", "checkpoints")
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")
_MAX_JSON = 50 * 2**20  # bytes


@dataclass(frozen=True)
class Run:
    """One experiment and the folder with everything it produced.

    Args:
        followers: called with every event that is logged, after it is written.
    """

    path: Path
    experiment: Experiment
    followers: list[Callable[[Mapping[str, Any]], None]] = field(
        default_factory=list, compare=False, repr=False
    )

    @classmethod
    def create(cls, root: Path, experiment: Experiment) -> "Run":
        """Make the folder root/experiment.name, or open it if this experiment is already there.

        Raises:
            RunError: something else is there.
        """
        run, is_new = cls(root / experiment.name, experiment), not root.exists()
        try:
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            if run.is_there():
                return run._checked_against_folder()
            others = sorted(p.name for p in run.path.iterdir() if not _is_ours(p.name))
            if others:
                raise RunError(
                    f"{run.path} is not a run and holds {others[0]!r}; choose another folder"
                )
            (run.path / "metrics.jsonl").touch()
            for folder in (root.parent, root) if is_new else (root,):
                sync_directory(folder)
        except OSError as error:
            raise RunError(f"{run.path}: cannot be made: {error.strerror}") from error
        try:
            # another process may be as far, and start to train: its status is not to be replaced
            _write_json(run.path / "status.json", _status("new"), keep=True)
            _write_json(run.path / "experiment.json", dataclasses.asdict(experiment), keep=True)
        except RunError:
            if not run.is_there():  # or its `lock` swept up our files
                raise
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in a folder.

        Raises:
            RunError: it holds none, or a damaged one.
        """
        file = path / "experiment.json"
        if not file.exists():
            raise RunError(f"{path} is not a run: it has no experiment.json")
        try:
            return cls(path, from_mapping(_read_json(file), str(file)))
        except ExperimentError as error:
            raise RunError(f"{error}; the file was changed after the run was made") from None

    def is_there(self) -> bool:
        """Whether its folder is complete."""
        return (self.path / "experiment.json").exists()

    def log(self, event: str, **fields: Any) -> None:
        """Append an event; numbers that are not finite become null, secrets are masked."""
        self.log_all(event, [fields])

    def log_all(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append an event for each row, at once, since each append waits for the disk."""
        written = [presentable({"event": event, **fields}) for fields in rows]
        lines = "".join(json.dumps(each, allow_nan=False) + "\n" for each in written)
        _append(self._metrics, lines.encode())
        for follow in self.followers:
            for each in written:
                follow(each)

    def events(self) -> list[dict[str, Any]]:
        """All events in their order; a half-written last line is left out with a warning.

        Raises:
            RunError: another line is damaged.
        """
        events, half = _parsed_lines(self._metrics)
        if half:
            warnings.warn(
                f"{self._metrics}:{half}: half-written and left out; the run was killed or goes on",
                stacklevel=2,
            )
        return events

    @property
    def num_events(self) -> int:
        """Complete lines of metrics.jsonl; store it with a checkpoint."""
        return _read(self._metrics).count(b"\n")

    def truncate(self, num_events: int) -> None:
        """Forget the events after the first `num_events`: those after the checkpoint resumed from.

        Raises:
            RunError: there are fewer.
        """
        *lines, half = _read(self._metrics).split(b"\n")
        if not 0 <= num_events <= len(lines):
            raise RunError(
                f"{self._metrics}: {len(lines)} events, but the checkpoint was written after "
                f"{num_events}; the file was changed or lost: delete the run and train again"
            )
        if half or len(lines) > num_events:
            kept = (line + b"\n" for line in lines[:num_events])
            _replace(self._metrics, b"".join(kept))

    def record_environment(self, device: str) -> None:
        """Write down where the run is computed; called by the process that computes it."""
        described = presentable(describe_environment(device))
        _write_json(self.path / "environment.json", described)

    @property
    def status(self) -> dict[str, Any]:
        """The state, and whatever was said with it."""
        file = self.path / "status.json"
        status = _read_json(file)
        if status.get("state") not in STATES:
            raise RunError(
                f"{file}: state {status.get('state')!r}, expected one of {', '.join(STATES)}"
            )
        return status

    def set_status(self, state: str, **fields: Any) -> None:
        """Replace the status."""
        if state not in STATES:
            raise RunError(f"state {state!r} is not possible; there are {', '.join(STATES)}")
        _write_json(self.path / "status.json", _status(state, **fields))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training this run.

        flock, on Linux and macOS: the kernel grants it to one process and frees it when that dies,
        so it is never stale and two takers cannot both win. The text in it only names the holder.

        Raises:
            RunInUse: another process holds it.
        """
        with locked(self.path, "lock") as descriptor:
            previous = os.pread(descriptor, 4096, 0)
            if previous:
                warnings.warn(
                    f"{self.path}: {name_of(previous)} was killed; taking the run over",
                    stacklevel=3,
                )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, own_name(), 0)
            for leftover in self.path.iterdir():
                if _TEMPORARY.fullmatch(leftover.name):
                    leftover.unlink(missing_ok=True)  # its writer may live, and be done with it
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keep other sweeps from having this run trained, and from removing it.

        A lock like `lock`, but of the process that drives a sweep, so that it can look at the state
        and start or pass over the run before another one looks.

        Raises:
            RunInUse: another sweep has it, or a process trains it.
        """
        with locked(self.path, "claim"):
            with locked(self.path, "lock"):
                pass
            yield

    def __reduce__(self) -> tuple[Any, ...]:
        return Run, (self.path, self.experiment)  # followers stay in their process

    def _checked_against_folder(self) -> "Run":
        there = Run.open(self.path).experiment
        if there != self.experiment:
            raise RunError(
                f"{self.path} holds another experiment, {there.name}; choose another folder"
            )
        return self

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def find(root: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs in a folder and, with the reason, the damaged ones; both by name.

    Folders without any file of a run are passed over.

    Raises:
        RunError: there is no such folder.
    """
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise RunError(f"{root}: cannot be read: {error.strerror}") from error
    runs, damaged = [], []
    for path in folders:
        if not any((path / name).exists() for name in _FILES):
            continue
        try:
            run = Run.open(path)
            _parsed_lines(run._metrics)
            _ = run.status
        except RunError as error:
            damaged.append((path, str(error)))
        else:
            runs.append(run)
    return runs, damaged


def _is_ours(name: str) -> bool:
    return name in {*_FILES, "lock", "claim", "tensorboard"} or bool(_TEMPORARY.fullmatch(name))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    data = _read(path)
    if len(data) > _MAX_JSON:
        raise RunError(f"{path}: {len(data)} bytes, at most {_MAX_JSON} are read")
    return _parsed(data, str(path))


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where}: damaged, not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise RunError(f"{where}: damaged, expected a JSON object")
    return parsed


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number of JSON")
    return number


def _parsed_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The events of metrics.jsonl and the number of its half-written last line, if any."""
    lines = _read(path).split(b"\n")
    half = lines.pop()  # empty after a complete line
    events = []
    for number, line in enumerate(lines, start=1):
        event = _parsed(line, f"{path}:{number}")
        if not isinstance(event.get("event"), str):
            raise RunError(f'{path}:{number}: damaged, expected "event" and its name')
        events.append(event)
    return events, len(lines) + 1 if half else None


def _append(path: Path, line: bytes) -> None:
    """Add a line; a half-written one before it is removed, and this one if it does not fit."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            end = _end_of_lines(descriptor)
            os.ftruncate(descriptor, end)
            try:
                rest = line
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(
            f"{path}: an event of {len(line)} bytes was not written: {error.strerror}"
        ) from error


def _end_of_lines(descriptor: int) -> int:
    """The size of a file without its last line if that has no end."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    return os.pread(descriptor, size, 0).rfind(b"\n") + 1


def _status(state: str, **fields: Any) -> dict[str, Any]:
    updated = datetime.now(UTC).isoformat(timespec="seconds")
    return presentable({"state": state, **fields, "updated": updated})


def _write_json(path: Path, value: Mapping[str, Any], *, keep: bool = False) -> None:
    _replace(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n", keep=keep)


def _replace(path: Path, data: bytes, *, keep: bool = False) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the new one.

    Args:
        keep: leave a file alone that is there, even if another process makes it right now.
    """
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep and _linked(temporary, path):
            temporary.unlink()
        else:
            os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path}: {len(data)} bytes were not written: {error.strerror}; the old file is intact"
        ) from error


def sync_directory(path: Path) -> None:
    """Make the names in a folder outlast a power loss, as checkpoints do that rely on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file a second name unless that exists; False where the file system has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        return path.exists()
    return True
