"""Probes: numbers worked out by hand, a training they do not touch, and what is read of them."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as rematerialized

import normlab
from normlab.lab import checkpoint, models, probes, train
from normlab.lab.analysis import analyse
from normlab.lab.analysis_probes import Probe, medians
from normlab.lab.analysis_probes import probes as read
from normlab.lab.data.batches import batches
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.report.probes import section
from normlab.lab.report.sections import Section
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input

CPU = torch.device("cpu")
# dropout, Adam's moments, crops and batch statistics: everything a probe could disturb
EXPERIMENT = Experiment(
    data="digits", model="convnet", norm="batch", optimizer="adam", learning_rate=1e-3,
    augment="crop_flip", num_train=96, num_validation=40, batch_size=16, epochs=3, image_size=16,
)  # fmt: skip


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe every second step."""
    monkeypatch.setattr(probes, "EVERY", 2)


def recorded(model: nn.Module, x: torch.Tensor, probe: str) -> dict[str, dict[str, Any]]:
    """What one step of training records, by layer."""
    recorder = probes.Recorder(model, probe)
    with recorder.watching(0, 1):
        y = model(x)
        if y.requires_grad:
            y.sum().backward()
    return {found["layer"]: found for found in recorder.take()}


def trained(root: Path, experiment: Experiment, report: Any = None) -> Run:
    run = Run.create(root, experiment)
    train.train(run, device=CPU, report=report)
    return run


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.path / "checkpoints" / "last")[0]


def events(run: Run, *, probed: bool) -> list[dict[str, Any]]:
    """Events without the seconds they took: the probes, or the others."""
    found = [e for e in run.events() if (e["event"] == "probe") == probed]
    return [{k: v for k, v in e.items() if not k.startswith("seconds")} for e in found]


# What is measured


def test_percentiles_equal_numpys():
    x = torch.randn(16, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    assert x.numel() == probes.MAX_VALUES
    assert probes.percentiles(x) == np.percentile(x.double().numpy(), [1, 20, 80, 99]).tolist()


def test_percentiles_between_two_values_go_by_proportion():
    # of 0 and 10, percentile p lies at p/100 of the way
    assert probes.percentiles(torch.tensor([10.0, 0.0])) == pytest.approx([0.1, 2.0, 8.0, 9.9])


@pytest.mark.parametrize("stride", [1, 64], ids=["by value", "64: equal distances meet one column"])
def test_sampled_percentiles_are_those_of_all_values(stride):
    # each value of 0 … 1 once, in an order of columns of 64. A stratified sample of n values has
    # a quantile within sqrt(p(1 - p)/n) of it in standard deviation, 0.0063 at most; five of them
    count = 64 * probes.MAX_VALUES
    x = torch.arange(count, dtype=torch.float32) / count
    x = x.reshape(stride, -1).T.flatten()
    for p, found in zip(probes.PERCENTILES, probes.percentiles(x)):
        assert abs(found - p / 100) < 5 * math.sqrt(p / 100 * (1 - p / 100) / probes.MAX_VALUES)


def test_norm_is_recorded_before_it_normalizes():
    layer = nn.Sequential(normlab.norm("batch", 2, activation="relu"))
    x = torch.tensor([[1.0, -3.0], [5.0, 1.0]])
    found = recorded(layer, x, "0")["0"]
    assert found["place"] == "input"
    assert (found["mean"], found["var"]) == (1, 8)  # of 1, 5, -3, 1: squares 0, 16, 16, 0
    assert found["percentiles"]["99"] == pytest.approx(1 + 4 * 0.97)  # 2.97 of 3 steps up


def test_layer_without_norm_is_recorded_after_it():
    linear = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0], [0.0]]))
    found = recorded(nn.Sequential(linear), torch.tensor([[1.0], [3.0]]), "0")["0"]
    assert found["place"] == "output"
    assert (found["mean"], found["var"]) == (2, 6)  # of 2, 0, 6, 0
    assert found["dead"] == 0.5
    # the sum's gradient by each of the two weights is 1 + 3
    assert found["gradient_norm"] == pytest.approx(math.sqrt(2) * 4, rel=1e-6)


