"""A page of docs/results from a folder of runs, and the index of all such pages:

    python scripts/result_pages.py runs/batch_size_cifar10 batch_size_cifar10

Title and note are those of the SWEEP in experiments/<name>.py, if there is one.
"""

import argparse
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

from normlab.lab.analysis import LAST_EPOCHS, analyse
from normlab.lab.report import markdown
from normlab.lab.runs import find

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "results"

INTRODUCTION = """\
# Results

A page for each experiment, made from its runs by `scripts/result_pages.py`; what was learned from
them, and what failed, is in [the log](../../experiments/LOG.md)."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A page of docs/results from a folder of runs.")
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("name", help="of the page; that of a file in experiments/ gives its title")
    parser.add_argument("--title", help="instead of the experiment's")
    parser.add_argument("--last", type=int, default=LAST_EPOCHS, help="epochs a result is over")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="instead of docs/results")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9_-]+", given.name):
        parser.error(f"a name is of a-z, 0-9, _ and -, not {given.name!r}")
    found, damaged = find(given.runs)
    a = analyse(found, damaged, last=given.last)
    if all(r.error is None for r in a.results):
        seen = f"{len(found)} found, {len(damaged)} damaged"
        parser.error(f"{given.runs} has no finished run ({seen}); train some first")
    title, note = experiment(given.name)
    given.folder.mkdir(parents=True, exist_ok=True)
    title = given.title or title or given.name.replace("_", " ")
    for file in markdown.write(a, title, given.folder / f"{given.name}.md", note, found):
        print(file)
    (given.folder / "README.md").write_text(index(given.folder), encoding="utf-8", newline="\n")


def experiment(name: str) -> tuple[str, str]:
    """Title and note of an experiment's sweep; empty where there is none of that name."""
    file = ROOT / "experiments" / f"{name}.py"
    if not file.is_file():
        return "", ""
    sweep = runpy.run_path(str(file))["SWEEP"]
    return sweep.title, sweep.note


def index(folder: Path) -> str:
    """The pages there with their answers, which stand in bold below their titles."""
    lines = []
    for page in sorted(folder.glob("*.md")):
        head = re.match(r"# (.+)\n\n\*\*(.+)\*\*\n", page.read_text(encoding="utf-8"))
        if head and page.name != "README.md":
            lines.append(f"* [{head[1]}]({page.name}): {head[2]}")
    return "\n".join([INTRODUCTION, "", *lines, ""])


if __name__ == "__main__":
    main()
