"""Do the tests notice a fault? Small faults are written into copies of the package, one in each.

Each mutant changes one expression or statement: a comparison, an operator, a constant, a negated
condition, a call that is left out. A test that fails catches it; a survivor is listed with its
line: a missing test, unless it computes the same, as `mutants_equivalent.toml` then says.

    python benchmarks/mutants.py --num 200        adds to results/mutants.csv, continues it
    python benchmarks/mutants.py --only normlab/pattern.py --num 20

Torch, Numba and pytest are loaded once; every mutant is a fork of that process. The same seed and
the same sources give the same mutants.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mutations import Mutant, mutant_of, sites_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "mutants.csv"
EQUIVALENT = HERE / "mutants_equivalent.toml"
COLUMNS = [
    "seed",
    "file",
    "line",
    "mutation",
    "outcome",
    "by",
    "seconds",
    "before",
    "after",
    "note",
]
NEEDED = [  # by the tests
    "normlab", "tests", "conftest.py", "pyproject.toml", "README.md",
    "docs/conformance.md", "benchmarks/results/conformance.csv",
]  # fmt: skip

BROKEN = 70  # the exit status where tests could not even be asked

CONTRACT = ("tests/test_conformance.py", "tests/test_contract.py", "tests/test_transforms.py")
EQUALITY = (
    "tests/test_torch_equality.py",
    "tests/test_bad_layers.py",
    "tests/test_bad_calls.py",
    "tests/test_regressions.py",
)
KERNELS = ("tests/test_cpu_kernels.py", "tests/test_numerics.py", "tests/test_cpu_memory.py")


class Target(NamedTuple):
    """Files, how often they are chosen, and the tests that are asked, pointed ones first."""

    files: str
    weight: float
    tests: tuple[str, ...]
    limit: float = 150  # seconds; a test that takes longer hangs


TARGETS = [
    Target("normlab/pattern.py", 12, ("tests/test_pattern.py", "{file}", *EQUALITY, *CONTRACT)),
    Target(
        "normlab/functional.py", 12,
        (
            *EQUALITY, "{file}", "tests/test_masks.py", "tests/test_recompute.py",
            "tests/test_numerics.py", *CONTRACT,
        ),
    ),
    Target(
        "normlab/layer.py", 11,
        (
            *EQUALITY, "tests/test_masks.py", "tests/test_recompute.py", "{file}",
            "tests/test_synchronized.py", *CONTRACT,
        ),
    ),
    Target(
        "normlab/running.py", 12,
        (
            "tests/test_masks.py", *EQUALITY, "tests/test_recompute.py",
            "tests/test_synchronized.py", *CONTRACT,
        ),
    ),
    Target(
        "normlab/moments.py", 8,
        ("tests/test_masks.py", "tests/test_conformance.py", "tests/test_synchronized.py"),
    ),
    Target(
        "normlab/norms/*.py", 22,
        (
            "tests/test_norms_*.py", "{file}", "tests/test_masks.py", *EQUALITY,
            "tests/test_synchronized.py", *CONTRACT,
        ),
    ),
    Target(
        "normlab/ops/*.py", 14,
        (*EQUALITY, "tests/test_numerics.py", "tests/test_cpu_kernels.py", *CONTRACT),
    ),
    Target("normlab/ops/cpu/jit.py", 1, ("tests/test_cpu_jit.py",), 600),
    Target("normlab/ops/cpu/t*.py", 1, ("tests/test_cpu_threads.py", *KERNELS), 600),
    Target("normlab/ops/cpu/*.py", 5, (*KERNELS, "tests/test_cpu_threads.py"), 600),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--trust", action="store_true", help="do not ask the tests of the unchanged sources first"
    )
    parser.add_argument("--only", default="", help="a file, relative to the repository")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the trials under way
    preload()
    done = {key(row) for row in read()}
    waiting = [
        m for m in draw(chosen.num, chosen.seed, chosen.only) if m.key(chosen.seed) not in done
    ]
    print(f"{chosen.num - len(waiting)} of {chosen.num} mutants have been asked already")
    if not chosen.trust:
        check_unchanged({target_of(m.file) for m in waiting}, chosen.jobs)
    for trial in trials(waiting, chosen.jobs):
        record(trial, chosen.seed)
    report(chosen.seed)


def check_unchanged(targets: set[Target], jobs: int) -> None:
    """Exit where tests fail without a fault; else say how long a survivor will take."""
    files = [sources(target)[0] for target in sorted(targets)]
    plain = [Mutant(str(f.relative_to(ROOT)), 0, "nothing", "", "", f.read_text()) for f in files]
    for trial in trials(plain, jobs):
        outcome, by = trial.outcome()
        if outcome != "survived":
            raise SystemExit(f"tests fail without a fault: {by}; see {trial.folder}/output.txt")
        print(f"{trial.seconds:5.0f} s  {trial.target.files}: tests pass unchanged", flush=True)
        shutil.rmtree(trial.folder)


def trials(mutants: list[Mutant], jobs: int) -> Iterator["Trial"]:
    """Each mutant's trial when it is over, so many at a time."""
    waiting, running = list(mutants), list[Trial]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Trial(waiting.pop(0)))
            for trial in [t for t in running if t.is_over()]:
                running.remove(trial)
                yield trial
            time.sleep(0.05)
    finally:
        for trial in running:
            trial.end()
            shutil.rmtree(trial.folder)