def test_activation_in_place_leaves_what_was_recorded():
    model = nn.Sequential(normlab.norm("none", 1), nn.ReLU(inplace=True))
    found = recorded(model, torch.tensor([[-1.0], [-1.0]]), "*")
    assert (found["0"]["mean"], found["0"]["dead"]) == (-1, 0)
    assert (found["1"]["mean"], found["1"]["dead"]) == (0, 1)


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 2, 3, 3)], ids=str)
def test_dead_units_are_channels_that_are_zero_everywhere(shape):
    x = torch.zeros(shape)
    x[3, 1] = -1  # alive in one image only
    found = recorded(nn.Sequential(nn.Identity()), x, "0")["0"]
    assert found["dead"] == 0.5


def test_dead_units_of_layer_norm_are_on_its_own_axis():
    layer = nn.LayerNorm(3)
    nn.init.zeros_(layer.weight[:2])
    x = torch.randn(2, 5, 3)
    assert recorded(nn.Sequential(layer), x, "0")["0"]["dead"] == pytest.approx(2 / 3)


def test_features_are_what_enters_the_last_linear_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, bias=False))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    found = recorded(model, torch.tensor([[0.0, 1.0], [0.0, 5.0]]), "features")["features"]
    assert (found["place"], found["mean"], found["dead"]) == ("features", 1.5, 0.5)
    # each of three outputs' weights gets (0, 6)
    assert found["gradient_norm"] == pytest.approx(math.sqrt(3) * 6, rel=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(1), normlab.nn.BatchNorm1d(1), normlab.norm("batch", 1)],
    ids=["torch", "normlab.nn", "normlab"],
)
def test_noise_and_gap_compare_the_batch_with_running_statistics(layer):
    layer.running_mean.fill_(1.0)
    layer.running_var.fill_(4.0)
    layer.num_batches_tracked.fill_(3)
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])  # mean 4, unbiased variance 20/3
    found = recorded(nn.Sequential(layer), x, "0")["0"]
    assert found["noise"] == pytest.approx((4 - 1) / 2, rel=1e-5)  # eps adds 1e-5 / 8
    assert found["gap"] == pytest.approx(math.log((20 / 3) / 4), rel=1e-5)


def test_noise_is_that_of_the_images_that_share_statistics():
    layer = normlab.norm("batch", 1, norm_batch_size=2)
    layer.num_batches_tracked.fill_(1)  # running mean 0, variance 1
    x = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]])  # slices of mean 2 and -2; the batch's is 0
    found = recorded(nn.Sequential(layer), x, "0")["0"]
    assert found["noise"] == pytest.approx(2, rel=1e-5)
    assert found["gap"] == pytest.approx(math.log(2), rel=1e-4)  # both slices: unbiased variance 2


def test_statistics_of_groups_stand_for_their_channels():
    means, _ = probes._statistics(torch.tensor([[1.0, 3.0, 5.0, 9.0]] * 2), "n (g=2 c) ... -> g")
    assert means.tolist() == [[2, 2, 7, 7]]


@pytest.mark.parametrize("norm", ["group:2", "layer", "instance", "none"])
def test_norms_of_one_sample_have_neither_noise_nor_gap(norm):
    found = recorded(nn.Sequential(normlab.norm(norm, 4)), torch.randn(2, 4, 3, 3), "0")["0"]
    assert not {"noise", "gap"} & found.keys()


def test_first_batch_has_nothing_to_be_compared_with():
    found = recorded(nn.Sequential(normlab.norm("batch", 2)), torch.randn(4, 2), "0")["0"]
    assert not {"noise", "gap"} & found.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions_are_recorded(dtype):
    x = torch.full((2, 3), 300.0, dtype=dtype)  # whose square is too large for float16
    found = recorded(nn.Sequential(nn.Identity()), x, "0")["0"]
    assert (found["mean"], found["var"]) == (300, 0)


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_values_that_are_not_finite_become_null(tmp_path, value):
    run = Run.create(tmp_path, EXPERIMENT)
    layer = normlab.norm("batch", 3)
    layer.num_batches_tracked.fill_(1)
    found = recorded(nn.Sequential(layer), torch.full((2, 3), value), "0")
    run.log_all("probe", [{"epoch": 1, "step": 0, "samples": 0, **found["0"]}])
    assert [run.events()[0][key] for key in ("mean", "var", "noise", "gap")] == [None] * 4
    assert read(run)[0].fan is None


