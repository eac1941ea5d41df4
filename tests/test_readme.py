"""What the README shows works: its Python runs, its commands and flags exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from normlab import flags

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.S)).replace("\\\n", " ")
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("normlab ")]


def test_python_blocks_run():
    # in a process of their own: one of them adds a norm to the catalogue
    done = subprocess.run([sys.executable, "-c", PYTHON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", COMMANDS)
def test_command_and_its_flags_exist(line):
    _, command, *rest = shlex.split(line, comments=True)
    done = subprocess.run(
        [sys.executable, "-m", "normlab.cli", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in (word for word in rest if word.startswith("--")):
        assert flag in done.stdout


@pytest.mark.parametrize("target", re.findall(r"^make (\S+)", SHELL, re.M))
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"\[(\w+)\]", TEXT)) - {"class"}))
def test_extra_exists(extra):
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


def test_norms_of_the_table_are_those_of_the_catalogue():
    row = next(line for line in TEXT.splitlines() if line.startswith("| norms |"))
    named = {n.split(":")[0] for n in re.findall(r"`([a-z_:=0-9]+)`", row)}
    listed = subprocess.run(
        [sys.executable, "-c", "from normlab import norms; print(*norms.available())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert named == set(listed.stdout.split())


def test_swept_fields_are_flags_of_compare():
    assert set(flags.COMPARED) <= set(flags.swept({}).__dataclass_fields__)
