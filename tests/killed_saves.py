"""A process that saves checkpoints, and is killed at any moment, again and again.

Called as `python killed_saves.py FOLDER NUM SEED`: a child is forked NUM times, goes on from the
checkpoint that is there and saves one after the other until it is killed. What was found after each
kill is printed as JSON.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from normlab.lab import checkpoint

VALUES = 20_000  # numbers of a tensor: 80 kB
_NUMBER = 8  # bytes


def after_kills(folder: Path, *, num: int, seed: int) -> dict[str, int]:
    """How often the newest or the one before it was found, no usable one, and leftovers."""
    done = subprocess.run(
        [sys.executable, __file__, folder, str(num), str(seed)],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _main(folder: Path, num: int, seed: int) -> None:
    torch.set_num_threads(1)
    moments = random.Random(seed)
    found = {"newest": 0, "before it": 0, "unreadable": 0, "kills that left something": 0}
    _save(folder, 1)
    step = 1
    for _ in range(num):
        newest = _killed(folder, step, after=moments.uniform(0, 0.05))
        step = _found(folder)
        found["unreadable"] += step == 0 or any(p for _, p in checkpoint.verify(folder))
        found["newest"] += step in (newest, newest + 1)  # it may be killed before it says so
        found["before it"] += 0 < step < newest
        found["kills that left something"] += any(p.name[0] == "." for p in folder.iterdir())
    _save(folder, step + 1)
    found["left at last"] = len(list(folder.iterdir())) - 2
    print(json.dumps(found))


def _killed(folder: Path, step: int, *, after: float) -> int:
    """Let a child go on from a step, kill it, and return the last step it has said is saved."""
    said, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            step += 1
            _save(folder, step)
            os.write(says, step.to_bytes(_NUMBER, "big"))
    os.close(says)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with open(said, "rb") as stream:
        steps = stream.read()
    return int.from_bytes(steps[-_NUMBER:], "big") if steps else step


def _save(folder: Path, step: int) -> None:
    tensors = {"model.weight": torch.full((VALUES,), float(step))}
    checkpoint.save(folder, step, tensors, {"step": step})


def _found(folder: Path) -> int:
    """The step of the checkpoint that is loaded, 0 if it is not what was saved."""
    try:
        tensors, state, _ = checkpoint.load(folder)
    except checkpoint.CheckpointError:
        return 0
    whole = torch.equal(tensors["model.weight"], torch.full((VALUES,), float(state["step"])))
    return state["step"] if whole else 0


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
