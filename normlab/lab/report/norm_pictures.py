"""What a norm averages over, drawn: the values of a small tensor, those that go together marked.

As in figure 2 of the group norm paper (https://arxiv.org/abs/1803.08494), laid flat: a panel for
each sample, a row for each channel, a column for each position. A pattern says itself what goes
together; of a norm that is more than a pattern, it is found by trying.
"""

import re
from dataclasses import dataclass

import torch

from normlab import pattern as patterns
from normlab.layer import Norm

ACTIVATIONS = ("sample", "channel", "position")  # what the axes of x are called
WEIGHTS = ("filter", "input", "tap")
_SIZES = (4, 6)  # drawn of the first two axes, where the pattern leaves a choice
_POSITIONS = 2  # of each further axis
_MOST_ROWS = 32  # in a terminal
_TRIES = 4  # inputs, as a maximum depends on one of its arguments at a time


@dataclass(frozen=True)
class Picture:
    """Marked values of a small tensor.

    Args:
        title: what is drawn, such as a pattern.
        axes: what a panel, a row and a column are.
        marked: [panel][row][column].
        caption: what the marks say.
    """

    title: str
    axes: tuple[str, str, str]
    marked: tuple[tuple[tuple[bool, ...], ...], ...]
    caption: str

    @property
    def count(self) -> int:
        """Marked values."""
        return sum(cell for panel in self.marked for row in panel for cell in row)


def of_pattern(
    text: str,
    shared: str = "one mean and variance",
    *,
    axes: tuple[str, str, str] = ACTIVATIONS,
    channels: int | None = None,
) -> Picture:
    """The values that share the statistic of the first one.

    Args:
        shared: what that is.
        channels: how many to draw; None is few.

    >>> of_pattern("n (g c) ... -> n g").marked[0][2:4]
    ((True, True, True, True), (False, False, False, False))
    >>> of_pattern("n c ... -> n").caption
    'The marked 24 of 96 values share one mean and variance; there are 4 of these.'
    """
    text = _decided(text)
    shape = _shape(patterns.parse(text), channels)
    geometry = patterns.geometry(text, shape)
    of_value: list[tuple[int, ...]] = [()]  # which statistic each belongs to
    for i, size in enumerate(geometry.split):
        steps = [() if i in geometry.reduced else (k,) for k in range(size)]
        of_value = [before + step for before in of_value for step in steps]
    marks = [one == of_value[0] for one in of_value]
    count, total = sum(marks), len(marks)
    caption = f"All {total} values share {shared}."
    if count < total:
        others = total // count
        caption = (
            f"The marked {count} of {total} values share {shared}; there are {others} of these."
        )
    return Picture(f'"{text}"', axes, _laid_out(marks, shape), caption)


def measured(layer: Norm) -> Picture:
    """The values that the first value of the output depends on, by the gradients of a few inputs.

    Args:
        layer: in float64 on the CPU; it gets other parameters, so that no part of it is switched
            off.

    >>> from normlab import norms
    >>> measured(norms.norm("instance", 6, dtype=torch.float64)).count
    4
    """
    shape = (_SIZES[0], layer.num_channels, _POSITIONS, _POSITIONS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
    found = torch.zeros(shape, dtype=torch.bool)
    for scale in range(1, _TRIES + 1):
        x = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(scale)
        (dx,) = torch.autograd.grad(layer(x.requires_grad_()).flatten()[0], x)
        found |= dx != 0
    marks = found.flatten().tolist()
    caption = f"The first output depends on the marked {sum(marks)} of {len(marks)} inputs."
    return Picture("what an output depends on", ACTIVATIONS, _laid_out(marks, shape), caption)


def lines(p: Picture, width: int) -> list[str]:
    """A picture in characters; panels that do not fit, and rows beyond many, are only counted."""
    panel, row, column = p.axes
    cells = 2 * len(p.marked[0][0]) - 1
    wide = max(cells, len(f"{panel} {len(p.marked)}"))
    margin = len(f"{row} {len(p.marked[0])}") + 2
    num_panels = max(1, min(len(p.marked), (width - margin + 2) // (wide + 2)))
    num_rows = min(len(p.marked[0]), _MOST_ROWS)
    heads = (f"{panel} {i + 1}".ljust(wide) for i in range(num_panels))
    found = [f"{'':{margin}}{'  '.join(heads).rstrip()}"]
    for r in range(num_rows):
        shown = (" ".join("■" if m else "·" for m in p.marked[i][r]) for i in range(num_panels))
        cells_of_row = "  ".join(text.ljust(wide) for text in shown)
        found.append(f"{f'{row} {r + 1}'.ljust(margin)}{cells_of_row.rstrip()}")
    if num_rows < len(p.marked[0]):
        found.append(f"⋮ {len(p.marked[0]) - num_rows} more {row}s")
    if num_panels < len(p.marked):
        found.append(f"and {len(p.marked) - num_panels} more {panel}s")
    return [*found, f"{'':{margin}}across: {column}s"]


def _decided(text: str) -> str:
    """The pattern with 2 for every size that would have to be given."""
    left, arrow, right = text.partition("->")
    read = patterns.parse(text)
    for names in read.axes:
        for name in [n for n in names if n not in read.sizes][:-1]:
            left = re.sub(rf"\b{name}\b", f"{name}=2", left)
    return left + arrow + right


def _shape(read: patterns.Pattern, channels: int | None) -> tuple[int, ...]:
    """Sizes as small as show how the axes are divided."""
    shape: list[int] = []
    for names in read.axes:
        if names == (patterns.REST,):
            shape += [_POSITIONS] * max(5 - len(read.axes), 1)
            continue
        usual = (*_SIZES, _POSITIONS)[min(len(shape), 2)]
        if len(shape) == 1 and channels is not None:
            usual = channels
        known = patterns.product([read.sizes[n] for n in names if n in read.sizes])
        rest = read.undecided(names)
        fits = usual % known == 0 and (usual > known or len(names) == 1)
        shape.append(known if not rest else usual if fits else 2 * known)
    return tuple(shape)


def _laid_out(
    marks: list[bool], shape: tuple[int, ...]
) -> tuple[tuple[tuple[bool, ...], ...], ...]:
    rows, columns = shape[1], patterns.product(shape[2:])
    flat = [tuple(marks[at : at + columns]) for at in range(0, len(marks), columns)]
    return tuple(tuple(flat[at : at + rows]) for at in range(0, len(flat), rows))
