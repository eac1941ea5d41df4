"""Every promise about numbers, and every known bug of others, has a test that names it.

N1 to N37 are families of values, layouts and uses; B01 to B45 bugs reported to PyTorch; P01 to P21
to other projects. A test names one in its own name, in the id of a row, or in its docstring.
"""

import ast
import csv
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from oracle import assert_within, make, sample
from torch import distributed, nn
from torch.nn import functional as F

import normlab.nn
from normlab import functional, norms, reference, surgery

TESTS = Path(__file__).parent
IDS = [
    *(f"N{i}" for i in range(1, 38)),
    *(f"B{i:02}" for i in range(1, 46)),
    *(f"P{i:02}" for i in range(1, 22)),
]
# under another name: what is asked of a synchronized layer, of an exported one, of a conversion
ELSEWHERE = {
    "B12": "test_synchronized.py::test_processes_compute_what_one_would_of_the_joined_batch",
    "B38": "test_export.py::test_onnx_runs_as_torch_does_n30",
    "B43": "test_synchronized.py::test_all_processes_have_the_same_bits",
    "P17": "test_surgery_libraries.py::test_21_activation_of_timms_batch_norm_is_kept",
}


def texts_in(file: Path) -> dict[str, str]:
    """Name of each test, and what may name an id: its name, rows written above it, docstring."""
    source = file.read_text()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            above = [ast.get_source_segment(source, d) or "" for d in node.decorator_list]
            words = node.name.replace("_", " ")
            found[node.name] = " ".join([words, *above, ast.get_docstring(node) or ""])
    return found


@pytest.fixture(scope="module")
def named() -> dict[str, list[str]]:
    """Tests by the ids they name."""
    found = defaultdict(list)
    for file in sorted(TESTS.glob("test_*.py")):
        for name, text in texts_in(file).items():
            for letter, number in re.findall(r"(?<![\w-])([NBPnbp])(\d\d?)(?!\w|\.)", text):
                number = int(number) if letter in "Nn" else f"{int(number):02}"
                found[f"{letter.upper()}{number}"].append(f"{file.name}::{name}")
    for identity, test in ELSEWHERE.items():
        file, _, name = test.partition("::")
        assert name in texts_in(TESTS / file), f"{test} is gone; say what stands for {identity}"
        found[identity].append(test)
    return found


@pytest.mark.parametrize("identity", IDS)
def test_a_test_names_every_promise(named, identity):
    assert named[identity], f"no test has {identity} in its name, rows or docstring"


def test_page_shows_every_row_that_was_measured_and_none_of_ours_fails():
    page = (TESTS.parent / "docs" / "conformance.md").read_text()
    with (TESTS.parent / "benchmarks" / "results" / "conformance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["id"] in IDS
        assert f"| {row['id']} | {row['case']} |" in page
    assert page.count("\n| ") == len(rows) + page.count("| id | case |")
    assert {row["normlab"] for row in rows} <= {"passes", "refuses"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: functional.batch_norm(x, None, None, training=True), "per channel"),
        (lambda x: norms.norm("batch", 6, track_running_stats=False).eval()(x), "per channel"),
        (lambda x: functional.instance_norm(x), "per sample and channel"),
        (lambda x: functional.group_norm(x, 6), "per group"),
    ],
    ids=["batch", "batch, evaluated without statistics", "instance", "group"],
)
def test_n4_one_value_per_statistic_is_refused(call, message):
    with pytest.raises(ValueError, match=f"Expected more than 1 value per channel .*{message}"):
        call(sample(1, 6, 1, 1))


def test_n4_one_value_per_statistic_passes_where_it_is_not_taken():
    x = sample(1, 6, 1, 1)
    layer = make("batch").eval()
    expected = (x.flatten() - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
    assert_within(layer(x).flatten(), expected * layer.weight + layer.bias)
    assert not functional.group_norm(sample(2, 6, 1, 1), 6).any()


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 2, 5), (3, 6, 2, 2, 3)], ids=str)
def test_n9_group_norm_between_its_ends(shape):
    """One group is layer norm; as many as channels, instance norm; of those between, each group."""
    x = sample(*shape) * 3 + 7
    assert torch.equal(functional.group_norm(x, 1), functional.normalize(x, "n c ... -> n"))
    assert_within(
        functional.group_norm(x, 1), functional.layer_norm(x, shape[1:]).double(), ratio=7 / 3
    )
    if len(shape) > 2:
        assert torch.equal(functional.group_norm(x, 6), functional.instance_norm(x))
    assert torch.equal(norms.norm("group:1", 6)(x), norms.norm("layer", 6)(x))
    parts = torch.cat([functional.group_norm(part, 1) for part in x.split(2, 1)], 1)
    assert_within(functional.group_norm(x, 3), parts.double(), ratio=7 / 3)


@pytest.mark.parametrize("shape", [(2, 6, 0), (2, 6, 3, 0), (2, 0, 3)], ids=str)
def test_n11_nothing_to_average_is_refused_by_group_norm_and_passes_others(shape):
    groups = 2 if shape[1] else 1
    for module in (functional, F):
        x = torch.empty(shape, requires_grad=True)
        with pytest.raises(RuntimeError, match="Expected .*to be greater than 0"):
            module.group_norm(x, groups)
        y = module.batch_norm(x, None, None, training=True)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
        assert module.layer_norm(x, shape[1:]).shape == shape


