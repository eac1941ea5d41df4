"""What may be written in place of a norm: norms of weights after a +, and norms of one's own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import normlab
from normlab import cli, layer, norms
from normlab.lab import evaluate, models
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.norm_names import division, family, parts, spelled_out
from normlab.lab.runs import Run
from normlab.lab.sweep import canonical
from normlab.surgery import weights

ROOT = Path(__file__).parent.parent
TINY = ["--data", "digits", "--num-train", "64", "--num-validation", "32", "--batch-size", "16",
        "--epochs", "2", "--device", "cpu"]  # fmt: skip
EXAMPLE = ROOT / "examples/own_norm.py"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the example as my_norms.py; the catalogue is as before afterwards."""
    (tmp_path / "my_norms.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(layer.CATALOGUE)
    yield tmp_path
    sys.modules.pop("my_norms", None)
    layer.CATALOGUE.clear()
    layer.CATALOGUE.update(before)


def parametrized(model):
    return [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]


@pytest.mark.parametrize("spec", ["group:8+ws", "none+sws", "batch+wn", "layer+sn"])
def test_network_has_both_norms(spec):
    model = models.build("cifar_resnet:8", 10, norm=spec)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    wanted = convolutions + (linear if spec[-2:] in ("wn", "sn") else [])
    assert {id(m) for m in parametrized(model)} == {id(m) for m in wanted}
    kinds = {m.name for m in model.modules() if isinstance(m, normlab.Norm)}
    assert kinds == {family(spec).partition("+")[0]}


def test_network_without_a_plus_has_plain_weights():
    assert not parametrized(models.build("cifar_resnet:8", 10, norm="group"))


def test_network_with_both_is_built_without_memory():
    with torch.device("meta"):
        model = models.build("cifar_resnet:8", 10, norm="group+sn")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("group+xs", "norm of weights 'xs': there are ws (weight", id="unknown"),
        pytest.param("group+", "norm of weights '': there are ws (weight", id="nothing"),
        pytest.param("grp+ws", "norm 'grp': there are batch", id="unknown layer"),
    ],
)
def test_what_is_no_norm_is_named(spec, message):
    for read in (
        lambda: models.build("cifar_resnet:8", 10, norm=spec),
        lambda: canonical([Experiment(norm=spec)]),
    ):
        with pytest.raises(LookupError, match=re.escape(message)):
            read()


def test_one_layer_has_no_norm_of_weights():
    message = (
        "norm 'group:8+ws': '+ws' is a norm of the weights of a model, not of one layer; call "
        "normlab.norm('group:8', …), and normlab.surgery.reparametrize(model, 'ws')"
    )
    with pytest.raises(LookupError, match=re.escape(message)):
        normlab.norm("group:8+ws", 64)


def test_names_keep_weights_apart():
    assert parts("my.bands:2+ws") == ("my.bands:2", "ws")
    assert family("gn:8+ws") == "group+ws" != family("group:8")
    assert division("group:8+ws") is None  # not one of the curves over group sizes
    assert spelled_out("gn:1+ws") == "layer+ws"
    assert Experiment(norm="group+ws").id != Experiment(norm="group").id


def test_short_names_are_known_without_torch():
    assert {a: family(a) for a in norms.ALIASES} == norms.ALIASES


def test_norms_of_weights_have_names_of_their_own():
    """Else `normlab norms sn` could mean two."""
    assert not set(weights.NORMS) & {*norms.available(), *norms.ALIASES}


def test_batches_that_do_nothing_are_left_out_as_without_weights():
    same, other = canonical([
        Experiment(norm="group+ws", norm_batch_size=2),
        Experiment(norm="batch+ws", norm_batch_size=2),
    ])  # fmt: skip
    assert same.norm_batch_size is None
    assert other.norm_batch_size == 2


