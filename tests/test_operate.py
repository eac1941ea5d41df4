"""Converting and diagnosing networks in files, and runs that start from converted ones."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import normlab
from normlab import cli
from normlab.lab import data, evaluate, models, start
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.runs import Run
from normlab.lab.train import train
from normlab.surgery import Shrunk

CPU, ON_CPU = torch.device("cpu"), Compute(device="cpu")
SOURCE = Experiment(
    data="digits", norm="batch", num_train=256, num_validation=64, batch_size=16, epochs=2
)

IMAGES = data.load("digits", "train", limit=256)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs"), SOURCE)
    train(run, compute=ON_CPU)
    return run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


def normlab_command(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def outputs(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model.eval()(torch.randn(8, 3, 8, 8))


def test_converted_file_loads_as_it_says(run, capsys):
    assert normlab_command("convert", run.path, "--to", "group", "--out", "g.safetensors") == 0
    out = capsys.readouterr().out
    assert re.search(r"1 +BatchNorm\(16\) +group", out)
    assert "load it into normlab.convert(model, 'group', keep='affine')" in out
    source, _ = evaluate.load_model(run, "best", CPU)
    expected = outputs(normlab.convert(source, "group"))
    loaded = normlab.convert(models.build(SOURCE.model, 10), "group", keep="affine")
    loaded.load_state_dict(load_file("g.safetensors"))
    torch.testing.assert_close(outputs(loaded), expected, rtol=0, atol=0)


def test_shrunk_file_computes_what_the_batch_norms_did(run):
    how = ("--to", "layer", "--strength", "1", "--out", "s.safetensors")
    assert normlab_command("convert", run.path, *how) == 0
    loaded = normlab.convert(models.build(SOURCE.model, 10), "layer", keep="affine", strength=1.0)
    loaded.load_state_dict(load_file("s.safetensors"))
    source, _ = evaluate.load_model(run, "best", CPU)
    torch.testing.assert_close(outputs(loaded), outputs(source), rtol=1e-4, atol=1e-4)


def test_classes_of_a_file_are_those_of_its_weights(capsys):
    module = pytest.importorskip("torchvision").models
    torch.save(module.resnet18(num_classes=7).state_dict(), "r.pt")
    options = ("--model", "torchvision:resnet18", "--to", "group", "--out", "r.safetensors")
    assert normlab_command("convert", "r.pt", *options) == 0
    assert load_file("r.safetensors")["fc.weight"].shape == (7, 512)


def test_diagnosis_of_a_run_prints_its_scores(run, tmp_path, capsys):
    assert normlab_command("diagnose", run.path, "--device", "cpu") == 0
    assert re.search(r"running +\d", capsys.readouterr().out)


def test_diagnosis_takes_other_images(run, capsys):
    arguments = ("--data", "relit_digits", "--images", 64, "--batch-size", 16, "--device", "cpu")
    assert normlab_command("diagnose", run.path, *arguments) == 0
    assert "other data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "{run}", "--to", "grop", "--out", "x"), "norm 'grop': there are"),
        (("convert", "{run}", "--to", "group", "--out", "there"), "there exists already"),
        (("convert", "there", "--to", "group", "--out", "x"), "is no run: say whose weights"),
        (("convert", "{run}", "--to", "group:5", "--out", "x"), "7 of 7 norms cannot become"),
        (("convert", "{run}", "--model", "convnet", "--to", "group", "--out", "x"),
         "is a run of cifar_resnet:8, and --model says convnet"),
        (("diagnose", "there", "--model", "convnet"), "say on which images, as --data"),
        (("diagnose", "{run}", "--images", "8"), "8 images are 1 batch of 32, and two are wanted"),
    ],
    ids=["norm", "out", "model", "groups", "other model", "data", "images"],
)  # fmt: skip
def test_wrong_usage_is_said_in_a_sentence(run, arguments, message, capsys):
    Path("there").touch()
    assert normlab_command(*(a.format(run=run.path) for a in arguments)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("x").exists()


def converted(run: Run, **fields) -> Experiment:
    return SOURCE.replace(norm="group", source=str(run.path), epochs=1, **fields)


def test_run_from_another_starts_with_its_conversion(run):
    source, _ = evaluate.load_model(run, "last", CPU)
    model, _ = start.network(converted(run), IMAGES)
    torch.testing.assert_close(outputs(model), outputs(normlab.convert(source, "group")))


def test_run_from_another_records_its_error_before_training(run, tmp_path):
    """On the images as they entered its source, whatever images it has itself."""
    frozen = Run.create(tmp_path, converted(run, strength=1.0, num_train=32))
    train(frozen, compute=ON_CPU)
    first = next(e for e in frozen.events() if e["event"] == "start")
    last = [e for e in run.events() if e["event"] == "epoch"][-1]
    assert first["validation_error"] == last["validation_error"]


def test_strength_moves_over_the_training(run, tmp_path):
    e = converted(run, strength=1.0, final_strength=0.0)
    assert [start.strength(e, part) for part in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    other = Run.create(tmp_path, e)
    train(other, compute=ON_CPU)
    model, _ = evaluate.load_model(other, "last", CPU)
    (strength,) = {m.strength for m in model.modules() if isinstance(m, Shrunk)}
    assert strength == pytest.approx(1 / 16)  # the last of 16 steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": 0.5}, "strength is for converted norms; give the source"),
        ({"source": "runs/a", "final_strength": 0.5}, "final_strength is where strength moves to"),
        ({"source": "runs/a", "weights": "b.pt"}, "give source, a run to start from, or weights"),
        ({"source": "runs/a", "strength": 1.5}, "strength must be at least 0 and at most 1"),
    ],
    ids=["no source", "no strength", "both", "range"],
)
def test_starts_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ExperimentError, match=message):
        Experiment(**fields)


def test_source_of_another_network_is_refused(run):
    with pytest.raises(ExperimentError, match="a cifar_resnet:8 for 10 classes, where model is"):
        start.network(converted(run, model="cifar_resnet:14"), IMAGES)
