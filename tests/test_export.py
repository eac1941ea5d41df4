"""Networks with our layers, taken elsewhere: ONNX, TorchScript, several processes."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import normlab
from normlab import norms

SPECS = [{"group": "group:4", "evonorm_s0": "evonorm_s0:2"}.get(n, n) for n in norms.available()]


def network(spec: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), normlab.norm(spec, 8, activation="silu"), nn.Conv2d(8, 4, 1)
    ).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_onnx_runs_as_torch_does_n30(spec, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = network(spec), torch.randn(2, 3, 9, 9) + 3
    torch.onnx.export(model, (x,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "layer", [normlab.norm("group", 8), normlab.nn.GroupNorm(4, 8), normlab.nn.BatchNorm2d(8)],
    ids=["catalogue", "torch's name", "with statistics"],
)  # fmt: skip
def test_script_is_refused_with_what_to_do_n31(layer):
    with pytest.raises(RuntimeError, match=r"TorchScript .* torch\.jit\.trace or torch\.export"):
        torch.jit.script(nn.Sequential(layer))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("spec", SPECS)
def test_trace_computes_the_same_n31(spec):
    model, x = network(spec), torch.randn(2, 3, 9, 9)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


RANK = """
    import sys
    import torch
    from torch import distributed, nn
    import normlab

    rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), normlab.norm("group:4", 8, activation="relu"), nn.Conv2d(8, 1, 1)
    )
    model = nn.parallel.DistributedDataParallel(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 3, 9, 9)
    batches = [x[0:2], x[2:4], x[4:5]] if rank == 0 else [x[0:2], x[2:4]]
    with model.join():
        for batch in batches:
            model(batch).square().mean().backward()
            sgd.step()
            sgd.zero_grad()
    torch.save([p.detach() for p in model.parameters()], f"{out}/{rank}.pt")
    distributed.destroy_process_group()
"""


def test_ranks_with_uneven_batches_agree_n34(tmp_path):
    """Two processes, of which one has a batch more: the other's part of it is 0."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RANK)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path)])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), normlab.norm("group:4", 8, activation="relu"), nn.Conv2d(8, 1, 1)
    )
    x = torch.randn(5, 3, 9, 9)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch, share in ((x[0:2], 1), (x[2:4], 1), (x[4:5], 0.5)):
        (share * model(batch).square().mean()).backward()
        sgd.step()
        sgd.zero_grad()
    for found in (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)):
        for trained, alone in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(trained, alone.detach(), rtol=1e-5, atol=1e-6)
