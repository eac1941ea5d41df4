"""Runs judged by running, population and batch statistics, and what the report says of it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import FakeRun
from torch import nn

import normlab
from normlab.lab import evaluate, population, train
from normlab.lab.analysis import analyse
from normlab.lab.compute import Compute
from normlab.lab.data.dataset import Dataset
from normlab.lab.experiment import Experiment
from normlab.lab.report import judged
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input

CPU, ON_CPU = torch.device("cpu"), Compute(device="cpu")
TINY = Experiment(
    data="digits", model="cifar_resnet:8", norm="batch", num_train=64, num_validation=40,
    batch_size=8, epochs=1, image_size=8,
)  # fmt: skip


def images(count: int, seed: int) -> Dataset:
    """Two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randint(0, 100, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Dataset(pixels + 80 * labels.reshape(-1, 1, 1, 1).to(torch.uint8), labels, ("a", "b"))


class Bright(nn.Module):
    """Class by brightness, where the norm knows the mean brightness."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = normlab.norm(norm, 3, momentum=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(x).mean((1, 2, 3))
        return torch.stack([-z, z], 1)


def test_stale_running_statistics_are_told_from_those_of_population_and_batch():
    model, seen = Bright("batch").eval(), images(200, 0)
    model.norm.running_mean.fill_(-9.0)
    state = copy.deepcopy(model.state_dict())
    found = population.errors(model, seen, images(64, 1), Input.of(seen), CPU, 8)
    assert evaluate.measure(model, images(64, 1), Input.of(seen), CPU)[1] == 50.0
    assert found == {"population": 0.0, "batch": 0.0}
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not model.training


def test_batches_are_of_the_size_asked_for():
    """One value per channel would be the bias: every image in class 0, half of them wrong."""
    model, seen = Bright("batch:n=2"), images(64, 0)
    found = population.errors(model, seen, images(7, 1), Input.of(seen), CPU, 8)
    assert found["batch"] is None


@pytest.mark.parametrize("norm", ["group:3", "frozen_batch", "none"])
def test_networks_without_batch_norm_are_not_judged(norm):
    seen = images(8, 0)
    assert population.errors(Bright(norm), seen, seen, Input.of(seen), CPU, 4) == {}


def test_population_that_is_not_finite_has_no_error():
    model, seen = nn.Sequential(nn.Conv2d(3, 3, 1), Bright("batch")), images(8, 0)
    nn.init.constant_(model[0].weight, torch.inf)
    found = population.errors(model, seen, seen, Input.of(seen), CPU, 4)
    assert found["population"] is None


@pytest.mark.parametrize("norm", ["batch", "group:8"])
def test_run_records_how_it_is_judged(tmp_path, norm):
    run = Run.create(tmp_path, TINY.replace(norm=norm))
    assert train.train(run, compute=ON_CPU) == "finished"
    found = [e for e in run.events() if e["event"] == "statistics"]
    assert len(found) == (norm == "batch")
    last = [e for e in run.events() if e["event"] == "epoch"][-1]
    for event in found:
        assert event["running"] == last["validation_error"]
        assert 0 <= event["population"] <= 100


@dataclass
class JudgedRun(FakeRun):
    judged: tuple[Any, ...] = (0.0, 0.0, 0.0)

    def events(self) -> list[dict[str, Any]]:
        kinds = dict(zip(("running", "population", "batch"), self.judged))
        return [*super().events(), {"event": "statistics", **kinds}]


def analysis(*rows: tuple[int, tuple[Any, ...]]) -> Any:
    runs = [
        JudgedRun(Experiment(norm="batch", norm_batch_size=x, seed=seed), path=Path(f"{x}-{seed}"),
                  judged=tuple(v if v is None else v + seed / 10 for v in values))
        for x, values in rows
        for seed in (0, 1, 2)
    ]  # fmt: skip
    return analyse(runs, [])


def test_table_and_sentence_tell_what_running_averages_cost():
    a = analysis((2, (30.0, 12.0, 11.0)), (8, (9.0, 9.0, 9.0)))
    assert [*judged.table(a).rows[0][:5]] == [
        "batch",
        "2",
        "30.1 ± 0.1",
        "12.1 ± 0.1",
        "11.1 ± 0.1",
    ]
    (said,) = judged.sentences(a)
    assert "With batch at a normalization batch of 2, running averages" in said
    assert "(+18.0 points, 3 seeds)" in said
    assert len(judged.figure(a).panels) == 1


def test_calibration_is_advised_only_where_it_helps():
    values = {0: (30.0, 12.0), 1: (31.0, 12.5), 2: (30.5, 12.9)}
    for sign, advice in ((1, "normlab.calibrate mends that"), (-1, "would not help")):
        runs = [
            JudgedRun(Experiment(norm="batch", seed=seed), path=Path(str(seed)),
                      judged=(*((r, p) if sign > 0 else (p, r)), 9.0))
            for seed, (r, p) in values.items()
        ]  # fmt: skip
        (said,) = judged.sentences(analyse(runs, []))
        assert said.endswith(f"{advice}.")


def test_missing_errors_are_dashes():
    assert judged.table(analysis((2, (30.0, None, None)))).rows[0][2:5] == ("30.1 ± 0.1", "—", "—")


def test_runs_that_were_not_judged_make_no_section():
    assert judged.section(analyse([FakeRun(Experiment(norm="batch"))], []), []) is None
