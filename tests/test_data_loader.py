"""Batches fetched by other processes: the same ones, and what is said when a process fails."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from normlab.lab.data import loader
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.loader import num_workers, stream
from normlab.lab.data.views import Resampled

IMAGES = torch.arange(24 * 3 * 8 * 8).remainder(251).to(torch.uint8).reshape(24, 3, 8, 8)
DATA = Dataset(IMAGES, torch.arange(24), tuple(map(str, range(24))))


def fetched(workers, augment="imagenet"):
    source = Batches(DATA, 5, seed=0, augment=augment)
    return list(stream(source, source.places((0, 1), 3), workers=workers))


@pytest.mark.parametrize("augment", ["crop_flip", "imagenet"])
def test_workers_change_nothing(augment):
    alone = fetched(0, augment)
    assert len(alone) == 3 + 4 + 4
    for workers in (1, 2):
        for one, other in zip(fetched(workers, augment), alone, strict=True):
            assert other.skipped == one.skipped == ()
            for a, b in zip(one[:4], other[:4]):
                assert a is b is None or torch.equal(a, b)


def test_workers_leave_torchs_random_numbers_alone():
    torch.manual_seed(0)
    fetched(1)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


class Trouble:
    """Fetches its process, and does something at place 3."""

    def __init__(self, happen):
        self.happen = happen

    def __getitem__(self, place):
        if place == 3:
            self.happen()
        return place, os.getpid(), torch.get_num_threads()


def _raise():
    raise DataError("cat/x.jpg is empty (0 bytes); replace or remove it (image 7 of its set)")


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _out_of_shared_memory():
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGBUS)


def _exit():
    os._exit(3)


def _hang():
    time.sleep(60)


TROUBLE = {
    "F09: raises": (_raise, r"^cat/x.jpg is empty \(0 bytes\); .* \(image 7 of its set\)$"),
    "F09: killed": (
        _kill,
        r"^a process that reads images was killed by SIGKILL, while waiting for batches \d.*"
        "memory ran out: use fewer --workers$",
    ),
    "F09: no shared memory": (
        _out_of_shared_memory,
        r"was killed by SIGBUS, while .*; shared memory, /dev/shm, is full: use fewer --workers",
    ),
    "F09: exits": (_exit, "^a process that reads images ended with code 3, while waiting"),
    "F09: hangs": (
        _hang,
        "^no images came for 2 seconds, while waiting for batches 3, 4, 5, 6; is the disk",
    ),
}


@pytest.mark.parametrize(("happen", "message"), TROUBLE.values(), ids=TROUBLE)
def test_trouble_in_a_worker_is_one_sentence(happen, message):
    with pytest.raises(DataError, match=message):
        list(stream(Trouble(happen), range(8), workers=2, timeout=2))


def test_temporary_folder_with_too_long_a_name_is_said_before_workers_start(monkeypatch):
    """Else each drops its images, and that none come is all that is seen, two minutes later."""
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: "/tmp/" + 100 * "x")
    with pytest.raises(DataError, match=r"temporary folder .*too long; set TMPDIR to a folder"):
        next(stream(Trouble(_raise), range(8), workers=1))


def _gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("happen", [_raise, _hang], ids=["error", "hang"])
def test_closing_early_ends_the_workers(happen):
    batches = stream(Trouble(happen), range(8), workers=2)
    pids = {next(batches)[1] for _ in range(2)}
    batches.close()
    assert len(pids) == 2
    assert all(map(_gone, pids))


def test_worker_killed_between_batches_is_said_at_the_next_and_not_before():
    batches = stream(Trouble(_raise), [0] * 50, workers=1)
    _, pid, _ = next(batches)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)  # torch would raise here, wherever this process is
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        for _ in batches:
            pass


def test_streams_side_by_side_and_one_after_the_other():
    train, judge = (stream(Trouble(_raise), [0, 1, 2, 4], workers=1) for _ in range(2))
    pairs = [(a[0], b[0]) for a, b in zip(train, judge, strict=True)]
    assert pairs == [(0, 0), (1, 1), (2, 2), (4, 4)]
    assert [place for place, _, _ in stream(Trouble(_raise), [5, 6], workers=1)] == [5, 6]


def test_workers_compute_with_one_thread_and_are_other_processes():
    found = list(stream(Trouble(_raise), [0, 1, 2], workers=2))
    assert {threads for _, _, threads in found} == {1}
    assert os.getpid() not in {pid for _, pid, _ in found}


def test_workers_live_through_all_epochs():
    source = Batches(DATA, 5, seed=0, augment="none")
    source.__class__ = type("Named", (Batches,), {"__getitem__": lambda self, place: os.getpid()})
    assert len(set(stream(source, source.places((0, 0), 5), workers=1))) == 1


def test_stream_works_outside_of_the_main_thread():
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(p for p, _, _ in stream(Trouble(_raise), [0, 1], workers=1))
    )
    thread.start()
    thread.join()
    assert found == [0, 1]


CTRL_C = """
import os, signal, sys, time
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from normlab.lab.data.loader import stream
class Slow:
    def __getitem__(self, place):
        time.sleep(0.05)
        return place
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
batches = stream(Slow(), range(20), workers=2)
first = next(batches)
os.killpg(0, signal.SIGINT)  # as the terminal does
print(len(caught), [first, *batches] == list(range(20)))
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_F15_ctrl_c_leaves_the_workers_to_the_parent():
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C], capture_output=True, text=True, start_new_session=True
    )
    assert (done.stdout.strip(), done.stderr) == ("1 True", "")


def test_images_in_memory_need_no_workers(monkeypatch):
    monkeypatch.setattr(loader, "_cores", lambda: 8)
    lazy = Dataset(Resampled(IMAGES, (4, 4)), DATA.labels, DATA.classes)
    assert num_workers(DATA, None) == 0
    assert num_workers(DATA, 3) == 3
    assert [num_workers(lazy, None, n) for n in (1, 2, 4, 8, 16)] == [7, 3, 1, 1, 1]
    assert num_workers(lazy, 0) == 0
