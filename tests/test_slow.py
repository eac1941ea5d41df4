"""What takes minutes: generated code, and the effect the embedded data are there to show."""

import copy

import pytest
import torch
from torch import nn

import normlab.nn
from normlab import norm
from normlab.lab import analysis
from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment
from normlab.lab.sweep import run_all

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_n29_generated_code_trains_as_eager_mode_does(dynamic):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        normlab.nn.BatchNorm2d(32, activation="relu"),
        nn.Conv2d(32, 32, 3),
        norm("group", 32),
        nn.ReLU(),
    )
    generated = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=dynamic)
    for size in (4, 4, 6):
        x = torch.randn(size, 3, 16, 16)
        for model in (eager, generated):
            model.zero_grad()
            model(x).square().mean().backward()
    for ours, theirs in zip(eager.parameters(), generated.parameters()):
        # sums in another order: a few hundred float32 roundings of the largest gradient
        scale = float(ours.grad.abs().max()) + 1e-3
        torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-4 * scale, rtol=1e-4)
    for ours, theirs in zip(eager.buffers(), generated.buffers()):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_embedded_data_show_the_small_batch(tmp_path):
    base = Experiment(norm="batch")
    experiments = [base.replace(norm_batch_size=size) for size in (2, None)]
    runs = run_all(experiments, tmp_path, compute=Compute(device="cpu")).runs
    small, large = (analysis.read(run) for run in runs)
    assert small.error > large.error + 5  # points; seeds differ by 3 at 2 and by 1 at 32
    assert small.train_error < large.error  # it learns: statistics, not optimization
