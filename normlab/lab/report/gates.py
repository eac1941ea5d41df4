"""Where the gates of batch-instance norm ended, read from the runs' last checkpoints.

Only the gates are read, without torch or numpy: a header in JSON says where in the file they are.
"""

import json
import math
import re
import statistics
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.lab.analysis import Analysis, Result, Series, family
from normlab.lab.differences import plural
from normlab.lab.norm_names import parts
from normlab.lab.report.sections import Section
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_NORM = "batch_instance"
_NAME = re.compile(r"(\d{12,})(?:-(\d+))?")  # of a checkpoint: its step, and a number if repeated
_MAX_HEADER = 50 * 2**20  # bytes
_MAX_CHANNELS = 2**20
_FORMS = {"F64": "d", "F32": "f", "F16": "e"}
_MAX_ROWS = 12  # of a table that is read; a longer one is looked up


@dataclass(frozen=True)
class Gates:
    """Gates of one layer or several, clipped to 0 … 1 as the norm does: 1 is batch norm."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def share(self, low: float, high: float) -> float:
        """Part of the channels whose gate is from low to below high."""
        return sum(low <= v < high for v in self.values) / len(self.values)

    @property
    def cells(self) -> list[str]:
        shares = self.share(0, 0.5), self.share(0, 1e-300), self.share(1, 2)
        return [str(len(self.values)), f"{self.mean:.3f}", *(f"{100 * s:.1f}" for s in shares)]


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Mean of the gates and how many are at an end, by norm, batch size and layer."""
    found = _found(a)
    if not found:
        return None
    all_layers, layers = _overall(a, found), _by_layer(a, found)
    short = len(layers.rows) <= _MAX_ROWS
    return Section(
        "gates",
        "Gates of batch-instance norm",
        sentences=[_said(a, s, x, seeds) for s, x, seeds in found],
        tables=[all_layers, *([layers] if short else [])],
        folded=[] if short else [layers],
    )


def tables(a: Analysis) -> list[Table]:
    """All tables of the section."""
    found = _found(a)
    return [_overall(a, found), _by_layer(a, found)] if found else []


def _overall(a: Analysis, found: "Sequence[_Row]") -> Table:
    """A row for each norm and batch size, all layers and seeds together."""
    rows = [
        [s.label, "any" if x is None else str(x), str(len(seeds)), *_together(seeds).cells]
        for s, x, seeds in found
    ]
    columns = ["norm", a.x_name, "seeds", *_COLUMNS]
    return Table("Gates after training", columns, rows, _NOTE)


def _by_layer(a: Analysis, found: "Sequence[_Row]") -> Table:
    """A row for each layer, all seeds together."""
    rows = []
    for s, x, seeds in found:
        for layer in dict.fromkeys(name for gates in seeds for name in gates):
            gates = Gates(tuple(v for g in seeds if layer in g for v in g[layer].values))
            rows.append([s.label, "any" if x is None else str(x), layer, *gates.cells])
    columns = ["norm", a.x_name, "layer", *_COLUMNS]
    return Table("Gates after training by layer", columns, rows, _NOTE)


_Row = tuple[Series, int | None, list[dict[str, Gates]]]  # norm, batch size, a run each
_COLUMNS = ("gates", "mean", "below 0.5, %", "at 0, %", "at 1, %")
_NOTE = (
    "Of the last checkpoint, all seeds together. A gate is the share of batch norm in its channel, "
    "the rest is instance norm; all start at 1. At 0 and 1: at or beyond the end, where it is "
    "clipped."
)


def gates_of(run: Path) -> dict[str, Gates]:
    """The gates of a run's last checkpoint by layer; {} if there is none that can be read."""
    try:
        folders = [p for p in (run / "checkpoints" / "last").iterdir() if _NAME.fullmatch(p.name)]
    except OSError:
        return {}
    for folder in sorted(folders, key=_age, reverse=True):
        try:
            return dict(_read(folder / "tensors.safetensors"))
        except (OSError, ValueError, RecursionError, struct.error):
            continue  # damaged: the one before it, as training would resume from
    return {}


def _age(folder: Path) -> tuple[int, int]:
    step, again = _NAME.fullmatch(folder.name).groups()  # type: ignore[union-attr]
    return int(step), int(again or 0)


def _read(file: Path) -> Iterator[tuple[str, Gates]]:
    """Layer and gates of a safetensors file: header's length, header, data."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", _exactly(stream, 8))
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(_exactly(stream, length))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
        for name, entry in header.items():
            if name.startswith("model.") and name.endswith(".gate") and isinstance(entry, dict):
                form = _FORMS.get(str(entry.get("dtype")))
                first, last = _whole(entry.get("data_offsets"))
                if form and 0 <= first < last <= first + 8 * _MAX_CHANNELS:
                    stream.seek(8 + length + first)
                    data = _exactly(stream, last - first)
                    values = [v for (v,) in struct.iter_unpack(f"<{form}", data)]
                    if all(map(math.isfinite, values)):
                        clipped = tuple(min(max(v, 0.0), 1.0) for v in values)
                        yield name.removeprefix("model.").removesuffix(".gate"), Gates(clipped)


def _exactly(stream: Any, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise ValueError("the file ends early")
    return data


def _whole(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        raise ValueError("no offsets")
    return value[0], value[1]


def _found(a: Analysis) -> list[_Row]:
    """Gates of the finished runs that have any."""
    return [
        (s, x, seeds)
        for s in a.series
        if family(parts(s.norm)[0]) == _NORM
        for x, group in s.groups.items()
        if (seeds := [gates for r in group.results if (gates := _of(r))])
    ]


def _of(r: Result) -> dict[str, Gates]:
    return gates_of(Path(r.path)) if r.error is not None else {}


def _together(seeds: Sequence[Mapping[str, Gates]]) -> Gates:
    return Gates(tuple(v for found in seeds for gates in found.values() for v in gates.values))


def _said(a: Analysis, s: Series, x: int | None, seeds: Sequence[Mapping[str, Gates]]) -> str:
    gates = _together(seeds)
    at = "" if x is None else f" at a {a.x_name} of {x}"
    nearer = gates.share(0, 0.5)
    what = "every gate is" if nearer == 0 else f"{100 * (1 - nearer):.1f} % of the gates are"
    return clean(
        f"{s.label}{at}: the gates ended at {gates.mean:.2f} on average, and {what} nearer to "
        f"batch norm than to instance norm ({plural(len(seeds), 'seed')}).",
        1000,
    )
