"""Trackers hear what a run logs, and can neither stop nor change it."""

import sys
from types import SimpleNamespace

import pytest

from normlab.lab import tracking
from normlab.lab.compute import TRACKERS, Compute, ComputeError
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore:.*TensorFlow")


@pytest.fixture
def run(tmp_path) -> Run:
    experiment = Experiment(data="folder:https://me:planted@host/x?token=planted")
    return Run.create(tmp_path / "which", experiment)


@pytest.fixture
def alone(monkeypatch):
    """No TensorBoard, whether it is installed or not."""
    monkeypatch.setattr(tracking.tensorboard, "is_installed", lambda: False)


def log(run, epochs=(1, 2)):
    run.log("start", num_train=5)
    for epoch in epochs:
        run.log(
            "epoch", epoch=epoch, samples=100 * epoch, validation_error=50.0 / epoch,
            validation_loss=float("nan"),
        )  # fmt: skip
    run.log("end", reason="finished")


class FakeWandb:
    def __init__(self):
        self.said = []
        self.Settings = lambda **settings: settings

    def init(self, **settings):
        self.said.append(("init", settings))
        return self

    def log(self, numbers, step):
        self.said.append(("log", numbers, step))

    def finish(self):
        self.said.append(("finish",))


class FakeTrackio(FakeWandb):
    pass


FAKES = {"wandb": FakeWandb, "trackio": FakeTrackio}


@pytest.fixture(params=FAKES)
def fake(request, monkeypatch):
    module = FAKES[request.param]()
    monkeypatch.setitem(sys.modules, request.param, module)
    return SimpleNamespace(name=request.param, said=module.said, module=module)


def test_tracker_hears_the_epochs_under_the_runs_name(run, fake, alone):
    with tracking.following(run, [fake.name]):
        log(run)
    (first, settings), *epochs, last = fake.said
    assert (first, last) == ("init", ("finish",))
    assert settings["project"] == "which"
    assert settings["name"] == run.experiment.name
    assert settings["config"]["norm"] == run.experiment.norm
    assert "planted" not in str(settings)
    assert epochs == [
        ("log", {"epoch": e, "samples": 100 * e, "validation_error": 50.0 / e}, 100 * e)
        for e in (1, 2)
    ]
    assert not run.followers


def test_run_that_logs_nothing_leaves_no_trace(run, fake, alone):
    with tracking.following(run, [fake.name]):
        run.log("start")
    assert fake.said == []


@pytest.mark.parametrize("call", ["init", "log"])
def test_tracker_that_fails_is_one_warning_and_the_run_goes_on(run, fake, alone, call):
    def broken(*args, **options):
        raise ConnectionError("no route to https://me:planted@host")

    setattr(fake.module, call, broken)
    with (
        tracking.following(run, [fake.name]),
        pytest.warns(UserWarning, match=f"{fake.name} follows .* no longer: Conn") as warned,
    ):
        log(run)
    assert len(warned) == 1
    assert "planted" not in str(warned[0].message)
    assert [e["event"] for e in run.events()] == ["start", "epoch", "epoch", "end"]


def test_tracker_that_cannot_finish_is_forgiven(run, fake, alone):
    fake.module.finish = lambda: 1 / 0
    with tracking.following(run, [fake.name]):
        log(run)
    assert len(run.events()) == 4


def test_every_name_of_the_flag_has_a_tracker():
    assert set(tracking.TRACKERS) == set(TRACKERS)


@pytest.mark.parametrize("name", TRACKERS)
def test_tracker_that_is_missing_is_named_before_anything_runs(monkeypatch, name):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComputeError, match=rf"--track {name} needs {name}: pip install"):
        tracking.check(Compute(track=(name,)).track)
    tracking.check(())


def test_tensorboard_gets_the_epochs_where_it_is_installed(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking.following(run, ()):
        log(run, (1, 2, 3))
    with tracking.following(run, ("tensorboard",)):  # resumed from the checkpoint after epoch 1
        log(run, (2,))
    read = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == {"epoch", "samples", "validation_error"}
    errors = [(e.step, e.value) for e in read.Scalars("validation_error")]
    assert errors == [(100, 50.0), (200, 25.0)]


def test_following_needs_no_torch(run):
    import subprocess

    code = (
        "import pathlib, sys; from normlab.lab import tracking; from normlab.lab.runs import Run\n"
        f"run = Run.open(pathlib.Path({str(run.path)!r}))\n"
        "with tracking.following(run, ()): run.log('epoch', samples=1, error=2.0)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_runs_are_sent_to_other_processes_without_their_followers(run):
    import pickle

    with tracking.following(run, ("tensorboard",)):
        sent = pickle.loads(pickle.dumps(run))
    assert sent == run
    assert sent.followers == []
