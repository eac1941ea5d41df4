"""What `normlab runs` does: lists runs, compares two, removes some."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from normlab.lab.runs import Run
from normlab.launch import UsageError


def show(
    folders: Sequence[Path],
    where: Sequence[str],
    sort: str | None,
    as_json: bool,
    remove: bool,
    yes: bool,
) -> int:
    """List the runs that fulfil all conditions and, if told so, remove them."""
    from normlab.lab import manage
    from normlab.lab.report import console, runs_table

    if yes and not remove:
        raise UsageError("--yes is the answer to the question of --remove")
    found, damaged = manage.found_in(folders)
    by_path = {str(run.path): run for run in found}
    rows = manage.select([manage.facts(run) for run in found], where, sort)
    if as_json:
        print(json.dumps([_plain(row) for row in rows], indent=1))
    else:
        shown = Console()
        console.print_tables(shown, runs_table.listing(rows, damaged, shown.width))
    if not remove or not rows:
        return 0
    if not yes and not _agreed(len(rows)):
        Console(stderr=True).print("nothing was removed")
        return 1
    return _remove([by_path[row["path"]] for row in rows])


def compare(folders: Sequence[Path], as_json: bool) -> int:
    """Show two runs side by side."""
    from normlab.lab import manage
    from normlab.lab.report import console, runs_table

    if len(folders) != 2:
        raise UsageError(f"--compare takes the folders of two runs, got {len(folders)}")
    one, other = (manage.facts(Run.open(path)) for path in folders)
    different = manage.differences(one, other)
    if as_json:
        runs = [_plain(one), _plain(other)]
        print(json.dumps({"differences": different, "runs": runs}, indent=1))
        return 0
    console.print_tables(Console(), runs_table.side_by_side(one, other, different))
    return 0


def _remove(runs: Sequence[Run]) -> int:
    """Remove what can be removed, and say what cannot; 1 if there is any such run."""
    from normlab.lab import manage
    from normlab.lab.runs import RunError

    refused = []
    for run in runs:
        try:
            manage.remove(run)
        except (manage.ManageError, RunError) as error:
            refused.append(str(error))
    shown = Console(stderr=True)
    shown.print(f"removed {len(runs) - len(refused)} of {len(runs)} runs")
    for reason in refused:
        shown.print(reason, markup=False, highlight=False, soft_wrap=True)
    return 1 if refused else 0


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("--remove asks first, but there is no terminal to ask on; add --yes")
    answer = Console(stderr=True).input(f"remove these {number} runs for good? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """What is told of a run, without the fields that are not set."""
    return {key: value for key, value in row.items() if value is not None}