# Which layers


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        pytest.param("1", ["1"], id="a name"),
        pytest.param("3", ["3"], id="a block as a whole"),
        pytest.param("*.bn?", ["3.bn1", "3.bn2"], id="a glob"),
        pytest.param(" *.bn2 , 1,1 ", ["1", "3.bn2"], id="several, in the order of the model"),
        pytest.param("3*", ["3.conv1", "3.bn1", "3.relu", "3.conv2", "3.bn2"], id="leaves only"),
        pytest.param("features", ["features"], id="pooled features"),
    ],
)
def test_layers_are_chosen_by_name_and_glob(probe, expected):
    found = recorded(models.build("cifar_resnet:8", 10, norm="group:4"), IMAGES, probe)
    assert [name for name in found if name[0] in "13f"] == expected


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_shared_layer_is_recorded_once_at_its_first_call():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Identity(), shared)
    found = recorded(model, torch.tensor([[-1.0, 2.0]]), "*")
    assert list(found) == ["0", "1"]
    assert found["0"]["mean"] == 1


def test_recomputed_layer_is_recorded_at_its_first_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = normlab.norm("batch", 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rematerialized(self.norm, x, use_reentrant=False)

    # the second pass, in backward, has running statistics to compare with
    assert "noise" not in recorded(Twice(), torch.randn(4, 2), "norm")["norm"]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        pytest.param("layr1", "no layer is called 'layr1'; did you mean 'layer1'", id="misspelt"),
        pytest.param("bn1,x*", r"no layer is called 'x\*'", id="one of several"),
        pytest.param(" , ", "names no layer; leave it out to record none", id="empty"),
    ],
)
def test_names_of_no_layer_are_refused(probe, message):
    with torch.device("meta"):
        model = models.build("torchvision:resnet18", 10)
    with pytest.raises(ExperimentError, match=message):
        probes.Recorder(model, probe)


def test_network_without_linear_layer_has_no_features():
    with pytest.raises(ExperimentError, match="this network has none; name the layer"):
        probes.Recorder(nn.Sequential(nn.Conv2d(3, 4, 1)), "features")


def test_layer_that_gives_several_tensors_is_refused():
    with pytest.raises(ExperimentError, match=r"output of 0 .* not tuple; name a layer inside"):
        recorded(nn.Sequential(nn.LSTM(2, 2)), torch.randn(3, 1, 2), "0")


def test_layer_that_is_never_called_is_said_once():
    model = nn.ModuleDict({"used": nn.Identity(), "other": nn.Identity()})
    recorder = probes.Recorder(model, "*")

    def taken() -> list[str]:
        with recorder.watching(0, 1):
            model["used"](torch.ones(2, 2))
        return [found["layer"] for found in recorder.take()]

    with pytest.warns(UserWarning, match="never called other"):
        assert taken() == ["used"]
    assert taken() == ["used"]  # warnings are errors


# Converted, fused and other layers


@pytest.mark.parametrize("change", ["convert", "shrink", "fuse", "torch"])
def test_changed_networks_are_recorded_before_their_norms(change):
    model = models.build("cifar_resnet:8", 10)
    x = IMAGES.clone()
    expected = recorded(model, x, "1")["1"]["percentiles"]
    if change == "convert":
        model = normlab.convert(model, "group:4")
    elif change == "shrink":
        model = normlab.convert(model, "group:4", strength=0.5)
    elif change == "fuse":
        model = normlab.fuse(model, x)
    else:
        model[1] = nn.BatchNorm2d(16)
    found = recorded(model, x, "1")["1"]
    assert found["place"] == "input"
    assert found["percentiles"] == pytest.approx(expected, rel=1e-5)


def test_hooks_leave_nothing_behind():
    model = models.build("cifar_resnet:8", 10, norm="batch")
    before = [{k: v for k, v in vars(m).items() if "hook" in k} for m in model.modules()]
    keys = list(model.state_dict())
    assert not any(hooks for layer in before for hooks in layer.values())
    recorder = probes.Recorder(model, "*,features")
    with pytest.raises(RuntimeError, match="channels"), recorder.watching(0, 1):
        model(torch.ones(2, 5, 12, 12))
    after = [{k: v for k, v in vars(m).items() if "hook" in k} for m in model.modules()]
    assert after == before
    assert list(model.state_dict()) == keys


# While training


