"""The epochs of a run as TensorBoard scalars, over samples seen.

Written with tensorboard's own records rather than by torch's SummaryWriter, which imports torch and
starts a thread for every run.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_installed() -> bool:
    """Whether events can be written; imports nothing."""
    return importlib.util.find_spec("tensorboard") is not None


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """What writes the numbers of an epoch into the folder, which is made with the first of them.

    Those of an earlier attempt that lie behind the first ones of this are hidden by TensorBoard:
    they came after the checkpoint that was resumed from.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    records = None

    def write(numbers: Mapping[str, float]) -> None:
        nonlocal records
        samples = int(numbers["samples"])
        if records is None:
            path.mkdir(exist_ok=True)
            records = RecordWriter(_new_file(path).open("wb"))
            add(file_version="brain.Event:2")
            add(step=samples, session_log=SessionLog(status=SessionLog.START))
        values = [Summary.Value(tag=name, simple_value=v) for name, v in numbers.items()]
        add(step=samples, summary=Summary(value=values))
        records.flush()

    def add(**fields: Any) -> None:
        assert records is not None
        records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    try:
        yield write
    finally:
        if records is not None:
            records.close()


def _new_file(path: Path) -> Path:
    """A name after those there: TensorBoard reads the files of a folder in the order of names."""
    attempt = len(list(path.iterdir()))
    return path / f"events.out.tfevents.{attempt:06d}.{os.getpid()}"
