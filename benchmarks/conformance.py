"""What torch's norms and normlab's do where norms go wrong, each against the definition in float64.

    python benchmarks/conformance.py       prints what differs; writes results/conformance.csv, and
                                           the tables of docs/conformance.md between its marks

Every row is measured in this process, on the CPU; nothing is taken from elsewhere.
"""

import csv
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conformance_cases import (
    BATCH,
    GROUPS,
    Case,
    Found,
    X,
    bound,
    constants,
    derivatives,
    holds,
    layouts,
    offsets,
    ranges,
    round_trip,
    sample,
    scripted,
)
from torch import distributed

import normlab.nn
from normlab import functional, reference

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "conformance.csv"
PAGE = HERE.parent / "docs" / "conformance.md"
MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->")
SIDES = {"torch": (torch.nn, torch.nn.functional), "normlab": (normlab.nn, functional)}


class Outcome(NamedTuple):
    """Passes, fails or refuses; the largest error, or what was raised."""

    verdict: str
    detail: str


def judge(case: Case, nn: Any, F: Any) -> Outcome:
    """One side's outcome of a case; whatever it raises is part of the result."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            actual, expected, most = case.call(nn, F)
    except Exception as error:
        words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:110]
        if not case.refuses:
            return Outcome("refuses", words)
        # a reason, of a type that callers of torch catch
        told = isinstance(error, ValueError | RuntimeError | TypeError)
        return Outcome("passes" if told else "fails", words)
    if case.refuses:
        return Outcome("fails", "accepted")
    actual, expected = actual.detach().double(), expected.detach().double()
    if not torch.equal(actual.isnan(), expected.isnan()):
        return Outcome("fails", "NaN in other places")
    off = torch.where(actual == expected, 0.0, (actual - expected).abs()).nan_to_num(0.0)
    worst = off.max().item() if off.numel() else 0.0
    return Outcome("passes" if worst <= most else "fails", f"{worst:.2g}")


def no_samples(make: Callable[[Any], torch.nn.Module]) -> Callable:
    def call(nn: Any, F: Any) -> Found:
        layer, x = make(nn), torch.empty(0, 6, 4, 4, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert x.grad is not None
        fine = all(b.isfinite().all() for b in layer.buffers())
        return holds(y.shape == x.shape, x.grad.shape == x.shape, fine)

    return call


def averages_all(nn: Any, F: Any) -> Found:
    layer = nn.InstanceNorm2d(6, momentum=None, track_running_stats=True)
    batches = [sample(*X, seed=seed) + 5 for seed in range(3)]
    for batch in batches:
        layer(batch)
    expected = torch.cat(batches).double().mean((0, 2, 3))
    return layer.running_mean, expected, bound(expected, torch.float32)


def compiles(nn: Any, F: Any) -> Found:
    torch._dynamo.reset()
    layer = nn.BatchNorm2d(6, momentum=None)
    truth = reference.normalize(sample(*X), BATCH)
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(sample(*X))
    return y, truth, bound(truth, torch.float32)


def synchronized(nn: Any, F: Any) -> Found:
    """In a group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        method = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=method, rank=0, world_size=1)
        try:
            y = nn.SyncBatchNorm(6)(sample(*X))
        finally:
            distributed.destroy_process_group()
    truth = reference.normalize(sample(*X), BATCH)
    return y, truth, bound(truth, torch.float32)


def nested(nn: Any, F: Any) -> Found:
    parts = [sample(3, 5), sample(2, 5, seed=1)]
    y = nn.LayerNorm(5)(torch.nested.nested_tensor(parts, layout=torch.jagged)).values()
    truth = reference.normalize(torch.cat(parts), "n c -> n")
    return y, truth, bound(truth, torch.float32)


def eps_zero(nn: Any, F: Any) -> Found:
    truth = reference.normalize(sample(*X), GROUPS, eps=0.0)
    return nn.GroupNorm(2, 6, eps=0.0)(sample(*X)), truth, bound(truth, torch.float32)


def per_example(nn: Any, F: Any) -> Found:
    """vmap over a layer that would move its running statistics."""
    torch.vmap(nn.BatchNorm2d(6))(sample(2, *X))
    return holds(True)


def two_forwards(nn: Any, F: Any) -> Found:
    layer, x = nn.BatchNorm2d(6), sample(*X).requires_grad_()
    (layer(x) * layer(x * 2)).sum().backward()
    assert x.grad is not None
    return holds(bool(x.grad.isfinite().all()))


def input_stays(nn: Any, F: Any) -> Found:
    x, same = sample(*X), []
    for layer in (nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6), nn.LayerNorm(9)):
        y = layer(x)
        same.append(torch.equal(x, sample(*X)) and x.data_ptr() != y.data_ptr())
    return holds(*same)


def narrow(nn: Any, F: Any) -> Found:
    x = sample(*X).bfloat16()
    layers = (nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6), nn.LayerNorm(9))
    return holds(*(layer(x).dtype == torch.bfloat16 for layer in layers))


def after(call: Callable[[Any, Any], Any]) -> Callable:
    """A call that matters only for what it raises."""

    def asked(nn: Any, F: Any) -> Found:
        call(nn, F)
        return holds(True)

    return asked


