"""Sweeps on Ray: F24, S14. Most of it with a module that stands for Ray; the slow test is real."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_ray import FakeRay

from normlab.lab import on_ray
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.on_ray import ClusterError, RayCrew
from normlab.lab.runs import Run, find
from normlab.lab.sweep import run_all


def seeds(number):
    return [Experiment(norm="layer", seed=seed) for seed in range(number)]


def crew_on(ray, root, *, task="fake_trials:trial", compute=Compute(), **settings):  # noqa: B008
    return lambda number: RayCrew(root, number, compute, task=task, ray=ray, **settings)


def states(outcome):
    return [outcome.activity.states[e.id] for e in outcome.activity.experiments]


def test_actors_train_run_after_run(tmp_path):
    ray = FakeRay()
    outcome = run_all(seeds(6), tmp_path, crew=crew_on(ray, tmp_path))
    assert states(outcome) == ["finished"] * 6
    assert len(ray.actors) == 2
    assert all(actor.is_killed for actor in ray.actors)
    assert {p.name for p in tmp_path.iterdir()} == {run.path.name for run in find(tmp_path)[0]}


def test_lost_actors_are_replaced_and_their_runs_go_on_f24(tmp_path):
    ray = FakeRay(lose={0, 1})
    outcome = run_all(seeds(4), tmp_path, crew=crew_on(ray, tmp_path))
    assert states(outcome) == ["finished"] * 4
    assert len(ray.actors) == 4


def test_run_whose_actors_are_always_lost_is_given_up_f24(tmp_path):
    ray = FakeRay({"CPU": 1.0}, lose={0, 1, 2, 3})
    outcome = run_all(seeds(2), tmp_path, crew=crew_on(ray, tmp_path))
    assert states(outcome) == ["failed", "finished"]
    first = Run.open(tmp_path / seeds(1)[0].name)
    assert first.status["cause"] == "its actor was lost 4 times: The actor died."
    assert len(ray.actors) == 5


def test_failures_of_runs_are_as_on_one_machine_f22(tmp_path):
    experiments = [Experiment(seed=seed) for seed in (7, 27, 1)]
    crew = crew_on(FakeRay(), tmp_path, task="fake_trials:failing")
    outcome = run_all(experiments, tmp_path, crew=crew)
    assert states(outcome) == ["failed", "failed", "finished"]
    causes = [outcome.activity.causes[e.id] for e in experiments[:2]]
    assert causes[0] == "KeyError: 'conv1'"
    assert "SIGKILL" in causes[1]


def test_folder_that_actors_do_not_see_is_said(tmp_path):
    crew = crew_on(FakeRay(sees=False), tmp_path)
    with pytest.raises(ClusterError, match="is not there on another one of the Ray cluster; choos"):
        run_all(seeds(1), tmp_path, crew=crew)
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize(
    ("resources", "compute", "needs", "slots"),
    [
        ({"CPU": 8}, {}, {"num_cpus": 1}, 8),
        ({"CPU": 8}, {"processes": 2, "workers": 2}, {"num_cpus": 4}, 2),
        ({"CPU": 8, "GPU": 4}, {}, {"num_cpus": 1, "num_gpus": 1}, 4),
        ({"CPU": 8, "GPU": 4}, {"processes": 2}, {"num_cpus": 1, "num_gpus": 2}, 2),
        ({"CPU": 8, "GPU": 4}, {"device": "cpu"}, {"num_cpus": 1}, 8),
        ({"CPU": 1}, {"processes": 2}, {"num_cpus": 2}, 0),
    ],
)
def test_a_run_gets_a_gpu_or_cores_for_its_processes(resources, compute, needs, slots):
    assert on_ray._share(resources, Compute(**compute)) == (needs, slots)


def test_cluster_that_is_too_small_is_said(tmp_path):
    compute = Compute(processes=4)
    with pytest.raises(ClusterError, match=r"has no \{'num_cpus': 4\} for a run; ask for fewer"):
        crew_on(FakeRay(), tmp_path, compute=compute)(1)


@pytest.fixture
def environment(monkeypatch):
    """One without Ray's variables, to be changed at will."""
    changed = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", changed)
    return changed