@pytest.mark.parametrize("norm", ["batch", "torch_bn", "group:32", "none"])
@pytest.mark.usefixtures("often")
def test_training_has_the_same_bits_with_probes_and_without(tmp_path, norm):
    plain = EXPERIMENT.replace(norm=norm)
    runs = trained(tmp_path, plain), trained(tmp_path, plain.replace(probe="*,features"))
    assert events(runs[0], probed=False) == events(runs[1], probed=False)
    assert not events(runs[0], probed=True)
    assert events(runs[1], probed=True)
    ours, theirs = map(tensors, runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.usefixtures("often")
def test_parts_of_a_batch_are_recorded_by_the_first(tmp_path):
    e = EXPERIMENT.replace(probe="0", augment="none", epochs=1, accumulate=2)
    found = read(trained(tmp_path, e))
    assert [(p.epoch, p.step, p.samples) for p in found] == [(1, 0, 0), (1, 2, 32), (1, 4, 64)]
    images, _ = train.load_data(e.data, e.image_size, e.validation, e.num_train, e.num_validation)
    first = next(batches(images, 16, seed=e.seed, epoch=0, augment="none")).images[:8]
    x = Input.of(images).prepare(first, CPU)  # layer 0 adds a border of zeros
    assert found[0].mean == pytest.approx(x.mean().item() * 16**2 / 18**2, rel=1e-5)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("step", [1, 2, 3, 9], ids=lambda s: f"F15: after step {s} of 18")
def test_interrupted_run_has_the_same_probes(tmp_path, step):
    def interrupt(progress: train.Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    experiment = EXPERIMENT.replace(probe="*,features")
    whole = trained(tmp_path / "whole", experiment)
    run = trained(tmp_path / "parts", experiment, interrupt)
    assert run.status["state"] == "interrupted"
    assert train.train(run, device=CPU) == "finished"
    assert events(run, probed=True) == events(whole, probed=True)
    assert events(run, probed=False) == events(whole, probed=False)


@pytest.mark.usefixtures("often")
def test_killed_run_has_the_same_probes(tmp_path):
    """Those written after the last checkpoint are forgotten and made again."""
    experiment = EXPERIMENT.replace(probe="2")
    whole = trained(tmp_path / "whole", experiment)

    class Killed(BaseException):
        pass

    def kill(progress: train.Progress) -> None:
        if progress.step == 11:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "parts", experiment, kill)
    run = Run.create(tmp_path / "parts", experiment)
    assert [p.step for p in read(run)] == [0, 2, 4, 6, 8, 10]
    train.train(run, device=CPU)
    assert events(run, probed=True) == events(whole, probed=True)


@pytest.mark.usefixtures("often")
def test_diverging_step_is_recorded(tmp_path):
    run = trained(
        tmp_path,
        EXPERIMENT.replace(
            probe="features", norm="none", optimizer="sgd", learning_rate=1e6, warmup=0.0
        ),
    )
    assert run.status["state"] == "diverged"
    assert read(run)[0].step == 0


@pytest.mark.parametrize(
    ("num_batches", "expected"),
    [
        pytest.param(1, 64, id="1 step an epoch"),
        pytest.param(125, 64, id="125 steps an epoch"),
        pytest.param(1250, 157, id="1250 steps: 8 an epoch"),
    ],
)
def test_probes_are_seldom_enough_to_be_cheap(num_batches, expected):
    recorder = probes.Recorder(nn.Sequential(nn.Identity()), "0")
    due = [step for step in range(1000) if recorder.due(step, num_batches)]
    assert due == list(range(0, 1000, expected))


@pytest.mark.slow
def test_probes_of_all_layers_cost_little_of_an_epoch():
    """5 % of the steps between two; measured on a network with small maps, where they cost most."""
    model = models.build("cifar_resnet:8", 10, norm="batch").train()
    recorder = probes.Recorder(model, "*,features")
    x = torch.randn(32, 3, 12, 12)

    def seconds(step: int) -> float:
        best = math.inf
        for _ in range(30):
            started = time.perf_counter()
            with recorder.watching(step, 1):
                model(x).sum().backward()
            recorder.take()
            best = min(best, time.perf_counter() - started)
        return best

    plain, probed = seconds(1), seconds(0)
    assert probed - plain < 0.05 * probes.EVERY * plain


def test_probe_keeps_the_names_of_runs_without():
    assert Experiment().id == Experiment(probe=None).id != Experiment(probe="features").id


# What is read


def written(root: Path, *lines: dict[str, Any]) -> Run:
    run = Run.create(root, Experiment())
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


EVENT = {
    "event": "probe", "epoch": 2, "step": 64, "samples": 2048, "layer": "bn1", "place": "input",
    "percentiles": {"1": -2.0, "20": -1.0, "80": 1.0, "99": 2.5}, "mean": 0.5, "noise": 0.25,
}  # fmt: skip
PROBE = Probe(
    2, 64, 2048, "bn1", "input", {1: -2.0, 20: -1.0, 80: 1.0, 99: 2.5}, mean=0.5, noise=0.25
)


def test_probes_are_read_as_they_were_written(tmp_path):
    run = written(tmp_path, {"event": "start"}, EVENT, {"event": "epoch"})
    assert read(run) == [PROBE]
    assert PROBE.fan == (-2.0, -1.0, 1.0, 2.5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"mean": None}, replace(PROBE, mean=None), id="null"),
        pytest.param({"mean": 10**400}, replace(PROBE, mean=None), id="too large"),
        pytest.param({"step": -1}, None, id="a negative step"),
        pytest.param({"mean": "0.5"}, replace(PROBE, mean=None), id="text"),
        pytest.param({"mean": True}, replace(PROBE, mean=None), id="a boolean"),
        pytest.param(
            {"percentiles": [1]}, replace(PROBE, percentiles=dict.fromkeys((1, 20, 80, 99))),
            id="percentiles of another kind",
        ),
        pytest.param({"unknown": 7}, PROBE, id="a field of the future"),
        pytest.param({"layer": None}, None, id="without a layer"),
        pytest.param({"step": "x"}, None, id="without a step"),
    ],
)  # fmt: skip
def test_damaged_probes_lose_only_what_is_damaged(tmp_path, change, expected):
    assert read(written(tmp_path, {**EVENT, **change})) == ([] if expected is None else [expected])


