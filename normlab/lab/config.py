"""Settings from a YAML or JSON file, read without trusting it."""

from pathlib import Path
from typing import Any

from normlab.lab.experiment import ExperimentError

MAX_BYTES = 1_000_000
MAX_ALIASES = 100


def read(path: Path) -> dict[str, Any]:
    """The fields in a file; JSON is YAML, so one reader serves both.

    Raises:
        ExperimentError: not a file of settings; names the line where there is one.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError('--config needs PyYAML: pip install "normlab[lab]"') from None
    text = _text(path)
    try:
        if text.count("*") > MAX_ALIASES and _num_aliases(text) > MAX_ALIASES:
            raise ExperimentError(f"{path}: more than {MAX_ALIASES} aliases; write values out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(path, node)
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: {_reason(error)}") from None
    except RecursionError:
        raise ExperimentError(f"{path}: nested too deeply for a file of settings") from None
    if fields is None:
        raise ExperimentError(f"{path} is empty; write fields such as `norm: group`")
    if not isinstance(fields, dict):
        raise ExperimentError(
            f"{path}: expected fields such as `norm: group`, got {type(fields).__name__}"
        )
    return {_field(path, key): value for key, value in fields.items()}


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ExperimentError(f"{path} is a folder; give a YAML or JSON file")
        if size > MAX_BYTES:
            raise ExperimentError(f"{path}: {size} bytes, settings have at most {MAX_BYTES}")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(
            f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8 text"
        ) from None


def _num_aliases(text: str) -> int:
    import yaml

    return sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader))


def _refuse_duplicates(path: Path, node: Any) -> None:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise ExperimentError(
                f"{path}:{key.start_mark.line + 1}: {key.value!r} is set twice; keep one"
            )
        seen.add(key.value)


def _reason(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "\\t" in problem:
        problem = "a tab; indent with spaces"
    if "constructor" in problem:
        problem += "; only plain values are read"
    return line + problem


def _field(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise ExperimentError(f"{path}: field names are text, got {key!r}")
    return key.replace("-", "_")
