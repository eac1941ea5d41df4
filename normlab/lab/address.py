"""Finds the module an address names: "hdf5:/data/cells.h5" is hdf5.py and "/data/cells.h5".

The file name is the registry: a source is added by adding its file, or kept in one's own package.
"""

import difflib
import importlib
import re
from pathlib import Path
from types import ModuleType

_FUNCTIONS = {"data": "load", "models": "build"}


class AddressError(LookupError):
    """An address whose first part is no module with the wanted function."""


def resolve(kind: str, address: str) -> tuple[ModuleType, str]:
    """The module that serves an address, and what is left for it to read.

    Args:
        kind: "data" or "models", the package of normlab.lab that is searched.
        address: a module's name, or that and ":" and the rest; a dotted name is imported as it
            stands.

    Raises:
        AddressError: there is no such module, or it lacks `load` (data) or `build` (models).

    >>> resolve("data", "digits")[0].__name__
    'normlab.lab.data.digits'
    """
    name, _, rest = address.partition(":")
    package = f"normlab.lab.{kind}"
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return _import_foreign(kind, name, address), rest
    names = available(kind)
    if name in names:
        return importlib.import_module(f"{package}.{name}"), rest
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"; did you mean {close[0]}" if close else ""
    raise AddressError(
        f'"{address}": no module {package}.{name}{guess}; there are {", ".join(names)}'
    )


def available(kind: str) -> list[str]:
    """The names an address may begin with: every file of the package that defines the function."""
    # Read as text, because importing all to look would import what the user has not installed.
    defines = re.compile(rf"^def {_FUNCTIONS[kind]}\(", re.MULTILINE)
    files = sorted((Path(__file__).parent / kind).glob("[!_]*.py"))
    return [file.stem for file in files if defines.search(file.read_text(encoding="utf-8"))]


def _import_foreign(kind: str, name: str, address: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something it needs itself
        raise AddressError(
            f'"{address}": no module {error.name}; is its folder on the Python path?'
        ) from None
    if not callable(getattr(module, _FUNCTIONS[kind], None)):
        raise AddressError(f'"{address}": module {name} has no function {_FUNCTIONS[kind]}')
    return module
