"""Sweeps in files: written by people in Python, and by us in JSON for the jobs of a cluster."""

import dataclasses
import json
import runpy
from pathlib import Path

from normlab.lab.experiment import ExperimentError, Sweep, from_mapping

SCALES = {"small": "SWEEP", "full": "FULL"}  # the variable of a Python file
_MAX_BYTES = 50 * 2**20


class SweepFileError(ValueError):
    """A file without the sweep that was asked for; says what it needs."""


def load(file: Path, scale: str = "small") -> Sweep:
    """The sweep in a file.

    Args:
        file: Python with a variable SWEEP, and FULL for the full scale; or JSON that `save` wrote.
        scale: small or full.

    Raises:
        SweepFileError: there is none, or the file cannot be run.
    """
    if file.suffix == ".json":
        return _from_json(file)
    if not file.is_file() or file.suffix != ".py":
        raise SweepFileError(f"{file} is not a Python file; see experiments/ for examples")
    try:
        found = runpy.run_path(str(file))
    except Exception as error:
        raise SweepFileError(f"{file}: {type(error).__name__}: {error}") from error
    name = SCALES[scale]
    if isinstance(found.get(name), Sweep):
        return found[name]
    others = [s for s, n in SCALES.items() if isinstance(found.get(n), Sweep)]
    instead = f"; it has --scale {others[0]}" if others else "; see experiments/ for examples"
    raise SweepFileError(f"{file} has no {name} = Sweep(...){instead}")


def save(sweep: Sweep, file: Path) -> None:
    """Write a sweep so that `load` gives it back, whatever becomes of the Python file."""
    fields = {"title": sweep.title, "note": sweep.note}
    experiments = [dataclasses.asdict(e) for e in sweep.experiments]
    file.write_text(json.dumps({**fields, "experiments": experiments}, indent=1) + "\n")


def _from_json(file: Path) -> Sweep:
    try:
        data = file.read_bytes()
        if len(data) > _MAX_BYTES:
            raise SweepFileError(f"{file}: {len(data)} bytes, at most {_MAX_BYTES} are read")
        found = json.loads(data)
        experiments = tuple(from_mapping(fields, str(file)) for fields in found["experiments"])
        return Sweep(title=str(found["title"]), note=str(found["note"]), experiments=experiments)
    except OSError as error:
        raise SweepFileError(f"{file}: cannot be read: {error.strerror}") from error
    except ExperimentError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SweepFileError(
            f"{file}: not a sweep: expected title, note and experiments ({error})"
        ) from error