def uses() -> list[Case]:
    """What is asked of layers: batches without samples, statistics, compilers, wrong inputs."""
    one, flat = sample(4, 6, 1, 1), sample(6)
    wrong = [
        ("N4", "batch norm, one value per channel", lambda nn, F: nn.BatchNorm1d(6)(sample(1, 6))),
        ("B08", "instance norm of one position, 4 samples", lambda nn, F: F.instance_norm(one)),
        ("B09", "group norm, one value per group in all", lambda nn, F: F.group_norm(one[:1], 6)),
        ("N11", "group norm without positions", lambda nn, F: F.group_norm(one[..., :0], 2)),
        ("B14", "num_groups 0, function", lambda nn, F: F.group_norm(one, 0)),
        ("B14", "num_groups 0, layer", lambda nn, F: nn.GroupNorm(0, 6)),
        ("B16", "group norm of one axis", lambda nn, F: F.group_norm(flat, 2)),
        ("B16", "instance norm of one axis", lambda nn, F: F.instance_norm(flat)),
        ("B16", "batch norm of one axis",
         lambda nn, F: F.batch_norm(flat, None, None, training=True)),
        ("B36", "running_mean without running_var",
         lambda nn, F: F.batch_norm(one, torch.zeros(6), None, training=True)),
        ("B37", "instance norm of other channels", lambda nn, F: nn.InstanceNorm2d(3)(sample(*X))),
        ("N19", "float32 input, float64 weight",
         lambda nn, F: F.group_norm(one, 2, torch.ones(6, dtype=torch.float64))),
        ("N21", "whole numbers", lambda nn, F: F.group_norm(torch.ones(X, dtype=torch.int), 2)),
        ("N22", "batch norm, eps 0 in training",
         lambda nn, F: F.batch_norm(one, None, None, training=True, eps=0.0)),
        ("N22", "group norm layer, eps -1", lambda nn, F: nn.GroupNorm(2, 6, eps=-1.0)),
        ("B34", "vmap over running statistics", per_example),
    ]  # fmt: skip
    return [
        Case("B11", "batch norm of no samples", no_samples(lambda nn: nn.BatchNorm2d(6))),
        Case(
            "B10",
            "instance norm of no samples, with weights",
            no_samples(lambda nn: nn.InstanceNorm2d(6, affine=True)),
        ),
        Case("N10", "group norm of no samples", no_samples(lambda nn: nn.GroupNorm(2, 6))),
        Case("B41", "instance norm, momentum=None averages all batches", averages_all),
        Case("B30", "batch norm, momentum=None, compiled with fullgraph", compiles),
        Case("B12", "SyncBatchNorm on the CPU, in a process group", synchronized),
        Case("B42", "two forward passes before one backward", two_forwards),
        Case("N15", "inputs stay, outputs are memory of their own", input_stays),
        Case("N19", "bfloat16 input, float32 weights: output is bfloat16", narrow),
        Case("N27", "state_dict loads into torch's layer", round_trip),
        Case("N31", "torch.jit.script of a layer", scripted),
        Case("N22", "group norm layer with eps 0", eps_zero),
        Case("N22", "layer norm of a nested (jagged) tensor", nested),
        *(Case(i, f"{claim}: refused with a reason", after(c), True) for i, claim, c in wrong),
    ]


def measure() -> list[dict[str, str]]:
    cases = [*offsets(), *constants(), *ranges(), *layouts(), *derivatives(), *uses()]
    rows = []
    for case in cases:
        row = {"id": case.id, "case": case.claim}
        for side, (nn, F) in SIDES.items():
            row[side], row[f"{side}_detail"] = judge(case, nn, F)
        rows.append(row | {"version": torch.__version__})
    return rows


def tables(rows: list[dict[str, str]]) -> str:
    """The rows as markdown, by who passes."""

    def those(title: str, wanted: Callable[[str, str], bool]) -> str:
        chosen = [row for row in rows if wanted(row["torch"], row["normlab"])]
        if not chosen:
            return f"### {title}: none\n"
        lines = ["| id | case | torch | normlab |", "|---|---|---|---|"]
        for row in chosen:
            cells = [f"{row[s]} ({row[s + '_detail']})".replace("|", "\\|") for s in SIDES]
            lines.append(f"| {row['id']} | {row['case']} | {cells[0]} | {cells[1]} |")
        return "\n".join([f"### {title}: {len(chosen)}", "", *lines, ""])

    total, passed = len(rows), {s: sum(row[s] == "passes" for row in rows) for s in SIDES}
    return "\n".join([
        f"{total} cases on torch {torch.__version__}, CPU: torch passes {passed['torch']}, "
        f"normlab {passed['normlab']}. In brackets the largest error, or what was raised.\n",
        those("Torch does not pass, normlab does", lambda t, n: t != "passes" and n == "passes"),
        those("Torch passes, normlab does not", lambda t, n: t == "passes" and n != "passes"),
        those("Neither passes", lambda t, n: t != "passes" and n != "passes"),
        those("Both pass", lambda t, n: t == n == "passes"),
    ])  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    rows = measure()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    begin, end = MARKS
    page = PAGE.read_text()
    if not re.search(f"{begin}.*{end}", page, re.DOTALL):
        raise SystemExit(f"{PAGE} lacks the lines {begin.strip()} and {end}")
    before, after = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(before + begin + tables(rows) + end + after)
    for row in rows:
        if not row["torch"] == row["normlab"] == "passes":
            print(row["id"].ljust(4), row["case"].ljust(60), *(
                f"{row[s]} ({row[s + '_detail']})".ljust(50) for s in SIDES
            ))  # fmt: skip
    print(tables(rows).partition("\n")[0])


if __name__ == "__main__":
    main()