def test_half_written_probe_is_left_out_in_silence(tmp_path):
    run = written(tmp_path, EVENT)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "probe", "layer"')
    assert read(run) == [PROBE]


def test_medians_are_over_the_seeds_that_have_the_number():
    def seed(step: int, mean: float | None, low: float | None) -> Probe:
        return replace(PROBE, step=step, mean=mean, percentiles={**PROBE.percentiles, 1: low})

    seeds = [
        [seed(0, 1.0, -1.0), seed(64, 1.0, -1.0)],
        [seed(0, 5.0, -9.0), seed(64, None, None)],
        [seed(0, 2.0, -2.0)],  # diverged
    ]
    found = medians(seeds)
    assert [(p.step, p.mean, p.percentiles[1]) for p in found] == [(0, 2, -2), (64, 1, -1)]
    assert found[0].gap is None


def test_probes_are_read_without_torch():
    code = "import sys, normlab.lab.report.probes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())


# What is shown


def written_sweep(root: Path) -> list[Run]:
    """Runs of two norms and three seeds; layer bn1 is at ± seed with batch, a tenth with none."""
    runs = []
    for norm, size in (("batch", 1.0), ("none", 0.1)):
        for seed in (1, 2, 9):
            run = Run.create(root, Experiment(norm=norm, seed=seed, probe="bn1,features"))
            run.set_status("finished")
            for layer, place in (("bn1", "input"), ("features", "features")):
                for step in (0, 64):
                    high = seed * size + step
                    percentiles = {"1": -high, "20": -high / 2, "80": high / 2, "99": high}
                    fields = {"layer": layer, "place": place, "percentiles": percentiles}
                    where = {"epoch": 1, "step": step, "samples": 32 * step}
                    run.log_all("probe", [{**where, **fields, "mean": 0.0}])
            runs.append(run)
    return runs


def drawn(runs: list[Run]) -> Section:
    found = section(analyse(runs), runs)
    assert found is not None
    return found


def test_fans_are_medians_of_the_seeds_norm_beside_norm(tmp_path):
    found = drawn(written_sweep(tmp_path))
    assert [f.title for f in found.figures] == ["bn1, before the norm", "Pooled features"]
    assert found.figures[0].table.rows == (
        ("batch", "0", "−2", "−1", "1", "2"),
        ("batch", "2,048", "−66", "−33", "33", "66"),
        ("none", "0", "−0.2", "−0.1", "0.1", "0.2"),
        ("none", "2,048", "−64.2", "−32.1", "32.1", "64.2"),
    )
    assert found.sentences[0] == (
        "bn1, before the norm: in the end, 98 % of the values lie between −66 and 66 with batch; "
        "−64.2 and 64.2 with none."
    )


def test_fans_of_other_sizes_have_axes_of_their_own(tmp_path):
    runs = written_sweep(tmp_path)
    assert "share one axis" in drawn(runs).figures[0].note
    for run in runs:
        lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run.path / "metrics.jsonl").write_text(
            "".join(line for line in lines if '"step": 0' in line)
        )
    assert "an axis of its own" in drawn(runs).figures[0].note


