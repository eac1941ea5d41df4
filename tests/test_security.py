"""S01: no call in the sources that runs code from data; there are no exceptions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("normlab", "benchmarks", "experiments", "examples", "tests")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))

FORBIDDEN = {
    *("eval", "exec", "builtins.eval", "builtins.exec"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.load", "_pickle.loads"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
    *("torch.jit.load", "torch.package.PackageImporter", "torch.serialization.load"),
}
# tests show that layers can be pickled, so they read what they wrote a line before
ALLOWED_IN_TESTS = {"pickle.loads"}
MODULES = {"joblib", "marshal", "dill", "cloudpickle", "shelve", "torch.hub"}
# argument: the only value it may have
ARGUMENTS = {
    "shell": False,
    "allow_pickle": False,
    "weights_only": True,
    "trust_remote_code": False,
}
REQUIRED = {"torch.load": "weights_only", "yaml.load": "Loader"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def violations(source: str) -> list[str]:
    tree = ast.parse(source)
    names = dict(_imports(tree))
    return [what for node in ast.walk(tree) for what in _violations(node, names)]


def _violations(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (n for _, n in _imports(node) if _is_forbidden(n))
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        name = _dotted(node, names)
        if name and _is_forbidden(name):
            yield name
    if not isinstance(node, ast.Call):
        return
    function, keywords = _dotted(node.func, names), {k.arg: k.value for k in node.keywords}
    for argument, allowed in ARGUMENTS.items():
        value = keywords.get(argument)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is allowed):
            yield f"{argument} must be {allowed}"
    required = REQUIRED.get(function or "")
    if required and required not in keywords:
        yield f"{function} without {required}="
    if function == "yaml.load" and _dotted(keywords.get("Loader"), names) not in SAFE_LOADERS:
        yield "yaml.load without a safe loader"


def _is_forbidden(name: str) -> bool:
    return name in FORBIDDEN or any(name == m or name.startswith(f"{m}.") for m in MODULES)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each imported name in a module or statement, and what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (top, top)
                if alias.name in MODULES:
                    yield alias.name, alias.name
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST | None, names: dict[str, str]) -> str | None:
    """`np.load` -> "numpy.load"; None for anything that is not a dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else None
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_calls_nothing_forbidden(path):
    found = set(violations(path.read_text(encoding="utf-8")))
    assert not (found - ALLOWED_IN_TESTS if path.parent.name == "tests" else found)


CAUGHT = [
    "eval('1')",
    "f = exec",
    "import pickle; pickle.load(f)",
    "import pickle as p; p.loads(b)",
    "from pickle import loads",
    "from pickle import Unpickler as U; U(f)",
    "import torch; torch.load(f)",
    "import torch as t; t.load(f, weights_only=False)",
    "from torch import load; load(f)",
    "import torch; torch.load(f, weights_only=safe)",
    "import torch; torch.hub.load('a', 'b')",
    "from torch import hub",
    "import torch.hub",
    "import numpy as np; np.load(f, allow_pickle=True)",
    "import subprocess; subprocess.run('ls', shell=True)",
    "import os; os.system('ls')",
    "from os import system as run; run('ls')",
    "import yaml; yaml.load(f)",
    "import yaml; yaml.load(f, Loader=yaml.Loader)",
    "import yaml; yaml.unsafe_load(f)",
    "import joblib",
    "from marshal import loads",
    "AutoModel.from_pretrained('x', trust_remote_code=True)",
]


@pytest.mark.parametrize("source", CAUGHT)
def test_forbidden_call_is_caught(source):
    assert violations(source)


ALLOWED = [
    "model.eval()",
    "import pickle; pickle.dumps(x)",
    "import torch; torch.load(f, weights_only=True)",
    "import numpy as np; np.load(f, allow_pickle=False)",
    "import yaml; yaml.load(f, Loader=yaml.SafeLoader)",
    "import json; json.load(f)",
    "import subprocess; subprocess.run(['ls'], shell=False)",
]


@pytest.mark.parametrize("source", ALLOWED)
def test_harmless_call_is_allowed(source):
    assert not violations(source)