def preload() -> None:
    """What every test loads, but not the package under test."""
    import numba  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    assert "normlab" not in sys.modules


def sources(target: Target) -> list[Path]:
    """Files of a target that belong to no target before it."""
    earlier = TARGETS[: TARGETS.index(target)]
    taken = {p for t in earlier for p in ROOT.glob(t.files)}
    return [p for p in sorted(ROOT.glob(target.files)) if p not in taken]


@functools.cache
def target_of(file: str) -> Target:
    return next(t for t in TARGETS if ROOT / file in sources(t))


def draw(num: int, seed: int, only: str) -> list[Mutant]:
    """Mutants at random: a target by its weight, one of its mutants, each once."""
    chance = random.Random(seed)
    pools = {}
    for i, target in enumerate(TARGETS):
        files = [f for f in sources(target) if only in ("", str(f.relative_to(ROOT)))]
        pools[i] = [site for f in files for site in sites_of(f)]
        chance.shuffle(pools[i])
    if not any(pools.values()):
        raise SystemExit(f"no mutants of {only}; it must be one of the files under test")
    drawn: list[Mutant] = []
    while len(drawn) < num and any(pools.values()):
        left = [i for i in pools if pools[i]]
        (i,) = chance.choices(left, [TARGETS[i].weight for i in left])
        site = pools[i].pop()
        mutant = mutant_of(site, str(site.path.relative_to(ROOT)))
        drawn += [mutant] if mutant else []
    return drawn


