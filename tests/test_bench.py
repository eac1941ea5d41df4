"""What `bench` measures, what becomes of the figures, and what a mistake gets."""

import csv
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normlab import cli
from normlab.lab import bench
from normlab.lab.bench import network, tables
from normlab.lab.bench.results import COLUMNS, Row
from normlab.layer import Norm
from normlab.surgery.chain import Folded
from tests.oracle import assert_within

TINY = (2, 8, 6, 6)
NETWORK = ("--model", "cifar_resnet:8")
TINY_NETWORK = {"model": "cifar_resnet:8", "batch_size": 2, "image_size": 12}


@pytest.mark.parametrize("norm", ["batch", "group:4", "layer", "instance"])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_ours_and_torchs_compute_the_same(norm, activation, residual):
    given = bench._Given(bench.Case(TINY, norm, activation, residual))
    outputs = [f(given.x, given.residual) for f in (given.ours, given.theirs)]
    assert_within(outputs[0], outputs[1])
    wanted = [given.x, *given.layer.parameters()]
    for ours, theirs in zip(*(torch.autograd.grad(y, wanted, given.dy) for y in outputs)):
        assert_within(ours, theirs)


def test_tensors_are_as_the_case_says():
    case = bench.Case((2, 8, 3, 6, 6), dtype="bfloat16", memory_format="channels_last")
    given = bench._Given(case)
    assert given.x.is_contiguous(memory_format=torch.channels_last_3d)
    assert given.x.dtype == given.dy.dtype == given.layer.weight.dtype == torch.bfloat16


def test_forward_only_keeps_nothing_for_a_backward_pass():
    calls = bench.candidates(bench.Case(TINY, backward=False), compile=False)
    assert [bench.bytes_saved(calls[name], []) for name in ("normlab", "torch")] == [0, 0]


def test_saved_bytes_count_a_storage_once_and_no_parameters():
    x, weight = (torch.ones(10, requires_grad=True) for _ in range(2))
    both = bench.bytes_saved(lambda: (x * x * weight).sum().backward(), [weight])
    assert both == 40 + 40  # x, saved twice; x * x


def test_norms_torch_lacks_are_measured_without_it():
    assert list(bench.candidates(bench.Case(TINY, "batch:n=1"))) == ["copy", "normlab"]


def test_rows_have_every_column_and_the_copy_is_one():
    rows = bench.rows(bench.measure(bench.Case(TINY, "group", "relu", True), 3, compile=False))
    assert [row["candidate"] for row in rows] == ["copy", "normlab", "torch"]
    assert all(tuple(row) == COLUMNS for row in rows)
    copy, ours, theirs = rows
    assert (copy["copies"], theirs["ratio_to_torch"]) == ("1", "1")
    # 7 accesses of the tensor: x, y, x, dy, dx; the residual and its gradient
    moved = 7 * 4 * 2 * 8 * 6 * 6
    assert float(ours["gb_per_second"]) == pytest.approx(
        moved / float(ours["milliseconds"]) * 1e-6, rel=1e-3
    )


def test_figures_follow_from_the_seconds():
    case = bench.Case(TINY)
    seconds = {"copy": [1.0, 1.0, 2.0], "normlab": [3.0, 2.0, 4.0], "torch": [6.0, 4.0, 4.0]}
    figures = bench._figures(case, "normlab", seconds)
    assert figures["copies"] == 2.0
    assert figures["gb_per_second"] == 5 * 4 * 2 * 8 * 6 * 6 / 3.0 / 1e9
    assert figures["ratio_to_torch"] == 0.5
    assert (figures["ratio_low"], figures["ratio_high"]) == (0.5, 0.75)


def test_missing_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = bench.measure(bench.Case(TINY), 1)
    assert rows[-1].candidate == "torch.compile"
    assert rows[-1].milliseconds is None
    assert "torch.compile is left out: there is no C++ compiler (no-such-compiler)." in (
        tables.sentences(rows)
    )


