"""Population statistics: of all data at once, however they are split and wherever they lie."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from oracle import assert_within, sample
from torch import nn

import normlab.nn
from normlab import norms, reference
from normlab.surgery.calibrate import calibrate
from normlab.surgery.freeze import freeze
from normlab.surgery.layers import SurgeryError

SPLITS = {
    "all at once": [30],
    "even": [10, 10, 10],
    "uneven": [1, 13, 2, 14],
    "one by one": [1] * 30,
    "an empty batch": [17, 0, 13],
}


class Twice(nn.Module):
    """One norm that runs at two places."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.second(torch.relu(self.norm(self.first(x)))))


class Auxiliary(nn.Module):
    """A head that only training uses."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        y = self.trunk(x)
        return (y, self.head(y)) if self.training else y


def stack(norm, conv=nn.Conv2d):
    """Three norms after one another; float64, so that only the method is tested."""
    layers = (conv(3, 4, 1), norm(4), nn.ReLU(), conv(4, 6, 1), norm(6), nn.Dropout(), norm(6))
    return nn.Sequential(*layers).double()


NETWORKS = {
    "1-D": (lambda: stack(nn.BatchNorm1d, nn.Conv1d), (5,)),
    "2-D": (lambda: stack(nn.BatchNorm2d), (4, 3)),
    "3-D": (lambda: stack(nn.BatchNorm3d, nn.Conv3d), (2, 3, 2)),
    "SyncBatchNorm, which cannot train here": (lambda: stack(nn.SyncBatchNorm), (4, 3)),
    "features": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double(), ()),
    "normlab.nn": (lambda: stack(normlab.nn.BatchNorm2d), (4, 3)),
    "normlab.norms": (lambda: stack(norms.BatchNorm), (4, 3)),
    "batch_instance": (lambda: stack(norms.BatchInstanceNorm), (4, 3)),
    "shared": (lambda: Twice().double(), (4, 3)),
}


def data(*rest, n=30):
    """Samples whose means differ, so that batches do."""
    return sample(n, 3, *rest, dtype=torch.float64) + 3 * sample(
        n, 3, *[1] * len(rest), dtype=torch.float64, seed=1
    )


def statistics(model):
    return {k: v for k, v in model.state_dict().items() if "running" in k}


def assert_same_statistics(model, other):
    for name, value in statistics(other).items():
        # means of what is already normalized cancel to about 0
        assert_within(statistics(model)[name], value, size=max(1.0, float(value.abs().max())))


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize(("build", "rest"), NETWORKS.values(), ids=NETWORKS)
def test_statistics_equal_for_every_split(build, rest, sizes):
    whole = build()
    split = copy.deepcopy(whole)
    x = data(*rest)
    calibrate(whole, [x])
    calibrate(split, x.split(sizes))
    assert_same_statistics(split, whole)


def test_every_norm_sees_what_calibrated_ones_pass_on():
    model, x = stack(nn.BatchNorm2d), data(4, 3)
    calibrate(model, x.split(7))
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = reference.moments(x, "n c ... -> c")
            assert_within(layer.running_mean, mean, size=1)
            assert_within(layer.running_var, var * 360 / 359)
        x = layer(x)


def test_one_pass_takes_the_statistics_of_training():
    model, x = stack(nn.BatchNorm2d), data(4, 3)
    torchs = copy.deepcopy(model)
    for layer in torchs:
        layer.momentum = 1.0
    torchs.train()[5].eval()
    torchs(x)
    calibrate(model, [x], passes="one")
    assert_same_statistics(model, torchs)


def test_one_pass_sees_the_first_norm_as_the_exact_way_does():
    one, x = stack(nn.BatchNorm2d), data(4, 3)
    exact = copy.deepcopy(one)
    calibrate(one, iter(x.split(7)), passes="one")
    calibrate(exact, x.split(7))
    assert_within(one[1].running_var, exact[1].running_var)
    assert not torch.allclose(one[4].running_var, exact[4].running_var, rtol=0.01)


def test_variance_is_not_the_mean_of_batch_variances():
    model = nn.BatchNorm1d(1)
    calibrate(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]])])
    assert model.running_mean.item() == 6
    assert model.running_var.item() == pytest.approx((36 + 16 + 16 + 36) / 3)


def test_large_mean_costs_no_digits():
    x = sample(64, 3, dtype=torch.float64) + 1e4
    model = nn.BatchNorm1d(3)
    calibrate(model, [batch.float() for batch in x.split(5)])
    _, var = reference.moments(x.float(), "n c -> c")
    assert_within(model.running_var.double(), var * 64 / 63, dtype=torch.float32)


def test_instance_norm_averages_each_samples_own():
    model, x = nn.InstanceNorm2d(3, track_running_stats=True).double(), data(4, 3)
    calibrate(model, x.split([7, 23]))
    mean, var = reference.moments(x, "n c ... -> n c")
    assert_within(model.running_mean, mean.mean(0))
    assert_within(model.running_var, var.mean(0) * 12 / 11)


def test_slices_of_the_batch_are_pooled():
    model, x = norms.norm("batch:n=2", 3, dtype=torch.float64), data(4)
    calibrate(model, x.split([7, 23]))
    _, var = reference.moments(x, "n c ... -> c")
    assert_within(model.running_var, var * 120 / 119)


def test_activation_in_a_norm_of_timm_is_left_alone():
    layers = pytest.importorskip("timm.layers")
    model, x = (
        nn.Sequential(layers.BatchNormAct2d(3), layers.BatchNormAct2d(3)).double(),
        data(4, 3),
    )
    calibrate(model, x.split(11))
    _, var = reference.moments(x, "n c ... -> c")
    assert_within(model[0].running_var, var * 360 / 359)


@pytest.mark.parametrize("passes", ["exact", "one"])
def test_everything_else_stays(passes):
    model = stack(nn.BatchNorm2d).train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[6].momentum = None
    before = copy.deepcopy(model)
    calibrate(model, data(4, 3).split(10), passes=passes)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    for (name, p), old in zip(model.named_parameters(), before.parameters()):
        assert torch.equal(p, old), name
        assert p.requires_grad == old.requires_grad
        assert p.grad is None
    assert [model[i].momentum for i in (1, 4, 6)] == [0.1, 0.1, None]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("passes", ["exact", "one"])
def test_batches_are_counted_as_torch_does(passes):
    model, x = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)), data().float()
    torchs = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(x.split(10), torchs)
    calibrate(model, x.split(10), passes=passes)
    assert model[1].num_batches_tracked == torchs[1].num_batches_tracked == 3


def test_norm_no_batch_reaches_keeps_its_statistics():
    model = Auxiliary().train()
    calibrate(model, data().float().split(10))
    assert model.head.running_mean.eq(0).all()
    assert model.trunk.running_mean.ne(0).all()


def test_frozen_norm_is_left():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    freeze(model, where="0")
    calibrate(model, data().float().split(10))
    assert model[0].running_mean.eq(0).all()
    x = data().float() / (1 + 1e-5) ** 0.5
    assert_within(model[1].running_mean, x.mean(0), size=float(x.abs().max()))


X = sample(6, 3)
BATCHES = {
    "tensor": X,
    "tuple": (X, "labels"),
    "list": [X, torch.zeros(6)],
    "dict": {"label": 3, "image": X},
    "dict of a transformer": {"pixel_values": X, "labels": None},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_batch_is_read(batch):
    model = nn.BatchNorm1d(3)
    calibrate(model, [batch])
    assert_within(model.running_mean, X.mean(0), size=1)


def test_forward_says_what_to_do_with_other_batches():
    model = nn.BatchNorm1d(3)
    calibrate(model, [{"left": X, "right": X}], forward=lambda m, batch: m(batch["left"]))
    assert_within(model.running_mean, X.mean(0), size=1)


def test_max_batches_are_read():
    model = nn.BatchNorm1d(3)
    calibrate(model, X.split(2), max_batches=2)
    assert_within(model.running_mean, X[:4].mean(0), size=1)


def test_compiled_model_is_calibrated():
    inner = nn.Sequential(nn.BatchNorm1d(3))
    assert calibrate(torch.compile(inner, backend="eager"), [X]) is not inner
    assert_within(inner[0].running_mean, X.mean(0), size=1)


def lazy():
    return nn.Sequential(nn.LazyBatchNorm1d())


def frozen():
    model = nn.Sequential(nn.BatchNorm1d(3))
    freeze(model)
    return model


def norm():
    return nn.Sequential(nn.BatchNorm1d(3))


REFUSED = {
    "no data": (norm, [], {}, "the loader has no batches"),
    "18: no norm": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3)), [X], {},
        "0 norms keep running statistics.*it has 1 Linear, 1 GroupNorm",
    ),
    "24: lazy": (lazy, [X], {}, r"0 \(LazyBatchNorm1d\) has no size yet; run one batch first"),
    "27: script": (lambda: torch.jit.script(norm()), [X], {}, "calibrate before torch.jit.script"),
    "frozen": (frozen, [X], {}, "all 1 norms .* are frozen; unfreeze them first"),
    "generator": (
        norm, (x for x in [X]), {}, r'1 times \(passes="one" once\), and a generator',
    ),
    "no such way": (norm, [X], {"passes": "two"}, "passes is one of 'exact', 'one', got 'two'"),
    "no batches asked for": (norm, [X], {"max_batches": 0}, "max_batches must be at least 1"),
    "strange batch": (norm, [{"a": X}], {}, "got a dict with 'a'.*forward=lambda model, batch"),
    "not finite": (
        norm, [X, X / 0], {}, "^0: population statistics of 3 of 3 channels are not finite",
    ),
    "one value": (norm, [X[:1]], {}, "0: one value per channel in all the data"),
    "does not run it": (
        norm, [X], {"forward": lambda m, b: b}, r"none of the 1 norms ran .* \(first 0\)",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("build", "loader", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_calibrated_is_refused(build, loader, options, message):
    with pytest.raises(SurgeryError, match=message):
        calibrate(build(), loader, **options)


@pytest.mark.parametrize("passes", ["exact", "one"])
def test_failure_half_way_leaves_the_model_unchanged(passes):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    with torch.no_grad():
        model[1].weight.fill_(float("inf"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match="^2: population statistics of 3 of 3 channels"):
        calibrate(model, X.split(3), passes=passes)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(m.training for m in model.modules())


PROCESS = """
import json, sys, torch
from torch import distributed, nn
from normlab.surgery.calibrate import calibrate