def test_run_with_weights_trains_resumes_and_is_judged(tmp_path, monkeypatch, capsys):
    """sn has state of its own: an interrupted run ends with the bits of one that was not."""
    monkeypatch.chdir(tmp_path)
    command = ["train", *TINY, "--norm", "group+sn"]
    assert cli.main([*command, "--out", "whole"]) == 0
    (whole,) = (Run.open(p) for p in Path("whole").iterdir())
    assert whole.path.name.startswith("group-sn-b16-s0-")

    stopped = Run.create(Path("parts"), whole.experiment)
    stop_after(stopped, steps=5)
    assert cli.main([*command, "--out", "parts", "--resume"]) == 0
    device = torch.device("cpu")
    states = [evaluate.load_model(r, "last", device)[0].state_dict() for r in (whole, stopped)]
    assert any(key.endswith("weight.0._u") for key in states[0])
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())

    capsys.readouterr()
    assert cli.main(["evaluate", str(whole.path)]) == 0
    assert "micro-F1" in capsys.readouterr().out


def stop_after(run, steps):
    """Train a run until it is interrupted."""
    import signal

    from normlab.lab.train import train

    def interrupt(progress):
        if progress.step == steps:
            signal.raise_signal(signal.SIGTERM)

    assert train(run, compute=Compute(device="cpu"), report=interrupt) == "interrupted"


def test_norm_of_ones_own_is_found_by_module_and_name(own):
    made = normlab.norm("my_norms.bands:4", 6)
    assert made.pattern == "n c (b=4 h) ... -> n b"
    assert type(made) is sys.modules["my_norms"].BandNorm


def test_module_without_that_norm_says_which_it_has(own):
    with pytest.raises(LookupError, match="module my_norms has no norm band; there are bands"):
        norms.parse("my_norms.band")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("nowhere.bands", "no module nowhere; is its folder on the Python", id="none"),
        pytest.param("os.path.bands", "os.path has no norm bands; there are none", id="no norms"),
        pytest.param("../bands", "norm '../bands': there are batch", id="path"),
        pytest.param("my norms.x", "norm 'my norms.x': there are batch", id="no identifier"),
    ],
)  # fmt: skip
def test_address_without_a_norm_is_refused(spec, message):
    with pytest.raises(LookupError, match=re.escape(message)):
        norms.parse(spec)


def test_what_a_module_lacks_itself_is_not_hidden(own):
    (own / "needy.py").write_text("import not_installed_here\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        norms.parse("needy.bands")


def test_norm_of_ones_own_trains_and_is_in_the_report(own, capsys):
    assert cli.main(["train", *TINY, "--norm", "my_norms.bands:2+ws"]) == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("my-norms-bands-2-ws-b16-s0-")
    assert cli.main(["report", "runs", "--format", "md"]) == 0
    assert "my_norms.bands:2+ws" in capsys.readouterr().out


def test_norm_of_ones_own_is_explained(own, capsys):
    assert cli.main(["norms", "my_norms.bands"]) == 0
    out = capsys.readouterr().out
    assert "my_norms.bands: BandNorm" in out
    assert "write my_norms.bands:N  (num_bands)" in out
    assert '"n c (b=2 h) ... -> n b"' in out


def test_python_of_the_page_runs(tmp_path):
    text = (ROOT / "docs/own_norm.md").read_text()
    first, *rest = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "my_norms.py").write_text(first)
    (tmp_path / "rest.py").write_text("\n".join(["import normlab", *rest]))
    done = subprocess.run(
        [sys.executable, "rest.py"], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_commands_of_the_page_run_in_workers(tmp_path):
    text = (ROOT / "docs/own_norm.md").read_text()
    first = re.search(r"```python\n(.*?)```", text, re.S)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert first
    (tmp_path / "my_norms.py").write_text(first[1])
    script = commands.replace("normlab ", f"{sys.executable} -m normlab.cli ")
    script = script.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}")
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "my_norms.bands" in (tmp_path / "runs/report.html").read_text()


@pytest.mark.slow
def test_example_is_a_line_in_the_report(tmp_path):
    """Runs are trained by workers, which import the example themselves."""
    flags = ["--epochs", "1", "--num-train", "32", "--num-validation", "16", "--seed", "0",
             "--batch-size", "16", "--jobs", "1"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, EXAMPLE, *flags],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"own_norm\.bands +16 +[+−]", done.stdout)
    assert "own_norm.bands" in (tmp_path / "runs/report.html").read_text()