def test_drawings_are_well_formed_and_as_wide_as_said(tmp_path):
    for figure in drawn(written_sweep(tmp_path)).figures:
        for svg, width in ((figure.svg, 720), (figure.narrow, 360)):
            root = ElementTree.fromstring(svg)
            assert root.get("viewBox", "").split()[2] == str(width)
            said = [t.text for t in root.iter("title")]
            assert "batch, after 2,048 images. 1 %: −66, 20 %: −33, 80 %: 33, 99 %: 66" in said


@pytest.mark.parametrize(
    "size", [0.0, 1e-30, 1e30, 1e299], ids=["all equal", "tiny", "huge", "near the largest"]
)
def test_fans_of_any_size_are_drawn(tmp_path, size):
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    percentiles = {"1": -size, "20": 0.0, "80": 0.0, "99": size}
    run.log_all("probe", [{**EVENT, "percentiles": percentiles, "step": s} for s in (0, 64)])
    svg = drawn([run]).figures[0].svg
    assert not re.search("nan|inf", svg, re.IGNORECASE)
    texts = ElementTree.fromstring(svg).iter("text")
    ticks = [t.text for t in texts if t.get("class") == "tick end"]
    assert len(ticks) == len(set(ticks)) > 2


def test_runs_without_percentiles_have_a_table_only(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    run.log_all("probe", [{**EVENT, "percentiles": None}])
    found = drawn([run])
    assert not found.figures
    assert found.tables[0].rows[0][:3] == ("bn1, before the norm", "group", "—")


def test_runs_without_probes_have_no_section(tmp_path):
    run = Run.create(tmp_path, Experiment())
    assert section(analyse([run]), [run]) is None
    run = Run.create(tmp_path, Experiment(probe="bn1"))
    assert section(analyse([run]), [run]) is None


def test_damaged_run_leaves_the_others(tmp_path):
    runs = written_sweep(tmp_path)
    (runs[0].path / "metrics.jsonl").write_text("{\n")
    (runs[1].path / "metrics.jsonl").unlink()
    assert drawn(runs).figures[0].table.rows[0] == ("batch", "0", "−9", "−4.5", "4.5", "9")


def test_many_layers_are_drawn_in_part_and_listed_in_full(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="*"))
    run.log_all("probe", [{**EVENT, "layer": f"bn{i}"} for i in range(40)])
    found = drawn([run])
    assert len(found.figures) == 8
    assert [found.figures[i].title for i in (0, -1)] == [f"bn{i}, before the norm" for i in (0, 39)]
    assert len(found.folded[0].rows) == 40


def test_hostile_names_stay_text(tmp_path):
    run = Run.create(tmp_path, Experiment(probe="*"))
    name = "</title><script>alert(1)</script>\u202e"
    run.log_all("probe", [{**EVENT, "layer": name}])
    figure = drawn([run]).figures[0]
    tags = {e.tag for e in ElementTree.fromstring(figure.svg).iter()}
    assert not {"script"} & tags
    assert "\u202e" not in figure.svg


# The network of the experiment


@pytest.mark.parametrize(("variant", "layers"), [("11", 9), ("13:8", 11), ("16", 14), ("19:4", 17)])
def test_vgg_has_a_norm_after_every_convolution(variant, layers):
    with torch.device("meta"):
        model = models.build(f"vgg:{variant}", 10)
    kinds = [type(m).__name__ for m in model]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model) == layers
    after = [kinds[i + 1 : i + 3] for i, kind in enumerate(kinds) if kind == "Conv2d"]
    assert after == [["TorchBatchNorm", "ReLU"]] * (layers - 1)


def test_vgg_responses_are_called_as_in_the_paper():
    model = models.build("vgg:16:4", 10, norm="none")
    found = recorded(model, torch.randn(2, 3, 32, 32), "conv5_3,norm5_3")
    assert found["norm5_3"]["percentiles"] == found["conv5_3"]["percentiles"]
    assert model.conv5_3.out_channels == 32


@pytest.mark.parametrize("size", [1, 8, 28, 33], ids="{} pixels".format)
def test_vgg_takes_images_of_any_size(size):
    assert models.build("vgg:11:4", 7, norm="layer")(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("variant", ["", "12", "16:0", "16:x", "16:4:4", "16:99999"])
def test_other_vggs_are_refused(variant):
    with pytest.raises(LookupError, match="there are vgg:11, vgg:13, vgg:16, vgg:19"):
        models.build(f"vgg:{variant}", 10)