rank, store, out, sizes, fails = int(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4]), sys.argv[5]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)).double()
x = torch.randn(24, 3, dtype=torch.float64) * torch.arange(1, 25)[:, None]
mine = (x[:sum(sizes[0])] if rank == 0 else x[sum(sizes[0]):]).split(sizes[rank]) if sizes[rank] else []
if fails == "fails" and rank == 1:
    mine = [mine[0][:, :2]]
try:
    calibrate(model, list(mine))
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr)
    distributed.destroy_process_group()
    sys.exit(3)
torch.save((model.state_dict(), x), f"{out}.{rank}")
distributed.barrier()
distributed.destroy_process_group()
"""  # noqa: E501


def two_processes(folder, sizes, fails=""):
    """State on each rank, the data; or what they said."""
    command = [str(folder / "store"), str(folder / "out"), json.dumps(sizes), fails]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESS, str(rank), *command],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=60)[1] for process in started]
    if fails:
        assert [process.returncode for process in started] == [3, 3], said
        return said
    assert [process.returncode for process in started] == [0, 0], said
    (first, x), (second, _) = (
        torch.load(f"{folder / 'out'}.{rank}", weights_only=True) for rank in range(2)
    )
    return first, second, x


@pytest.mark.parametrize(
    "sizes", [([5, 7], [4, 4, 4]), ([19], [5]), ([24], [])],
    ids=["even ranks", "uneven ranks", "F13: an empty rank"],
)  # fmt: skip
def test_issue_152_statistics_are_the_same_on_every_rank(tmp_path, sizes):
    """P21, facebookresearch/fvcore."""
    first, second, x = two_processes(tmp_path, sizes)
    assert all(torch.equal(first[key], second[key]) for key in first)
    alone = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)).double()
    alone.load_state_dict(first)
    calibrate(alone, [x])
    for key, value in statistics(alone).items():
        assert_within(first[key], value)
    assert first["0.num_batches_tracked"] == len(sizes[0] + sizes[1])


def test_failure_on_one_rank_ends_all(tmp_path):
    first, second = two_processes(tmp_path, ([12], [12]), "fails")
    assert "SurgeryError process 1 failed in the first batch: " in first
    assert "ValueError" in first + second or "RuntimeError" in first + second


def test_norms_that_wait_for_other_processes_are_refused_in_one_pass(monkeypatch):
    monkeypatch.setattr(sys.modules["normlab.surgery.calibrate"], "is_distributed", lambda: True)
    with pytest.raises(SurgeryError, match=r"1 SyncBatchNorm \(first 0\) wait for other processes"):
        calibrate(nn.Sequential(nn.SyncBatchNorm(3)), [X], passes="one")


def test_root_mean_square_of_a_data_set_has_no_mean():
    layer, x = norms.norm("rms:batch", 3), torch.randn(64, 3) * 2 + 5
    normlab.calibrate(layer, [x[:40], x[40:]])
    assert torch.equal(layer.running_mean, torch.zeros(3))
    torch.testing.assert_close(layer.running_var, x.square().mean(0))
