"""Which kernel takes a norm, with tiles of which size: closed formulas, nothing is tried out.

Numbers of programs are meant for about 132 multiprocessors and do not depend on the device, so
that results do not either. Sizes were chosen from what the compiler reports for sm_90 (registers,
spills, 16-byte loads), not from timings.
"""

import functools
from dataclasses import dataclass
from math import gcd

from normlab.ops.canonical import Form

FEW = 128  # groups that leave multiprocessors idle if each is one program's
ENOUGH = 264  # programs: two per multiprocessor
MANY = 1056


@dataclass(frozen=True)
class View:
    """Memory as kernels address it: slices of (samples, C, positions), or of (positions, C).

    Args:
        channels: per group.
        channels_last: then there is one sample: theirs are positions as well.
    """

    slices: int
    samples: int
    groups: int
    channels: int
    positions: int
    channels_last: bool

    @property
    def num_groups(self) -> int:
        """Statistics."""
        return self.slices * self.groups

    @property
    def num_channels(self) -> int:
        return self.groups * self.channels

    @property
    def values(self) -> int:
        """Of one channel of one slice."""
        return self.samples * self.positions

    @property
    def run(self) -> int:
        """Of a group, or of groups of one channel, next to each other in memory."""
        if not self.channels_last:
            return self.positions
        return self.channels if self.channels > 1 else self.groups

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """As kernels take them."""
        return self.samples, self.groups, self.channels, self.positions


@dataclass(frozen=True)
class Tile:
    """[groups, channels, positions] of a program, powers of two.

    Args:
        unit: what sizes along memory are multiples of.
    """

    groups: int
    channels: int
    positions: int
    unit: int
    warps: int


@dataclass(frozen=True)
class Split:
    """Programs of a slice: `blocks` of channels, and `chunks` of `steps` tiles of positions."""

    tile: Tile
    blocks: int
    chunks: int
    steps: int


def view(form: Form, channels_last: bool) -> View:
    """The form in memory; samples that follow each other like positions are positions.

    >>> view(Form(1, 8, 6, 1, 25), channels_last=True)
    View(slices=1, samples=1, groups=6, channels=1, positions=200, channels_last=True)
    """
    joined = form.samples * form.positions
    if channels_last or form.positions == 1:
        return View(form.slices, 1, form.groups, form.channels, joined, True)
    if form.groups * form.channels == 1:
        return View(form.slices, 1, 1, 1, joined, False)
    return View(form.slices, form.samples, form.groups, form.channels, form.positions, False)


def flat(view: View) -> View:
    """For moments alone: groups that are one run in memory, as one channel each."""
    if view.values == 1:
        return View(view.slices, 1, view.groups, 1, view.channels, False)
    return view


@functools.lru_cache(maxsize=1024)
def whole(view: View, itemsize: int, backward: bool) -> Tile | None:
    """Tile of `whole`, or None if a group does not fit on the chip.

    Several groups a tile where they are small, and where channels are last: 64 bytes of neighbours,
    32 at least, or reads would be mostly waste.
    """
    limit, per_thread = _on_chip(view, itemsize, backward)
    channels, positions = ceil2(view.channels), ceil2(view.values)
    size = channels * positions
    if size > limit:
        return None
    groups = 1
    if view.channels_last and view.values > 1:
        run = view.channels * itemsize
        groups = min(ceil2(cdiv(64, run)), ceil2(view.groups), limit // size)
        if groups * run < 32 and groups < view.groups:
            return None
    # rows of "n c -> n" backward come one tile after the other, so tiles may be larger
    fill = 4096 if backward and view.groups == 1 else 2048
    while groups < view.num_groups and (
        groups * size < 512 or (groups * size < fill and view.num_groups > groups * ENOUGH)
    ):
        groups *= 2
    warps = min(max(groups * size // (32 * per_thread), 1), 32)
    return Tile(groups, channels, positions, gcd(view.run, 16), warps)


def _on_chip(view: View, itemsize: int, backward: bool) -> tuple[int, int]:
    """Values a program can hold in registers, and how many a thread should.

    Fewer where loads are narrow, since every value then has an address. At the limit, gelu with a
    residual spills up to 80 bytes a thread. Rows above 8192 spill more backward; still better than
    partial sums as large as x.
    """
    if gcd(view.run, 16) * itemsize < 16:
        return 2**13, 8
    if not backward:
        return 2**15 if itemsize == 2 and not view.channels_last else 2**14, 16
    if view.values == 1 and view.groups == 1:
        return 2**14, 8
    return 2**14 if itemsize == 2 and not view.channels_last else 2**13, 8


@functools.lru_cache(maxsize=1024)
def long(view: View, itemsize: int, backward: bool) -> Tile | None:
    """Tile of `long`, or None if groups are few, over 256 KB, or runs of under 64 bytes."""
    count = view.channels * view.values
    if view.num_groups < FEW or count * itemsize > 2**18:
        return None
    if view.channels_last and view.values > 1 and view.channels * itemsize < 64:
        return None
    size = 4096 if backward else 8192
    if view.channels_last:
        channels = min(ceil2(view.channels), size)
        positions = min(ceil2(view.values), size // channels)
    else:
        positions = min(ceil2(view.values), size)
        channels = min(ceil2(view.channels), size // positions)
    unit = gcd(view.channels if view.channels_last else view.positions, 16)
    return Tile(1, channels, positions, unit, 8 if backward else 16)


@functools.lru_cache(maxsize=1024)
def split(view: View, itemsize: int, programs: int) -> Split:
    """How `split` cuts x into about so many programs, if it is large enough.

    Tiles of 2048 values in 4 warps; with channels last 128 bytes wide, unless C is less.
    """
    size = 2048
    if view.channels_last:
        positions = min(ceil2(view.values), size // min(ceil2(view.num_channels), 128 // itemsize))
    else:
        positions = min(ceil2(view.values), size)
    channels = min(ceil2(view.num_channels), size // positions)
    blocks = cdiv(view.num_channels, channels)
    tiles = cdiv(view.values, positions)
    steps = cdiv(tiles, min(max(programs // (view.slices * blocks), 1), tiles))
    unit = gcd(view.num_channels if view.channels_last else view.positions, 16)
    return Split(Tile(1, channels, positions, unit, 4), blocks, cdiv(tiles, steps), steps)


def merged_at_once(view: View, cut: Split, apply: Split) -> int:
    """Partial results every program that applies can merge itself; 0 where it should not.

    That saves a launch where a block of channels lies in one group and has few partial results.
    """
    entries = cut.chunks * view.channels
    return ceil2(entries) if view.channels % apply.tile.channels == 0 and entries <= 512 else 0


def merge(view: View, chunks: int) -> tuple[int, int]:
    """Groups and partial results per tile of `merge_moments`: 32 bytes of neighbours, 4096 values.

    >>> merge(View(1, 1, 64, 1, 10**6, True), chunks=100)
    (8, 128)
    """
    groups = max(8 // ceil2(view.channels), 1)
    return groups, min(ceil2(chunks * view.channels), 4096 // groups)


def ceil2(size: int) -> int:
    """The power of two from size on.

    >>> ceil2(48)
    64
    """
    return 1 << (size - 1).bit_length()


def cdiv(size: int, part: int) -> int:
    """How many parts it takes."""
    return -(-size // part)