@pytest.mark.parametrize("spec", ["batch", "group:2", "layer", "instance"])
def test_n18_float64_is_computed_in_float64(spec):
    """A spread of 1e-9 of the mean, which float32 does not have."""
    layer = make(spec, eps=1e-30, dtype=torch.float64)
    x = 1 + 1e-9 * sample(4, 6, 5, dtype=torch.float64)
    truth = reference.normalize(x, layer.pattern, layer.weight, layer.bias, eps=1e-30)
    assert truth.std() > 0.1
    assert_within(layer(x), truth, ratio=1e9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "layer",
    [normlab.nn.BatchNorm1d(6), normlab.nn.InstanceNorm1d(6, affine=True),
     normlab.nn.GroupNorm(2, 6), normlab.nn.LayerNorm(5)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_n19_narrow_input_meets_wide_weights(layer, dtype):
    """The output has the type of the input, the gradient of a weight that of the weight."""
    x = sample(4, 6, 5, dtype=dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    assert_within(y, layer(x.detach().float()).double(), dtype=dtype)


@pytest.mark.parametrize("eps", [0.0, -0.5, -10.0])
def test_n22_eps_of_functions_is_as_torchs(eps):
    """NaN where the variance plus eps is negative, and nowhere else; batch norm refuses."""
    x = sample(4, 6, 5) * torch.tensor([0.01, 1, 1, 1, 1, 1]).reshape(-1, 1)
    for call in (lambda m: m.group_norm(x, 6, eps=eps), lambda m: m.layer_norm(x, (5,), eps=eps)):
        ours, theirs = call(functional), call(F)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert_within(ours, theirs.double(), ratio=1)
    for module in (functional, F):
        with pytest.raises(ValueError, match="eps must be positive during training"):
            module.batch_norm(x, None, None, training=True, eps=eps)


def test_n34_collectives_are_of_the_processes_given(tmp_path, monkeypatch):
    """One forward, one backward; also where they have a single value of a channel in all."""
    groups, lonely = [], torch.ones(4, 6, 5, dtype=torch.bool)
    lonely[:, 0] = False
    lonely[1, 0, 2] = True
    for name in ("all_gather", "all_reduce"):
        collective = getattr(distributed, name)

        def recorded(*given, group=None, collective=collective):
            groups.append(given[2] if len(given) > 2 else group)
            return collective(*given, **({} if len(given) > 2 else {"group": group}))

        monkeypatch.setattr(distributed, name, recorded)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        ours, found = distributed.new_group([0]), []
        for group in (None, ours):
            for mask in (None, lonely):
                x = sample(4, 6, 5).requires_grad_()
                y = functional.normalize(x, "n c ... -> c", mask=mask, process_group=group)
                found += [y, *torch.autograd.grad(y, x, sample(4, 6, 5, seed=1))]
    finally:
        distributed.destroy_process_group()
    assert groups == [ours] * 4
    for alone, joined in zip(found[:4], found[4:]):
        assert_within(joined, alone.double())


def test_p18_synchronized_layers_keep_what_hangs_on_them():
    """qconfig, the count of batches, and the check of the input's axes on the way back."""
    model = nn.Sequential(nn.BatchNorm1d(6))
    model(sample(4, 6))
    model[0].qconfig = "of quantization"
    model = surgery.synchronize(model)
    assert (model[0].qconfig, model[0].num_batches_tracked) == ("of quantization", 1)
    model = surgery.unsynchronize(model)
    assert (model[0].qconfig, model[0].num_batches_tracked) == ("of quantization", 1)
    with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 4D input\)"):
        model(sample(4, 6, 2, 2))


def test_p18_batch_norm_that_comes_back_has_what_hung_on_it():
    model = nn.Sequential(nn.BatchNorm1d(6))
    model(sample(4, 6))
    model[0].qconfig = "of quantization"
    model = surgery.convert(surgery.convert(model, "group:2"), "batch")
    assert (model[0].qconfig, model[0].num_batches_tracked) == ("of quantization", 1)


def available_memory() -> int:
    """Bytes; 0 where Linux is not there to ask."""
    meminfo = Path("/proc/meminfo")
    text = meminfo.read_text() if meminfo.exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


@pytest.mark.slow
def test_b45_rows_beyond_2_to_the_31_elements_are_reached():
    """Where offsets of 32 bits would end. Zeros nobody wrote take no memory; the output does."""
    rows, length = (1 << 19) + 2, 1 << 12
    if available_memory() < 1.5 * 2 * rows * length:
        pytest.skip("the output takes 4.3 GB, more than there are to spare")
    x, edge = torch.zeros(rows, length, dtype=torch.bfloat16), sample(3, length)
    x[-3:] = edge
    y = functional.layer_norm(x, (length,))
    assert_within(y[-3:], reference.normalize(x[-3:], "n c -> n"))
    assert not y[:-3:4097].any()
