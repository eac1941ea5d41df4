"""Over which axes are mean and variance taken: "n (g c) ... -> n g" read into axes and sizes.

A pattern names the axes of x on the left and the axes that keep a statistic of their own on the
right; what disappears is averaged. Pure Python: importable without torch, usable on symbolic sizes.
"""

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

REST = "..."  # any number of axes, all with the same fate


class PatternError(ValueError):
    """A pattern that cannot be read, or a shape that does not fit it."""


@dataclass(frozen=True)
class Geometry:
    """A pattern laid over one shape.

    Args:
        split: sizes after composed axes are split, one per elementary axis.
        reduced: positions in `split` that are averaged.
        channels: positions in `split` that make up the second axis of x, which weight and bias
            index.
    """

    split: tuple[int, ...]
    reduced: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def statistics(self) -> tuple[int, ...]:
        """Shape of mean and variance: the sizes that are kept, in order."""
        return tuple(s for i, s in enumerate(self.split) if i not in self.reduced)

    @property
    def count(self) -> int:
        """Values per statistic."""
        return product([self.split[i] for i in self.reduced])

    @property
    def broadcast(self) -> tuple[int, ...]:
        """Shape in which statistics line up with the split x."""
        return tuple(1 if i in self.reduced else s for i, s in enumerate(self.split))

    @property
    def per_channel(self) -> tuple[int, ...]:
        """Shape in which weight and bias line up with the split x."""
        return tuple(s if i in self.channels else 1 for i, s in enumerate(self.split))

    @property
    def runs(self) -> tuple[int, int, int, int]:
        """Sizes (kept, reduced, kept, reduced) once neighbours with the same fate are joined.

        This is all a kernel for contiguous x has to know about statistics.

        Raises:
            PatternError: the fates alternate more often.

        >>> geometry("n (g=4 c) ... -> n g", (2, 8, 5, 5)).runs
        (8, 50, 1, 1)
        >>> geometry("n c ... -> c", (2, 8, 5, 5)).runs
        (1, 2, 8, 25)
        """
        sizes = [1, 1, 1, 1]
        at = 0
        for i, size in enumerate(self.split):
            if size == 1:
                continue
            if (i in self.reduced) != at % 2:
                at += 1
            if at == 4:
                raise PatternError(f"sizes {self.split} reduced at {self.reduced} need over 4 runs")
            sizes[at] *= size
        return sizes[0], sizes[1], sizes[2], sizes[3]


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern; make one with `parse`.

    Args:
        text: as it was written.
        axes: the names each axis of x is composed of; (REST,) stands for any number of axes.
        kept: the names that keep a statistic of their own.
        sizes: the names whose size the text states.
    """

    text: str
    axes: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]
    sizes: dict[str, int]

    def geometry(self, shape: Sequence[int]) -> Geometry:
        """The pattern laid over a shape.

        Raises:
            PatternError: too few or too many axes, or an axis that does not split as stated.
        """
        axes = self._expanded(shape)
        split: list[int] = []
        reduced: list[int] = []
        channels: list[int] = []
        for axis, (names, size) in enumerate(zip(axes, shape)):
            for name, part in zip(names, self._parts(names, size, shape)):
                if name not in self.kept:
                    reduced.append(len(split))
                if axis == 1:
                    channels.append(len(split))
                split.append(part)
        return Geometry(tuple(split), tuple(reduced), tuple(channels))

    def undecided(self, names: tuple[str, ...]) -> list[str]:
        """The name, if any, whose size follows from that of its axis.

        Raises:
            PatternError: several names of the axis have no size.
        """
        unknown = [n for n in names if n not in self.sizes]
        if len(unknown) > 1:
            raise PatternError(
                f'"{self.text}" does not say how ({" ".join(names)}) splits; give {unknown[0]}=…'
            )
        return unknown

    def _expanded(self, shape: Sequence[int]) -> list[tuple[str, ...]]:
        """One tuple of names per axis of the shape."""
        spare = len(shape) - len(self.axes)
        has_rest = (REST,) in self.axes
        if spare < (-1 if has_rest else 0) or (spare > 0 and not has_rest):
            at_least = "at least " if has_rest else ""
            raise PatternError(
                f'"{self.text}" is for {at_least}{len(self.axes) - has_rest} axes, '
                f"got shape {show(shape)} with {len(shape)}"
            )
        expanded: list[tuple[str, ...]] = []
        for names in self.axes:
            expanded += [names] * (spare + 1 if names == (REST,) else 1)
        return expanded

    def _parts(self, names: tuple[str, ...], size: int, shape: Sequence[int]) -> list[int]:
        """Sizes of the elementary axes one axis is composed of."""
        unknown = self.undecided(names)
        known = product([self.sizes[n] for n in names if n in self.sizes])
        if (len(unknown) == 1 and size % known) or (not unknown and size != known):
            stated = " · ".join(f"{n}={self.sizes[n]}" for n in names if n in self.sizes)
            divisors = ", ".join(map(str, _divisors(size))) if unknown else str(size)
            raise PatternError(
                f'"{self.text}": an axis of {size} in shape {show(shape)} does not split into '
                f"{stated}; choose one of {divisors}"
            )
        return [self.sizes.get(n, size // known) for n in names]


def parse(text: str) -> Pattern:
    """Read a pattern such as "n (g=8 c) ... -> n g".

    Axes are lower-case words; "(g c)" splits one axis in two, all but one of whose sizes must be
    stated; "..." stands for any further axes. The right side lists kept axes in the order of the
    left side.

    Raises:
        PatternError: anything else.

    >>> parse("n c ... -> n").geometry((2, 6, 4, 4)).count
    96
    """
    return _read(text) if _is_traced() else _read_once(text)


def _read(text: str) -> Pattern:
    sides = text.split("->")
    if len(sides) != 2:
        raise PatternError(f'"{text}" needs one "->", as in "n c ... -> n c"')
    sizes: dict[str, int] = {}
    axes = tuple(_read_axis(text, token, sizes) for token in _tokens(text, sides[0]))
    names = [n for axis in axes for n in axis]
    for name in names:
        if names.count(name) > 1:
            raise PatternError(f'"{text}" names {name} twice')
    kept = tuple(sides[1].split())
    for name in kept:
        if name not in names:
            raise PatternError(f'"{text}" keeps {name}, which is not among {" ".join(names)}')
    if list(kept) != [n for n in names if n in kept]:
        raise PatternError(f'"{text}" must keep axes in the order of its left side, each once')
    return Pattern(text, axes, kept, sizes)


def bind(text: str, **sizes: int) -> str:
    """Write the sizes of named axes into a pattern.

    Raises:
        PatternError: a name the pattern lacks, a size below 1, or axes left undecided.

    >>> bind("n (g c) ... -> n g", g=8)
    'n (g=8 c) ... -> n g'
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise PatternError(f'"{text}": size of {name} must be a whole number, got {size!r}')
        if size < 1:
            raise PatternError(f'"{text}": size of {name} must be at least 1, got {size}')
        left, arrow, right = text.partition("->")
        left, found = re.subn(rf"\b{re.escape(name)}\b(=\d+)?", f"{name}={size}", left)
        if not found:
            raise PatternError(f'"{text}" has no axis {name}')
        text = left + arrow + right
    pattern = parse(text)
    for axis in pattern.axes:
        pattern.undecided(axis)
    return text


