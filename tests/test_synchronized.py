"""Statistics of several processes: equal to the joined batch, gradients too, whoever has what."""

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from oracle import assert_within, make, sample
from torch import nn

import normlab
from normlab import norms, surgery

# images of each process: even, uneven, one without any
SHARES = {"2 even": (3, 3), "2 uneven": (5, 1), "2, one empty": (6, 0), "4": (1, 3, 0, 2)}

RANK = """
    import sys
    import torch
    from torch import distributed
    sys.path.insert(0, sys.argv[5])
    from test_synchronized import CASES, build, inputs

    rank, store, out, shares = int(sys.argv[1]), sys.argv[2], sys.argv[3], eval(sys.argv[4])
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=len(shares)
    )
    start = sum(shares[:rank])
    here = slice(start, start + shares[rank])
    found = {}
    for name in CASES:
        layer, (x, dy, mask) = build(name, synchronize=True), inputs(name)
        x = x[here].clone().requires_grad_()
        y = layer(x) if mask is None else layer(x, mask=mask[here])
        gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy[here])
        found[name] = [y.detach(), *gradients, *layer.buffers()]
    if shares[rank]:
        layer = build("batch")
        found["not joined"] = [layer(inputs("batch")[0][here]).detach(), *layer.buffers()]
    torch.save(found, f"{out}/{rank}.pt")
    distributed.destroy_process_group()
"""

SPECS = {"per group": "batch_group:2", "rms": "rms:batch", "composed": "evonorm_b0"}
CASES = [
    "batch", "running average of all", "masked", "far from 0", "constants", "narrow", "untracked",
    *SPECS,
]  # fmt: skip


def build(name, **options):
    momentum = None if "average" in name else 0.1
    if name == "untracked":
        options["track_running_stats"] = False
    if name == "constants":  # float32 has statistics of float64 here, which would hide it
        options["dtype"] = torch.float64
    return make(SPECS.get(name, "batch"), momentum=momentum, activation="silu", **options)


def inputs(name):
    x, dy, mask = sample(6, 6, 5), sample(6, 6, 5, seed=1), None
    if name == "far from 0":
        x = x + 1e3
    if name == "constants":  # of each channel: exactly the bias
        x = torch.linspace(1, 1000, 6).reshape(1, 6, 1).expand(6, 6, 5).double()
        dy = dy.double()
    if name == "narrow":
        x, dy = x.bfloat16(), dy.bfloat16()
    if name == "masked":
        mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) > 0.4
    return x, dy, mask


@pytest.fixture(scope="module", params=SHARES)
def ranks(request, tmp_path_factory):
    """What each process found, and its part of the batch."""
    shares, folder = SHARES[request.param], tmp_path_factory.mktemp("ranks")
    script = folder / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    here = __file__.rpartition("/")[0]
    started = [
        subprocess.Popen(
            [sys.executable, script, str(r), folder / "store", folder, str(shares), here],
            stderr=subprocess.PIPE, text=True,
        )
        for r in range(len(shares))
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(len(shares))], shares


@pytest.mark.parametrize("name", CASES)
def test_processes_compute_what_one_would_of_the_joined_batch(ranks, name):
    found, _ = ranks
    layer, (x, dy, mask) = build(name), inputs(name)
    x.requires_grad_()
    y = layer(x) if mask is None else layer(x, mask=mask)
    dx, *parameters = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    ratio = 1e3 if name == "far from 0" else 0.0
    y_found, dx_found = (torch.cat([rank[name][i] for rank in found]) for i in (0, 1))
    assert_within(y_found, y.detach(), ratio=ratio)
    assert_within(dx_found, dx, ratio=ratio, size=dy.abs().max().item())
    for i, expected in enumerate(parameters, start=2):  # of the sum of the losses: DDP averages
        total = sum(rank[name][i] for rank in found)
        assert_within(total, expected, ratio=ratio, size=dy.float().abs().sum().item() / 6)
    for i, expected in enumerate(layer.buffers(), start=2 + len(parameters)):
        for rank in found:
            assert_within(rank[name][i].double(), expected.double(), dtype=torch.float32)


def test_layers_that_were_not_told_to_share_keep_to_themselves(ranks):
    found, shares = ranks
    parts = inputs("batch")[0].split(shares)
    for rank, part in zip(found, parts):
        if len(part):
            layer = build("batch")
            expected = [layer(part).detach(), *layer.buffers()]
            assert all(torch.equal(a, b) for a, b in zip(rank["not joined"], expected))


def test_all_processes_have_the_same_bits(ranks):
    found, _ = ranks
    for name in CASES:
        first, *others = (rank[name][-3:] for rank in found)
        for buffers in others if name != "untracked" else ():
            assert all(map(torch.equal, first, buffers))


