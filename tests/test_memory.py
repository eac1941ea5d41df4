"""Memory of a training step: what is counted, that measuring changes nothing, how it is shown."""

from pathlib import Path

import pytest
import torch
from fake_runs import FakeRun
from torch import nn

from normlab.lab import memory, results, runs, train
from normlab.lab.analysis import analyse
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.report import costs, tables

TINY = Experiment(model="convnet", image_size=8, num_train=32, num_validation=16, epochs=1)
MEBIBYTE = 2**20


class Wasteful(nn.Module):
    """Holds a mebibyte that nothing keeps for the backward pass, n times, one after the other."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            torch.zeros(MEBIBYTE, dtype=torch.uint8)
        return self.linear(x)


def measured(model: nn.Module) -> int:
    peak = memory.bytes_peak(model, torch.ones(2, 4), torch.tensor([0, 1]))
    assert peak is not None
    return peak


@pytest.mark.parametrize("times", [1, 5])
def test_peak_has_what_is_held_at_once_and_not_again(times: int) -> None:
    # a mebibyte comes and goes before anything else is there; what else there is takes under 4 KiB
    assert MEBIBYTE <= measured(Wasteful(times)) < MEBIBYTE + 4096


def test_peak_holds_the_network_and_what_is_saved() -> None:
    model = nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 3))
    own = sum(p.nbytes for p in model.parameters())
    saved = memory.bytes_saved(model, torch.randn(2, 4), torch.tensor([0, 1]))
    assert measured(model) >= 2 * own + saved - 4096  # parameters and as many gradients


def test_measuring_the_peak_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    measured(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_profiler_of_the_caller_is_left_alone() -> None:
    with torch.autograd.profiler.profile():
        assert memory.bytes_peak(nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([0, 1])) is None


def test_run_records_its_peak(tmp_path: Path) -> None:
    run = runs.Run.create(tmp_path, TINY)
    train.train(run, compute=Compute(device="cpu"))
    found = results.read(run)
    assert found.bytes_peak is not None
    assert found.bytes_saved_step is not None
    assert found.bytes_peak > found.bytes_saved_step


def test_peak_of_a_gpu_is_that_of_the_end(tmp_path: Path) -> None:
    run = runs.Run.create(tmp_path, TINY)
    run.log("start", num_parameters=5)
    assert results.read(run).bytes_peak is None
    run.log("end", reason="finished", bytes_peak=77)
    assert results.read(run).bytes_peak == 77


def test_runs_that_recorded_no_peak_show_none() -> None:
    a = analyse([FakeRun(Experiment(norm=n, batch_size=b)) for n in ("bn", "gn") for b in (2, 8)])
    assert "peak MB" not in tables.cost(a).columns
    figure = costs.figure(a)
    assert figure is not None
    assert [size for size, _ in figure.choices] == ["2", "8"]
    assert {heading for _, panels in figure.choices for heading, _ in panels} == {
        "Kept for the backward pass, MB per step"
    }


def test_figure_has_a_dot_for_every_run_at_its_size() -> None:
    found = [
        FakeRun(Experiment(norm=n, batch_size=b, seed=s))
        for n in ("bn", "gn", "ln")
        for b in (2, 8)
        for s in (0, 1)
    ]
    figure = costs.figure(analyse(found))
    assert figure is not None
    for _, ((_, svg),) in figure.choices:
        assert svg.count("<circle") == 6
    assert len(figure.table.rows) == 12
