"""What a run tells about the machine and to TensorBoard: S16."""

import json

import pytest

from normlab.lab import environment
from normlab.lab.experiment import Experiment
from normlab.lab.runs import Run, describe_environment


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(tmp_path / "runs", Experiment())


SECRETS = {
    "api_token": "planted-1",
    "nested": {"client_secret": ["planted-2"]},
    "reason": "HTTPError: https://me:planted-3@host/data.npz?sig=planted-4#planted-5 and "
    "PASSWORD=planted-6 in {'token': 'planted-7'}",
    "device": "cuda of s3://planted-8@bucket/x",
}


def test_secrets_and_the_home_folder_are_stored_nowhere(tmp_path, monkeypatch):
    """S16"""
    monkeypatch.setenv("HOME", "/home/planted-9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-10")
    run = Run.create(tmp_path, Experiment())
    run.record_environment(SECRETS["device"])
    run.log("end", **SECRETS, file="/home/planted-9/x.npz")
    run.set_status("failed", **SECRETS)
    files = [p.read_text() for p in run.path.rglob("*") if p.is_file()]
    assert len(files) == 4
    assert not [text for text in files if "planted" in text]
    assert run.events()[0]["file"] == "~/x.npz"
    assert run.status["reason"].startswith("HTTPError: https://host/data.npz and PASSWORD=***")


HARMLESS = ["KeyError: 'conv1'", "a=1, b: 2", "/homework/planted", "norm group:8 of 64 channels"]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_stored_as_it_is(monkeypatch, text):
    monkeypatch.setenv("HOME", "/home")
    assert environment.presentable({"reason": text, "num_tokens": 3}) == {
        "reason": text,
        "num_tokens": 3,
    }


def test_environment_is_an_allow_list(run):
    expected = {"python", "torch", "normlab", "platform", "processor", "num_cores", "num_threads"}
    assert describe_environment().keys() == expected | {"device"}
    run.record_environment("cpu")
    stored = json.loads((run.path / "environment.json").read_text())
    assert stored.keys() == describe_environment().keys()
