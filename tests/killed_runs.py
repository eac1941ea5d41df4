"""Runs that are killed, and go on: one process forks a child for every start, which takes a moment.

Called as `python killed_runs.py ROOT HOW POINTS POINTS …`: each argument is a run, and the points,
separated by commas, at which it is killed one after the other. It prints what its processes ended
with at every start, as JSON. Beside them a run is never killed, in the folder "whole".
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from normlab.lab import checkpoint, evaluate, train
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run
from normlab.lab.update import Update

HERE = Path(__file__).parent

# dropout, moments, crops, mixing, averages, batch statistics: all that a checkpoint could forget
FORGETFUL = Experiment(
    data="digits", model="tests.killed_runs", norm="batch", optimizer="adam", learning_rate=1e-3,
    augment="crop_flip", mixup=0.2, ema=0.9, num_train=48, num_validation=20, batch_size=8,
    epochs=3, image_size=16,
)  # fmt: skip
NUM_STEPS = 18
PATIENCE = 30  # seconds


class Point(NamedTuple):
    """A call before or after which the process dies."""

    owner: Any
    name: str
    when: Callable[..., bool]  # of the arguments of the call
    after: bool = False


def _step(number: int) -> Callable[..., bool]:
    return lambda update, step, *_: step == number - 1


def _event(name: str, **wanted: int) -> Callable[..., bool]:
    return lambda run, event, **fields: event == name and wanted.items() <= fields.items()


def _path(part: str, place: int = 0) -> Callable[..., bool]:
    return lambda *args, **_: part in str(args[place])


POINTS = {
    "before the first step": Point(Update, "prepare", _step(1)),
    "after the gradients of step 2": Point(Update, "apply", _step(2)),
    "while the first state is written": Point(os, "open", _path("last/.tmp-4-"), after=True),
    "after step 5": Point(Update, "apply", _step(5), after=True),
    "after the last step of an epoch": Point(Update, "apply", _step(6), after=True),
    "after the validation": Point(evaluate, "measure_together", lambda *_: True, after=True),
    "F03: after the line of epoch 1": Point(Run, "log", _event("epoch", epoch=1), after=True),
    "while the best is written": Point(os, "open", _path("best/.tmp-6-")),
    "between best and last": Point(os, "mkdir", _path("last/.tmp-6-")),
    "after step 9": Point(Update, "apply", _step(9), after=True),
    "before a checkpoint has its name": Point(os, "rename", _path("last/000000000012", 1)),
    "before the line of epoch 2": Point(Run, "log", _event("epoch", epoch=2)),
    "after it has its name": Point(os, "rename", _path("last/000000000012-1", 1), after=True),
    "while a state is written": Point(os, "open", _path("last/.tmp-16-"), after=True),
    "while an older one is deleted": Point(os, "unlink", _path("last/.tmp-000000000008-")),
    "after the last step": Point(Update, "apply", _step(NUM_STEPS), after=True),
    "after the end": Point(Run, "log", _event("end"), after=True),
}

HOW = {
    "alone": Compute(device="cpu"),
    "workers": Compute(device="cpu", workers=2, timeout=PATIENCE),
    "torchrun": Compute(device="cpu", timeout=PATIENCE),
    "processes": Compute(device="cpu", processes=2, timeout=PATIENCE),
}


def build(variant: str, num_classes: int) -> nn.Module:
    """A network with dropout whose checkpoints are small."""
    layers: list[nn.Module] = []
    for channels, width in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(channels, width, 3, stride=2), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def pictures(folder: Path, num: int = 60, *, ending: str = "png", seed: int = 0) -> Path:
    """Small pictures of two classes, which have to be decoded."""
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    for number in range(num):
        file = folder / ("bright", "dark")[number % 2] / f"{number:02d}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (20, 20, 3), generator=generator) // (1 + number % 2)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(file)
    return folder


def of_pictures(folder: Path) -> Experiment:
    """The same, of pictures that are decoded anew in every epoch."""
    return FORGETFUL.replace(
        data=f"folder:{folder}", augment="imagenet", num_train=None, num_validation=None
    )


def without_time(value: Any) -> Any:
    """Without what differs between two runs of the same experiment."""
    if isinstance(value, dict):
        return {
            key: without_time(item)
            for key, item in value.items()
            if not key.startswith("seconds") and key != "updated"
        }
    return [without_time(item) for item in value] if isinstance(value, list) else value


def assert_same(run: Run, other: Run) -> None:
    """Weights, statistics, averages, moments, positions, events and the status."""
    for found, expected in ((run.events(), other.events()), (run.status, other.status)):
        assert without_time(found) == without_time(expected), (found, expected)
    for which in ("best", "last"):
        (ours, our_state, _), (theirs, their_state, _) = (
            checkpoint.load(r.path / "checkpoints" / which) for r in (run, other)
        )
        assert without_time(our_state) == without_time(their_state), (our_state, their_state)
        assert ours.keys() == theirs.keys()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not different, different


def killed(root: Path, how: str, lives: list[str]) -> dict[str, list[list[int]]]:
    """What the processes of runs that are killed end with, at every start; see killed_runs.py."""
    # what the killed leave behind goes away; pytest's folders may have names too long for sockets
    with tempfile.TemporaryDirectory(prefix="killed-") as aside:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, root, how, *lives],
            capture_output=True, text=True, timeout=900,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": aside,
                 "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def only_run(root: Path) -> Run:
    (file,) = root.glob("*/experiment.json")
    return Run.open(file.parent)


def assert_as_if_never_killed(root: Path, life: int, ends: list[list[int]], *, kills: int) -> None:
    """Every start but the last was killed, and the run ended as the one that never was."""
    assert [end[0] for end in ends] == [-signal.SIGKILL] * kills + [0], ends
    assert all(code in (0, 1) for _, *others in ends for code in others), "they end by themselves"
    assert_same(only_run(root / str(life)), only_run(root / "whole"))


def _main(root: Path, how: str, lives: list[str]) -> None:
    torch.set_num_threads(1)
    experiment = of_pictures(pictures(root / "images")) if how == "workers" else FORGETFUL
    of_two = how in ("torchrun", "processes")
    # what this one has read and compiled, children have
    _train(root / ("warm" if of_two else "whole"), experiment, HOW["alone"], None)
    if of_two:
        assert _ends(root / "whole", experiment, "torchrun", None) == [0, 0]
    ends = {
        number: [_ends(root / str(number), experiment, how, p) for p in [*life.split(","), None]]
        for number, life in enumerate(lives)
    }
    print(json.dumps(ends))


def _ends(root: Path, experiment: Experiment, how: str, point: str | None) -> list[int]:
    """Start a run, or go on with it; what its processes end with."""
    if how != "torchrun":
        return [_ended(_forked(lambda: _train(root, experiment, HOW[how], point)))]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    first = _forked(lambda: _train_as(0, port, root, experiment, point))
    second = _forked(lambda: _train_as(1, port, root, experiment, None))
    return [_ended(first), _ended(second)]


def _train(root: Path, experiment: Experiment, compute: Compute, point: str | None) -> None:
    def report(progress: train.Progress) -> None:
        train.CHECKPOINT_SECONDS = -1 if progress.step % 4 == 0 else 600

    if point is not None:
        _arm(POINTS[point])
    assert train.train(Run.create(root, experiment), compute=compute, report=report) == "finished"


def _train_as(rank: int, port: int, root: Path, experiment: Experiment, point: str | None) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }  # fmt: skip
    _train(root, experiment, HOW["torchrun"], point)
    distributed.destroy_process_group()


def _arm(point: Point) -> None:
    real = getattr(point.owner, point.name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        dies = point.when(*args, **kwargs)
        if dies and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(point.owner, point.name, deadly)


def _forked(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _ended(pid: int) -> int:
    """What a child ends with: its exit code, or the negative number of a signal."""
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    raise TimeoutError(f"process {pid} does not end")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