def test_cluster_that_is_there_is_used_and_left_running(tmp_path, monkeypatch, environment):
    monkeypatch.setattr(on_ray, "_is_running", lambda: True)
    ray = FakeRay()
    crew_on(ray, tmp_path)(1).stop()
    assert ray.is_up
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    crew_on(ray, tmp_path)(1).stop()
    assert [options["address"] for options in ray.inits] == ["auto", "10.0.0.1:6379"]
    assert "RAY_AUTH_TOKEN" not in environment


def test_own_cluster_has_no_dashboard_wants_a_token_and_ends_s14(
    tmp_path, monkeypatch, environment
):
    monkeypatch.setattr(on_ray, "_is_running", lambda: False)
    ray = FakeRay()
    crew = crew_on(ray, tmp_path)(1)
    assert ray.is_up
    assert ray.inits[-1]["include_dashboard"] is False
    assert ray.inits[-1]["_node_ip_address"] == "127.0.0.1"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    crew.stop()
    assert not ray.is_up


@pytest.mark.parametrize("answers", [True, False])
def test_note_of_a_cluster_is_believed_if_it_answers(tmp_path, environment, monkeypatch, answers):
    environment["RAY_TMPDIR"] = str(tmp_path)
    assert not on_ray._is_running()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    done = SimpleNamespace(returncode=int(not answers))
    monkeypatch.setattr(on_ray.subprocess, "run", lambda *arguments, **options: done)
    assert on_ray._is_running() is answers


def test_address_without_a_cluster_is_said(tmp_path, environment):
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    with pytest.raises(ClusterError, match=r"no Ray cluster at 10\.0\.0\.1:6379: Could not find"):
        crew_on(FakeRay(running=False), tmp_path)(1)


def test_missing_ray_is_named_f24(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'--on ray needs ray: pip install "normlab\[cluster\]"'):
        crew_on(None, tmp_path)(1)


@pytest.mark.parametrize("version", ["2.51.2", "1.13.0"])
def test_old_ray_is_refused_s14(tmp_path, monkeypatch, version):
    old = FakeRay()
    old.__version__ = version
    monkeypatch.setitem(sys.modules, "ray", old)
    with pytest.raises(ImportError, match=rf"ray {version} is open to attacks .* 2\.52 or newer"):
        crew_on(None, tmp_path)(1)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_run_that_waits_for_a_machine_is_interrupted_at_once(tmp_path):
    ray = FakeRay()
    crew = crew_on(ray, tmp_path)(1)
    run = Run.create(tmp_path, seeds(1)[0])
    crew.start(run)  # its actor has not answered
    crew.interrupt()
    ((ended, end),) = crew.news()
    assert (ended, end.state) == (run, "interrupted")
    assert run.status["state"] == "interrupted"
    crew.stop()


REAL = """
import os, pathlib, signal, subprocess, sys, threading, time
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.on_ray import RayCrew
from normlab.lab.sweep import run_all
root = pathlib.Path(sys.argv[1])
experiments = [Experiment(norm="layer", seed=seed) for seed in range(6)]

def kill_one():
    pid = root / experiments[0].name / "pid"
    while not pid.exists():
        time.sleep(0.02)
    stat = pathlib.Path(f"/proc/{pid.read_text()}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)  # the actor it belongs to
    print("killed")

def are_refused():
    import ray
    address = ray.get_runtime_context().gcs_address
    without = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    code = f"import ray; ray.init(address={address!r}, logging_level='ERROR')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=without, capture_output=True, text=True, timeout=200
    )
    print("refused" if "ConnectionError: Failed to connect" in done.stderr else "CONNECTED")

def watch(activity):
    if activity.running and not asked:
        asked.append(True)
        are_refused()

asked = []
threading.Thread(target=kill_one).start()
crew = lambda number: RayCrew(root, number, Compute(), jobs=2, task="fake_trials:marked")
outcome = run_all(experiments, root, crew=crew, watch=watch)
print(*(outcome.activity.states[e.id] for e in experiments))
"""


@pytest.mark.slow
def test_sweep_on_a_real_cluster_f24_s14(tmp_path):
    """It survives the loss of an actor; a process without the token cannot join its cluster."""
    pytest.importorskip("ray")
    without = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, str(tmp_path)],
        env={**without, "PYTHONPATH": str(Path(__file__).parent), "RAY_ADDRESS": "local"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert set(lines) >= {"killed", " ".join(["finished"] * 6)}, done.stderr
    assert "refused" in lines
    assert all(run.events()[-1]["event"] == "end" for run in find(tmp_path)[0])
