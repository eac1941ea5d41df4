"""What stands for training where a sweep itself is tested: milliseconds, and every way to fail.

The experiment's seed says what happens; `sweep.run_all` calls these as it calls `train.train`.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time

from normlab.lab.interrupt import Interrupt


@dataclasses.dataclass(frozen=True)
class Progress:
    epoch: int
    step: int
    num_steps: int
    loss: float
    error: float
    validation_error: float | None


def trial(run, *, compute, report):
    """Ten milliseconds, then finished."""
    return _trained(run, report, 0.01)


def slow(run, *, compute, report):
    """A quarter of a second, then finished."""
    return _trained(run, report, 0.25)


def named(run, *, compute, report):
    """Says in its status which process it ran in; fails as `failing` does."""
    state = failing(run, compute=compute, report=report)
    run.set_status(state, pid=os.getpid())
    return state


def marked(run, *, compute, report):
    """Writes down its process and takes a second, at its first attempt."""
    if not (run.path / "pid").exists():
        (run.path / "pid").write_text(str(os.getpid()))
        time.sleep(1)
    return _trained(run, report, 0.01)


def hanging(run, *, compute, report):
    """Starts a child and writes down both processes, then says nothing."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (run.path / "pids").write_text(f"{os.getpid()} {child.pid}")
    child.wait()


def obedient(run, *, compute, report):
    """Goes on until it is asked to stop."""
    with run.lock(), Interrupt() as interrupt:
        run.set_status("running")
        while interrupt.signal is None:
            time.sleep(0.01)
        run.set_status("interrupted", signal=interrupt.signal)
    return "interrupted"


def _trained(run, report, seconds):
    with run.lock():
        run.set_status("running")
        run.log("start", num_train=1)
        report(Progress(1, 1, 2, 0.5, 50.0, None))
        time.sleep(seconds)
        run.log("epoch", epoch=1, samples=1, validation_error=float(run.experiment.seed))
        run.log("end", reason="finished")
        run.set_status("finished", best_error=float(run.experiment.seed))
        return "finished"


class OutOfMemoryError(RuntimeError):
    """Stands for torch.OutOfMemoryError, whose import takes seconds."""


def _raises(run):
    raise KeyError("conv1")


def _is_killed(run):
    os.kill(os.getpid(), signal.SIGKILL)


def _crashes(run):
    os.kill(os.getpid(), signal.SIGSEGV)


def _exits(run):
    raise SystemExit("no such data")


def _runs_out(run):
    raise MemoryError("cannot allocate 10 TB")


def _runs_out_on_gpu(run):
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _hangs(run):
    time.sleep(60)


def _disappears(run):
    run.path.rename(run.path.with_name("moved"))
    raise ValueError("its folder is gone")


FAILURES = {
    7: (_raises, "KeyError: 'conv1'"),
    27: (_is_killed, "out of memory, most likely: its process was ended by SIGKILL"),
    47: (_crashes, "its process was ended by SIGSEGV"),
    67: (_exits, "SystemExit: no such data"),
    87: (_runs_out, "out of memory, try a smaller batch: MemoryError: cannot allocate 10 TB"),
    107: (_runs_out_on_gpu, "out of memory, try a smaller batch: OutOfMemoryError: CUDA out"),
    127: (_hangs, "said nothing for 1 seconds (--run-timeout)"),
    147: (_disappears, "ValueError: its folder is gone; "),
}
DIVERGED = 167


def failing(run, *, compute, report):
    """A trial that fails in another way for each of a few seeds."""
    seed = run.experiment.seed
    if seed in FAILURES:
        run.set_status("running")
        FAILURES[seed][0](run)
    if seed == DIVERGED:
        run.set_status("diverged", cause="the loss is not finite at step 3")
        return "diverged"
    return _trained(run, report, 0.01)