def geometry(text: str, shape: Sequence[int]) -> Geometry:
    """The pattern laid over a shape; remembered for plain sizes.

    >>> geometry("n (g=2 c) ... -> n g", (5, 10, 4, 4)).statistics
    (5, 2)
    """
    if are_plain(shape):
        return _remembered(text, tuple(shape))
    return parse(text).geometry(shape)


def are_plain(shape: Sequence[int]) -> bool:
    """Whether what follows from a shape may be remembered: no symbolic sizes, no compiler."""
    return not _is_traced() and {int}.issuperset(map(type, shape))


def product(sizes: Sequence[int]) -> int:
    """As math.prod, which torch.compile cannot follow where sizes are symbolic."""
    result = 1
    for size in sizes:
        result = result * size
    return result


def show(shape: Sequence[int]) -> str:
    """A shape as people write it: 8×64×7×7."""
    return "×".join(map(str, shape)) or "()"


_read_once = functools.cache(_read)


def _is_traced() -> bool:
    """Whether torch.compile reads this code; it warns of cached functions, and never uses them."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


@functools.lru_cache(maxsize=1024)
def _remembered(text: str, shape: tuple[int, ...]) -> Geometry:
    return parse(text).geometry(shape)


def _tokens(text: str, side: str) -> list[str]:
    tokens = re.findall(r"\([^()]*\)|[^\s()]+|[()]", side)
    if "(" in tokens or ")" in tokens:
        raise PatternError(f'"{text}" has an unmatched parenthesis')
    if not tokens:
        raise PatternError(f'"{text}" names no axes')
    return tokens


def _read_axis(text: str, token: str, sizes: dict[str, int]) -> tuple[str, ...]:
    """The names of one axis; sizes stated with "=" go into `sizes`."""
    if token == REST:
        return (REST,)
    names = []
    for word in token.strip("()").split():
        read = re.fullmatch(r"([a-z]+)(?:=([1-9][0-9]{0,17}))?", word)
        if read is None:
            raise PatternError(f'"{text}": cannot read "{word}"; axes are words such as n, c=8')
        name, size = read.groups()
        if size:
            sizes[name] = int(size)
        names.append(name)
    if not names:
        raise PatternError(f'"{text}" has an empty axis ()')
    return tuple(names)


def _divisors(size: int) -> list[int]:
    return [d for d in range(1, size + 1) if size % d == 0]
