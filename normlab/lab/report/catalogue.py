"""The catalogue of norms in words, tables and pictures, read off their classes.

Nothing here is written per norm: equation, arguments and paper come from the docstring, parameters
and state from a layer, and the picture from the pattern. A norm made of several patterns may name
them in `parts`, a class attribute: {"batch": "n c ... -> c", "instance": "n c ... -> n c"}; without
it, its pattern is drawn, and what the output depends on where that is more.
"""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from normlab import norms
from normlab import pattern as patterns
from normlab.lab.norm_names import parts as parts_of
from normlab.lab.report.norm_pictures import WEIGHTS, Picture, lines, measured, of_pattern
from normlab.layer import Norm
from normlab.surgery import weights
from normlab.surgery.rules import is_plain

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("norm", "averages over", "learns", "keeps", "batch", "source")
NOTE = (
    "What disappears to the right of -> is averaged. batch: in training, an output depends on the "
    "other samples. A norm of weights follows a +, as in --norm group+ws. More of one, with a "
    "picture: normlab norms group"
)
_GIVING = (5, 3, 2, 0)  # columns that are made narrower where there is no room, in this order
_LONGEST = 12  # characters of a word of a source that is kept in one piece
_RUNNING = {"running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Entry:
    """One norm of the catalogue.

    Args:
        title: of the class.
        names: the name, then short ones.
        forms: what may be written with a value in place of N, and for which argument.
        pattern: or "composed", or "nothing" where nothing is averaged.
        learned, kept: names of parameters and of buffers.
        doc: the docstring.
    """

    title: str
    names: tuple[str, ...]
    forms: tuple[tuple[str, str], ...]
    pattern: str
    learned: tuple[str, ...]
    kept: tuple[str, ...]
    uses_batch: bool
    pictures: tuple[Picture, ...]
    doc: str

    @property
    def sentence(self) -> str:
        return " ".join(self.doc.partition("\n\n")[0].split())

    @property
    def source(self) -> str:
        """The first paper, as "Wu and He 2018", or what there is in its place."""
        text = " ".join(section(self.doc, "Source:").split())
        paper = re.search(r"[A-Z][\w'’-]+(?: et al\.| and [A-Z][\w'’-]+)? (?:19|20)\d\d", text)
        return paper[0] if paper else re.split(r",? https?:|[,;] |\.$", text)[0]

    @property
    def row(self) -> tuple[str, ...]:
        """Under `COLUMNS`."""
        learned, kept = (", ".join(names) or "—" for names in (self.learned, self.kept))
        batch = "yes" if self.uses_batch else "no"
        return ", ".join(self.names), self.pattern, learned, kept, batch, self.source


def families() -> Iterator[tuple[str, list[Entry]]]:
    """The norms that come with normlab under the first sentence of their file; weights last."""
    found: dict[str, list[Entry]] = {}
    for name in norms.available():
        home = norms.parse(name)[0].__module__
        if home.startswith("normlab."):
            about = inspect.getdoc(sys.modules[home]) or home
            sentence = re.split(r"\.(?:\s|$)", about)[0]
            found.setdefault(" ".join(sentence.split()), []).append(entry(name))
    yield from found.items()
    yield "Norms of the weights of a model", [weight_entry(name) for name in weights.NORMS]


def show(console: "Console") -> None:
    """Print the catalogue, a table for each family; for 80 columns and more."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = list(families())
    widths = _widths([e.row for _, entries in found for e in entries], console.width)
    for title, entries in found:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for column, width in zip(COLUMNS, widths):
            table.add_column(column, width=width, overflow="fold")
        for e in entries:
            table.add_row(*map(Text, e.row))
        console.print(Text(title, style="bold"), "", table, "", sep="\n")
    console.print(Text(NOTE, style="dim"))


def explain(spec: str, width: int = 80) -> str:
    """A norm in words and a picture, for a terminal.

    Raises:
        LookupError: no norm is called like that.
    """
    layer, name = parts_of(spec)
    if spec in weights.NORMS:
        return _explained(weight_entry(spec), width)
    found = [entry(layer), *([weight_entry(name)] if "+" in spec else [])]
    return "\n\n".join(_explained(e, width) for e in found)


def entry(spec: str) -> Entry:
    """What there is to say of a norm, or of one with options.

    Raises:
        LookupError: no norm is called like that.
        PatternError: options that fit no number of channels.
    """
    cls, options = norms.parse(spec)
    layer = _layer(spec)
    address = spec.partition(":")[0]
    name = address if "." in address else cls.name
    short = (a for a, n in norms.ALIASES.items() if n == name)
    pictures = _pictures(layer, asked=bool(options))
    is_single = is_plain(layer) and not hasattr(cls, "parts")
    return Entry(
        title=cls.__name__,
        names=(name, *short),
        forms=_forms(name, cls),
        pattern=cls.pattern if is_single else "composed" if pictures else "nothing",
        learned=tuple(n for n, _ in layer.named_parameters()),
        kept=_kept([n for n, _ in layer.named_buffers()]),
        uses_batch=layer.mixes_samples,
        pictures=pictures,
        doc=inspect.getdoc(cls) or "",
    )


def weight_entry(name: str) -> Entry:
    """What there is to say of a norm of weights.

    Raises:
        LookupError: none is called like that.
    """
    row = weights.row_of(name)
    layer = weights.reparametrize(nn.Conv2d(4, 4, 3, bias=False, device="meta"), name)
    below = re.compile(r"^parametrizations\.weight\.(\d+\._?)?")
    learned = [below.sub("", n) for n, _ in layer.named_parameters()]
    return Entry(
        title=row.title.capitalize(),
        names=(name,),
        forms=((f"group+{name}", "after the name of any norm of layers"),),
        pattern=row.pattern,
        learned=tuple(n for n in learned if n != "original"),
        kept=tuple(below.sub("", n) for n, _ in layer.named_buffers()),
        uses_batch=False,
        pictures=(of_pattern(row.pattern, row.what, axes=WEIGHTS),),
        doc=inspect.getdoc(row.put) or "",
    )


def section(doc: str, heading: str) -> str:
    """What follows a heading of a docstring, to the next one; "" if it has none.

    >>> section("Sentence.\\n\\nShape: (N, C).\\n\\nSource: a paper.", "Shape:")
    '(N, C).'
    """
    found = re.search(rf"^{heading}(.*?)(?=\n\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return inspect.cleandoc(found[1]) if found else ""


def without_examples(doc: str) -> str:
    """A docstring to its first example, which are last."""
    return doc.partition("\n>>> ")[0].rstrip()


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of the columns, in characters: as wide as their cells, or narrower, but for whole words."""
    columns = list(zip(COLUMNS, *rows))
    widths = [max(map(len, column)) for column in columns]
    for at in _GIVING:
        longest = max(len(word) for cell in columns[at] for word in cell.split())
        least = min(longest, _LONGEST) if COLUMNS[at] == "source" else longest
        spare = room - sum(widths) - (len(widths) - 1)
        widths[at] = max(least, min(widths[at], widths[at] + spare))
    return widths


def _explained(e: Entry, width: int) -> str:
    said = [f"{', '.join(e.names)}: {e.title}", "", without_examples(e.doc), ""]
    said += [f"write {form}  ({of})" for form, of in e.forms]
    said += [f"learns {', '.join(e.learned) or 'nothing'}; keeps {', '.join(e.kept) or 'nothing'}"]
    if not e.pictures:
        said += ["", "Nothing is averaged."]
    for p in e.pictures:
        said += ["", p.title, "", *lines(p, width), "", p.caption]
    return "\n".join(said)


def _pictures(layer: Norm, *, asked: bool) -> tuple[Picture, ...]:
    """What a layer averages over; nothing if every value is left for itself.

    Args:
        asked: its own channels and sizes are drawn, and not those that make the smallest picture.
    """
    named: dict[str, str] = getattr(type(layer), "parts", None) or {}
    shared = "one mean and variance" if layer.center else "one mean square"
    if named:
        drawn = [
            Picture(f"{title}: {p.title}", p.axes, p.marked, p.caption)
            for title, text in named.items()
            for p in [of_pattern(text, shared)]
        ]
    elif not is_plain(layer):
        drawn = [of_pattern(type(layer).pattern, "one statistic")]
        at_its_sizes = of_pattern(layer.pattern, channels=layer.num_channels)
        tried = measured(layer)
        if tried.marked != at_its_sizes.marked:
            drawn.append(tried)
    elif asked and layer.pattern != type(layer).pattern:
        drawn = [of_pattern(layer.pattern, shared, channels=layer.num_channels)]
    else:
        drawn = [of_pattern(type(layer).pattern, shared)]
    return tuple(p for p in drawn if p.count > 1)


def _layer(spec: str) -> Norm:
    """A layer of as few channels as show how they are divided.

    Raises:
        PatternError: no number of channels fits.
    """
    first: Norm | None = None
    for channels in range(8, 1025, 8):
        try:
            layer = norms.norm(spec, channels, dtype=torch.float64)
        except patterns.PatternError:
            if first is None and channels == 1024:
                raise
            continue
        first = first or layer
        if _is_divided(layer):
            return layer
    assert first is not None
    return first


def _is_divided(layer: Any) -> bool:
    """Whether every axis that is split has several parts of several values."""
    read = patterns.parse(layer.pattern)
    stated = [read.sizes[n] for n in read.axes[1] if n in read.sizes]
    return all(s > 1 for s in stated) and layer.num_channels > patterns.product(stated)


def _forms(name: str, cls: type[Norm]) -> tuple[tuple[str, str], ...]:
    """What may follow a name, with the argument it is for."""
    other = getattr(cls, "spec_norm", None)  # the argument that takes the spec of another norm
    numbers = ((f"{name}:{k}{'=' if k else ''}N", v) for k, v in cls.spec_options.items())
    return (*numbers, *([(f"{name}:NORM", other)] if other else []))


def _kept(names: Sequence[str]) -> tuple[str, ...]:
    """Buffers, torch's three of batch norm together."""
    running = ("running statistics",) if any(n in _RUNNING for n in names) else ()
    return (*running, *(n for n in names if n not in _RUNNING))