def test_failing_compiler_is_said(monkeypatch):
    def fails(x: object, residual: object) -> None:
        raise RuntimeError("out of registers\nat line 7")

    monkeypatch.setattr(bench, "why_not_compiled", lambda device: "")
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    rows = bench.measure(bench.Case(TINY), 1)
    assert [row.candidate for row in rows] == ["copy", "normlab", "torch", "torch.compile"]
    assert rows[-1].note == "RuntimeError: out of registers"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of torch's own compiler
@pytest.mark.skipif(bool(bench.why_not_compiled("cpu")), reason="needs a C++ compiler")
def test_compiled_torch_is_measured():
    rows = bench.measure(bench.Case(TINY, "batch", "relu", residual=True), 2)
    assert [r.candidate for r in rows] == ["copy", "normlab", "torch", "torch.compile"]
    assert rows[-1].note == ""
    assert rows[-1].bytes_saved


def row(**figures: object) -> Row:
    setting = {"shape": "2x8", "norm": "group", "dtype": "float32", "memory_format": "contiguous",
               "passes": "forward", "candidate": "normlab", "rounds": 3, "num_disturbed": 0,
               "device": "cpu", "threads": 1, "machine": "", "allocator": "default",
               "torch": "2", "normlab": "0"}  # fmt: skip
    return Row(**{**setting, **figures})


@pytest.mark.parametrize(
    ("low", "middle", "high", "said"),
    [
        (1.1, 1.5, 1.6, "Slower: our group norm takes 1.50 times as long as torch's"),
        (0.4, 0.5, 0.9, "Faster: our group norm takes 0.50 times as long as torch's"),
        (0.9, 0.95, 1.1, "No clear difference: our group norm takes 0.95 times as long"),
    ],
)
def test_comparison_with_torch_is_put_in_words(low, middle, high, said):
    ours = row(ratio_low=low, ratio_to_torch=middle, ratio_high=high)
    assert tables.sentences([ours])[0].startswith(said)


def test_faster_compiled_torch_is_admitted():
    ours = row(ratio_low=0.5, ratio_to_torch=0.5, ratio_high=0.5)
    compiled = row(candidate="torch.compile", ratio_to_torch=0.4)
    assert any("torch.compile is faster than ours" in s for s in tables.sentences([ours, compiled]))
    compiled = row(candidate="torch.compile", ratio_to_torch=0.6)
    assert not any("compile" in s for s in tables.sentences([ours, compiled]))


def test_disturbed_samples_are_told():
    assert any("In 2 samples" in s for s in tables.sentences([row(num_disturbed=2)]))
    assert any("does not tell" in s for s in tables.sentences([row(num_disturbed=None)]))


def test_csv_gets_one_header(tmp_path):
    file = tmp_path / "rows.csv"
    for _ in range(2):
        bench.check_file(file)
        bench.append([row(milliseconds=1.5)], file)
    with file.open(newline="") as opened:
        read = list(csv.DictReader(opened))
    assert [r["milliseconds"] for r in read] == ["1.5", "1.5"]
    assert tuple(read[0]) == COLUMNS