class Trial:
    """A mutant and the process that tests it, in a folder of its own."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.start = mutant, time.monotonic()
        self.seconds, self.target = 0.0, target_of(mutant.file)
        self.folder = Path(tempfile.mkdtemp(prefix="mutant_"))
        for name in NEEDED:
            source, copy = ROOT / name, self.folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        (self.folder / mutant.file).write_text(mutant.source)
        self.witness = Witness(self.folder)
        self.status: int | None = None
        self.hangs = False
        self.process = os.fork()
        if self.process == 0:
            ask(self.folder, self.target.tests, mutant.file, self.witness)
        with contextlib.suppress(OSError):  # it may have done so itself
            os.setpgid(self.process, self.process)

    def is_over(self) -> bool:
        pid, status = os.waitpid(self.process, os.WNOHANG)
        self.seconds = time.monotonic() - self.start
        last_written = (self.folder / "outcome.json").stat().st_mtime  # when a test began
        if pid:
            self.status = status
        elif time.time() - last_written > self.target.limit:
            self.hangs = True
            self.end()
        return self.status is not None

    def end(self) -> None:
        """Stop the process, with what it started, which is in its group."""
        os.killpg(self.process, signal.SIGKILL)
        self.status = os.waitpid(self.process, 0)[1]

    def outcome(self) -> tuple[str, str]:
        """What came of it, and the test it came from."""
        found = json.loads((self.folder / "outcome.json").read_text())
        assert self.status is not None
        if found["failed"]:
            return "caught", found["failed"]
        if os.WIFSIGNALED(self.status):
            return "caught: hangs" if self.hangs else "caught: crashes", found["at"]
        code = os.waitstatus_to_exitcode(self.status)
        if code == BROKEN:
            raise RuntimeError((self.folder / "output.txt").read_text())
        if code == 0:
            return "survived", ""
        return "caught", f"pytest ends with {code} at {found['at']}"


class Witness:
    """A pytest plugin: the test under way and the first that failed, in a file."""

    def __init__(self, folder: Path) -> None:
        self.file, self.found = folder / "outcome.json", {"at": "collection", "failed": ""}
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.found))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.found["at"] = nodeid
        self.write()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.found["failed"]:
            self.found["failed"] = report.nodeid
            self.write()


def ask(folder: Path, tests: tuple[str, ...], file: str, witness: Witness) -> None:
    """Run tests on the package in a folder; in a forked process, which ends here."""
    code = BROKEN
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        with (folder / "output.txt").open("wb") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (HERE, ROOT))]
        sys.modules["__main__"] = ModuleType("__main__")  # not to be imported by spawned processes
        os.environ["PYTHONPATH"] = str(folder)  # of processes that tests start
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        if "/cpu/" in file:
            os.environ["NORMLAB_CACHE"] = str(folder / "cache")
        import pytest

        found = [
            str(path) for test in tests for path in sorted(folder.glob(test.format(file=file)))
        ]
        given = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", *found]
        code = pytest.main(given, plugins=[witness])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def record(trial: Trial, seed: int) -> None:
    """One row; a survivor is shown with its line."""
    m, (outcome, by) = trial.mutant, trial.outcome()
    note = equivalents().get((m.file, m.before, m.after), "")
    row = [
        seed, m.file, m.line, m.what, outcome, by.removeprefix("tests/"),
        round(trial.seconds, 1), m.before, m.after, note,
    ]  # fmt: skip
    shutil.rmtree(trial.folder)
    is_new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(row)
    print(f"{trial.seconds:5.0f} s  {outcome:15} {m.file}:{m.line} {m.what}  {by}", flush=True)
    if outcome == "survived":
        print(f"    - {m.before}\n    + {m.after}", flush=True)


def read() -> list[dict[str, str]]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def key(row: dict[str, str]) -> tuple[str, ...]:
    return row["seed"], row["file"], row["mutation"], row["before"], row["after"]


@functools.cache
def equivalents() -> dict[tuple[str, str, str], str]:
    """Why a changed line computes the same, by file and both lines."""
    if not EQUIVALENT.exists():
        return {}
    rows = tomllib.loads(EQUIVALENT.read_text())["mutant"]
    return {(row["file"], row["before"], row["after"]): row["why"] for row in rows}


def report(seed: int) -> None:
    rows = [row for row in read() if row["seed"] == str(seed)]
    outcomes = Counter(row["outcome"] for row in rows)
    print(f"{len(rows)} mutants of seed {seed}: {dict(outcomes)}")
    for row in survivors(rows):
        note = f"   # {row['note']}" if row["note"] else ""
        print(f"{row['file']}:{row['line']}{note}\n    - {row['before']}\n    + {row['after']}")


def survivors(rows: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows that survived, with the notes of today."""
    for row in rows:
        if row["outcome"] == "survived":
            note = equivalents().get((row["file"], row["before"], row["after"]), "")
            yield row | {"note": note}


if __name__ == "__main__":
    main()
