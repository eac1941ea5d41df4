"""Flags of the command line, made from the fields of Experiment."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro import _docstrings

from normlab.lab import config
from normlab.lab.experiment import (
    Experiment,
    ExperimentError,
    Sweep,
    did_you_mean,
    from_mapping,
    is_optional,
)

# what `compare` sweeps where nothing is said
COMPARED = {
    "norm": ("batch", "group", "layer", "instance"),
    "seed": (0, 1, 2),
    "norm_batch_size": (2, 8, 32),
}
_SEQUENCE = "milestones"  # one value of this field is a sequence already, so it is not swept


def swept(given: dict[str, Any]) -> type:
    """A class with Experiment's fields, each a tuple of values; None where nothing is said.

    Args:
        given: fields from a file, one value or a list of them.
    """
    hints = typing.get_type_hints(Experiment)
    fields = []
    for f in dataclasses.fields(Experiment):
        single = f.name == _SEQUENCE
        hint = hints[f.name] if single else types.GenericAlias(tuple, (hints[f.name], ...))
        default: Any = COMPARED.get(f.name, f.default if single else (f.default,))
        shown = " ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in default)
        about = tyro.conf.arg(
            help=_docstrings.get_field_docstring(Experiment, f.name, ()),
            help_behavior_hint=f"(default: {shown})",
            metavar=f"{_metavar(hints[f.name])} …",
        )
        value = given.get(f.name)
        if value is not None:
            value = tuple(value) if isinstance(value, list) else (value,)
        fields.append((f.name, Annotated[hint | None, about], dataclasses.field(default=value)))
    return dataclasses.make_dataclass("Fields", fields, frozen=True, kw_only=True)


def comparison(fields: Any, note: str) -> Sweep:
    """The grid of the fields that were given, and of what is compared where nothing was said.

    Where the batch size is given, it is what varies; else the SGD batch stays and the images that
    share statistics vary.

    Args:
        fields: an instance of the class `swept` made.

    Raises:
        ExperimentError: a value that is not possible.
    """
    given = {name: values for name, values in vars(fields).items() if values is not None}
    for name, values in given.items():
        if not values:
            raise ExperimentError(f"--{name.replace('_', '-')} needs at least one value")
    grid = {**COMPARED, **given}
    if {"batch_size", "accumulate"} & given.keys() and "norm_batch_size" not in given:
        del grid["norm_batch_size"]
    milestones = grid.pop(_SEQUENCE, Experiment().milestones)
    return Sweep.grid(
        f"Which norm for {', '.join(data_of(fields))}?",
        Experiment(milestones=milestones),
        note=note,
        **grid,
    )


def data_of(fields: Any) -> tuple[str, ...]:
    """The addresses of the data compared."""
    return tuple(dict.fromkeys(fields.data or (Experiment().data,)))


def one(given: dict[str, Any]) -> Experiment:
    """The experiment described by a file, for commands that run one.

    Raises:
        ExperimentError: a field with several values.
    """
    for name, value in given.items():
        if isinstance(value, list) and name != _SEQUENCE:
            raise ExperimentError(f"{name} has {len(value)} values; give one, or use compare")
    return from_mapping(given, "--config") if given else Experiment()


def from_file(arguments: list[str]) -> dict[str, Any]:
    """The fields in the file after --config; none if there is no such flag.

    Raises:
        ExperimentError: the file cannot be used.
    """
    for at, argument in enumerate(arguments):
        name, _, path = argument.partition("=")
        if name != "--config":
            continue
        if not path and at + 1 == len(arguments):
            raise ExperimentError("--config needs a YAML or JSON file")
        path = path or arguments[at + 1]
        fields = config.read(Path(path))
        known = [f.name for f in dataclasses.fields(Experiment)]
        for key in fields:
            if key not in known:
                raise ExperimentError(f"{path}: unknown field {key!r}{did_you_mean(key, known)}")
        return fields
    return {}


def _metavar(hint: Any) -> str:
    """What a value of a type is called in --help."""
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(typing.get_args(hint)) + "}"
    if is_optional(hint):
        return "|".join("None" if h is type(None) else _metavar(h) for h in typing.get_args(hint))
    return "FLOAT" if typing.get_origin(hint) is tuple else hint.__name__.upper()
