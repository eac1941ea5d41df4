"""The shape of the code: floors, light imports, file sizes, and a README that shows the tree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import normlab

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "normlab").rglob("*.py"))

# from the ground up; a module imports from its own floor and from below
FLOORS = [
    ["normlab.pattern"],
    ["normlab.ops", "normlab.reference"],
    ["normlab.checks"],
    ["normlab.recompute", "normlab.moments"],
    ["normlab.running"],
    ["normlab.functional", "normlab.layer"],
    ["normlab.nn", "normlab.norms"],
    ["normlab.surgery"],
    ["normlab.lab.address"],
    ["normlab.lab.experiment", "normlab.lab.compute", "normlab.lab.schedule",
     "normlab.lab.interrupt", "normlab.lab.norm_names", "normlab.lab.differences",
     "normlab.lab.published"],
    ["normlab.lab.recipes", "normlab.lab.sweep_file"],
    ["normlab.lab.run_lock", "normlab.lab.runs", "normlab.lab.checkpoint", "normlab.lab.weights",
     "normlab.lab.environment", "normlab.lab.tensorboard", "normlab.lab.tracking",
     "normlab.lab.config"],
    ["normlab.lab.tasks", "normlab.lab.models", "normlab.lab.data", "normlab.lab.results",
     "normlab.lab.domains"],
    ["normlab.lab.train", "normlab.lab.evaluate", "normlab.lab.probes", "normlab.lab.optimizer",
     "normlab.lab.prediction", "normlab.lab.start", "normlab.lab.population",
     "normlab.lab.processes", "normlab.lab.update", "normlab.lab.saving", "normlab.lab.mixing",
     "normlab.lab.memory", "normlab.lab.shift"],
    ["normlab.lab.pool", "normlab.lab.on_ray", "normlab.lab.on_slurm", "normlab.lab.sweep",
     "normlab.lab.analysis", "normlab.lab.analysis_probes", "normlab.lab.manage"],
    ["normlab.lab.conversions"],
    ["normlab.lab.report"],
    ["normlab.lab.bench"],
    ["normlab.flags", "normlab.launch"],
    ["normlab.measure", "normlab.operate", "normlab.housekeeping"],
    ["normlab.cli"],
]  # fmt: skip


def name_of(source: Path) -> str:
    return ".".join(source.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int | None:
    for height, homes in enumerate(FLOORS):
        if any(module == home or module.startswith(home + ".") for home in homes):
            return height
    return None


def imported(source: Path) -> set[str]:
    """Modules of normlab that a file imports while it runs, anywhere in it."""
    found = set()
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{a.name}" for a in node.names]
            found |= {m if floor(m) is not None else node.module for m in inside}
    return {m for m in found if m.startswith("normlab")}


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_imports_go_down_only(source):
    here = floor(name_of(source))
    if here is None:
        assert name_of(source) in ("normlab", "normlab.lab"), "give the module a floor"
        return
    for module in imported(source):
        below = floor(module)
        assert below is None or below <= here, f"{name_of(source)} imports {module}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_normlab_loads_nothing_heavy():
    loaded = loaded_by("import normlab, normlab.functional, normlab.nn, normlab.norms")
    heavy = {
        "numba",
        "llvmlite",
        "triton",
        "torchvision",
        "torchmetrics",
        "h5py",
        "jinja2",
        "rich",
        "tyro",
    }
    assert not loaded & heavy
    assert not any(m.startswith("normlab.lab") for m in loaded)


def test_command_line_parses_without_torch():
    assert "torch" not in loaded_by("import normlab.cli")


def test_runs_and_reports_do_without_torch():
    assert "torch" not in loaded_by("import normlab.lab.runs, normlab.lab.report")


def test_public_names_are_sorted_and_there():
    assert normlab.__all__ == sorted(normlab.__all__)
    assert all(getattr(normlab, name) is not None for name in normlab.__all__)


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_files_hold_one_idea(source):
    assert len(source.read_text().splitlines()) <= 400


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_modules_say_what_they_are_for(source):
    assert ast.get_docstring(ast.parse(source.read_text()))


def test_readme_tree_is_the_tree():
    """Every path the README's tree shows exists, and every module of the package is shown."""
    block = re.search(r"```text\n(normlab/.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block, "README.md has no tree"
    shown, folders = set(), []
    for line in block[1].splitlines():
        entry = re.match(r"([│├└─ ]*)([\w./\[\]-]+)", line)
        if not entry or "═" in line:
            continue
        depth, path = len(entry[1]) // 4, entry[2]
        folders = [*folders[:depth], path.rstrip("/")]
        shown.add("/".join(folders))
    missing = [p for p in shown if not (ROOT / p).exists()]
    assert not missing
    for source in SOURCES:
        parts = source.relative_to(ROOT).parts
        candidates = {"/".join(parts[: k + 1]) for k in range(1, len(parts))}
        assert candidates & shown or source.name == "__init__.py", f"README misses {source}"