def test_allocator_settings_are_recorded_without_folders(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert bench.setting("cpu")["allocator"] == "default"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100")
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libfast.so:/opt/libother.so")
    allocator = bench.setting("cpu")["allocator"]
    assert allocator == "LD_PRELOAD=libfast.so:libother.so MALLOC_TRIM_THRESHOLD_=100"


def test_networks_differ_in_their_norms_only():
    built = network.build(network.Network(norms=("group:4", "instance", "batch"), **TINY_NETWORK))
    assert list(built) == [
        ("as written", "batch"), ("torch", "group:4"), ("normlab", "group:4"),
        ("torch", "instance"), ("normlab", "instance"), ("normlab", "batch"),
    ]  # fmt: skip
    names = network.names_of_norms(built)
    kinds = {
        key: {type(model.get_submodule(name)).__name__ for name in names}
        for key, model in built.items()
    }
    assert kinds["as written", "batch"] == {"BatchNorm2d"}
    assert kinds["torch", "group:4"] == {"GroupNorm"}
    assert kinds["torch", "instance"] == {"InstanceNorm2d"}
    for (candidate, _), model in built.items():
        inside = [name for name, m in model.named_modules() if isinstance(m, Norm)]
        assert inside == (names if candidate == "normlab" else [])


def test_fused_network_is_ours_with_blocks_rewritten():
    built = network.build(network.Network(norms=("group:4",), **TINY_NETWORK))
    built = network.with_fused(built, torch.randn(2, 3, 12, 12))
    assert list(built)[-2:] == [("normlab", "group:4"), ("normlab fused", "group:4")]
    plain, fused = (
        any(isinstance(m, Folded) for m in built[k].modules()) for k in list(built)[-2:]
    )
    assert (plain, fused) == (False, True)


@pytest.mark.parametrize("norm", ["group:4", "layer", "instance"])
def test_torchs_layer_computes_what_ours_does(norm):
    built = network.build(network.Network(norms=(norm,), **TINY_NETWORK))
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    name = network.names_of_norms(built)[0]
    ours, theirs = (built[c, norm].get_submodule(name)(x) for c in ("normlab", "torch"))
    assert_within(ours, theirs)


def test_norms_are_replayed_on_what_they_see():
    built = network.build(network.Network(norms=("group",), **TINY_NETWORK))
    x = torch.randn(2, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    names = network.names_of_norms(built)
    seen = network.inputs_of_norms(built["as written", "batch"], names, x)
    assert [name for name, _, _ in seen] == names
    assert seen[0][1].shape == seen[0][2].shape == (2, 16, 12, 12)
    assert seen[-1][1].shape == (2, 64, 3, 3)
    assert not built["as written", "batch"].get_submodule(names[0])._forward_pre_hooks


def normlab(*arguments: object) -> int:
    return cli.main(["bench", *map(str, arguments)])


@pytest.fixture
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_command_measures_a_norm_and_keeps_rows(capsys):
    before = torch.get_num_threads()
    arguments = ("--shape", "2x8x6x6", "--norm", "group", "batch", "--activation", "relu",
                 "--rounds", 3, "--no-compile", "--device", "cpu", "--threads", 1,
                 "--memory-format", "contiguous", "channels_last", "--out", "b.csv")  # fmt: skip
    assert normlab(*arguments) == 0
    assert torch.get_num_threads() == before
    out = capsys.readouterr().out
    assert "group, activation relu: 2x8x6x6 float32 contiguous, cpu, 1 thread" in out
    assert re.search(r"(Slower|Faster|No clear difference): our batch norm takes", out)
    with open("b.csv", newline="") as opened:
        read = list(csv.DictReader(opened))
    cases = itertools.product(
        ("contiguous", "channels_last"), ("group", "batch"), ("copy", "normlab", "torch")
    )
    assert [(r["memory_format"], r["norm"], r["candidate"]) for r in read] == list(cases)
    assert {r["threads"] for r in read} == {"1"}


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_command_measures_a_network(capsys):
    arguments = (*NETWORK, "--norm", "group", "--batch-size", 2, "--image-size", 12,
                 "--rounds", 2, "--device", "cpu", "--out", "b.csv")  # fmt: skip
    assert normlab(*arguments) == 0
    assert "a step with our group norm takes" in capsys.readouterr().out
    with open("b.csv", newline="") as opened:
        read = list(csv.DictReader(opened))
    assert [r["candidate"] for r in read] == ["as written", "torch", "normlab", "normlab fused"]
    assert read[0]["ratio_to_written"] == read[1]["ratio_to_torch"] == "1"
    assert all(int(r["bytes_saved"]) > 0 for r in read)
    assert [r["norms_milliseconds"] != "" for r in read] == [True, True, True, False]


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
def test_interrupted_command_keeps_what_was_measured(capsys, monkeypatch):
    measured = iter([[row(milliseconds=1.0)]])

    def measure(*_: object, **__: object) -> list[Row]:
        for rows in measured:
            return rows
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    assert normlab("--shape", "2x8", "--device", "cpu", "--out", "b.csv") == 130
    assert "interrupted; what was measured is in b.csv" in capsys.readouterr().out
    assert len(Path("b.csv").read_text().splitlines()) == 2


MISTAKES = [
    ("word", ["--shape", "8xmany"], "shape '8xmany': wanted sizes with x between them, as in 8x25"),
    ("one axis", ["--shape", "8"], "shape 8: wanted N×C×…, 2 to 8 sizes of at least 1 each"),
    ("size 0", ["--shape", "8x0x5"], "shape 8×0×5: wanted N×C×…"),
    ("norm", ["--norm", "grup"], "norm 'grup': there are batch, sync_batch, ghost"),
    ("control", ["--norm", "torch_bn"], "norm 'torch_bn' is what norms are compared with"),
    ("groups", ["--shape", "2x64x4", "--norm", "group:24"],
     "shape 2×64×4: num_channels (64) must be divisible by num_groups (24)"),
    ("group size", ["--shape", "2x64x4", "--norm", "group:size=24"],
     "64 channels do not split into groups of 24 channels"),
    ("slices", ["--shape", "4x8x4", "--norm", "batch:n=3"], "does not split into n=3"),
    ("one value", ["--shape", "1x8x1x1", "--norm", "batch"], "batch norm got one value per"),
    ("activation", ["--activation", "rlu"], "activation 'rlu': there are none, relu"),
    ("dtype", ["--dtype", "int8"], "dtype 'int8': there are float32, bfloat16"),
    ("format", ["--memory-format", "nhwc"], "memory format 'nhwc': there are contiguous, chann"),
    ("axes", ["--shape", "2x8x4", "--memory-format", "channels_last"], "is for 4 or 5 axes"),
    ("nothing", ["--norm"], "--norm needs at least one value"),
    ("rounds", ["--rounds", "0"], "rounds must be at least 1, got 0"),
    ("threads", ["--threads", "2", "0"], "threads must be at least 1, got 0"),
    ("device", ["--device", "cuda:99"], "device 'cuda:99' is not there"),
    ("flag of a network", ["--image-size", "64"], "--image-size goes with --model only"),
    ("flag of a norm", [*NETWORK, "--residual"], "--residual does not go with --model"),
    ("model", ["--model", "cifar_resnet:9"], "the number of layers is 6n+2"),
    ("size of images", [*NETWORK, "--image-size", "0"], "image_size must be at least 1, got 0"),
    ("groups of a network", [*NETWORK, "--norm", "group:24"], "7 of 7 norms cannot become"),
    ("small images", [*NETWORK, "--norm", "instance", "--image-size", "4"],
     "cifar_resnet:8 with instance: Expected more than 1"),
    ("other columns", ["--out", "other.csv"], "other.csv has other columns"),
    ("no folder", ["--out", "nowhere/b.csv"], "nowhere/b.csv cannot be written"),
]  # fmt: skip


@pytest.mark.usefixtures("_in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("arguments", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_mistake_is_explained(capsys, arguments, message):
    Path("other.csv").write_text("a,b\n1,2\n")
    assert normlab("--no-compile", *arguments) == 2
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert message in text
    assert "Traceback" not in text
    assert Path("other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("flag", ["--help", "--rounds=0"])
def test_help_and_plain_mistakes_come_without_torch(flag):
    code = (
        f"import sys; from normlab import cli; cli.main(['bench', {flag!r}]); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.splitlines()[-1].split()