def test_one_process_keeps_to_its_own():
    alone, x = make("batch", synchronize=True), sample(4, 6, 5)
    assert torch.equal(alone(x), make("batch")(x))


@pytest.mark.parametrize("spec", ["group", "layer", "instance"])
def test_norms_whose_samples_stand_alone_refuse_to_be_synchronized(spec):
    with pytest.raises(ValueError, match=r"of single samples.*leave out the synchronization"):
        normlab.norm(spec, 6, synchronize=True)


@pytest.mark.parametrize("spec", ["frozen_batch", "torch_bn"])
def test_norms_that_do_not_ask_other_processes_say_so(spec):
    with pytest.raises(ValueError, match=f"norm '{spec}' does not synchronize; use sync_batch"):
        normlab.norm(spec, 6, synchronize=True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        norms.norm("batch", 8),
        nn.SyncBatchNorm(8),
    )


def test_synchronize_keeps_every_layer_and_its_state():
    model = network()
    layers, state = list(model), model.state_dict()
    watched = []
    model[1].register_forward_hook(lambda *_: watched.append(1))
    assert surgery.synchronize(model) is model
    assert list(model) == layers
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert [type(model[i]) for i in (1, 4)] == [normlab.nn.SyncBatchNorm] * 2
    assert model[3].synchronize
    x = sample(2, 3, 5, 5)
    assert_within(model(x), plain(x))
    assert watched == [1]


def plain(x):
    """The same with torch's batch norm in the place of its synchronized one."""
    model = network()
    model[4] = nn.BatchNorm2d(8)
    return model(x).detach()


def test_unsynchronize_gives_back_the_classes():
    model = nn.Sequential(nn.BatchNorm2d(8), normlab.nn.BatchNorm1d(8, activation="relu"))
    model.append(norms.norm("batch", 8))
    classes = [type(layer) for layer in model]
    surgery.unsynchronize(surgery.synchronize(model))
    assert [type(layer) for layer in model] == classes
    assert model[1].activation == "relu"
    assert not model[2].synchronize


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(2, 8), "no batch norm; it has .*1 GroupNorm"),
        (norms.norm("batch:n=2", 8), r"1 of 1 batch norms .*\n.*parts of a batch"),
        (norms.norm("torch_bn", 8), "'torch_bn' takes its statistics otherwise"),
        (type("Mine", (nn.BatchNorm2d,), {})(8), "is a Mine, which does more than normalize"),
    ],
    ids=["group norm", "slices", "torch's function", "a subclass"],
)
def test_what_cannot_be_synchronized_is_named_and_left(layer, message):
    model = nn.Sequential(nn.Linear(2, 8), layer)
    with pytest.raises(surgery.SurgeryError, match=message):
        surgery.synchronize(model)
    assert not getattr(layer, "synchronize", False)


def test_sync_batch_norm_that_was_none_before_says_where_to_go():
    with pytest.raises(surgery.SurgeryError, match=r'convert\(model, "batch"\)'):
        surgery.unsynchronize(nn.Sequential(normlab.nn.SyncBatchNorm(8)))


def test_torchs_conversion_takes_ours_and_ours_keeps_the_activation():
    model = nn.Sequential(normlab.nn.BatchNorm2d(8, activation="relu"))
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(theirs[0]) is nn.SyncBatchNorm
    model = nn.Sequential(normlab.nn.BatchNorm2d(8, activation="relu"))
    twin = normlab.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(twin[0]) is normlab.nn.SyncBatchNorm
    assert twin[0].activation == "relu"
    assert twin[0].weight is model[0].weight


def test_group_norm_and_back_restores_torchs_synchronized_norm():
    model = nn.Sequential(nn.SyncBatchNorm(8))
    before = model[0]
    before.num_batches_tracked.fill_(5)  # it has been trained
    before.running_mean.fill_(0.5)
    model = surgery.convert(model, "group:2")
    model = surgery.convert(model, "batch")
    assert type(model[0]) is nn.SyncBatchNorm
    assert model[0].weight is before.weight


def test_synchronized_layers_are_copied_and_pickled():
    model = surgery.synchronize(nn.Sequential(nn.BatchNorm2d(8), norms.norm("batch", 8)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[0]) is normlab.nn.SyncBatchNorm
        assert twin[1].synchronize


@pytest.mark.parametrize("name", ["frozen_batch", "torch_bn"])
def test_norm_that_does_not_synchronize_says_so(name):
    with pytest.raises(ValueError, match=f"'{name}' does not synchronize; use sync_batch"):
        norms.norm(name, 8, synchronize=True)
