"""Patterns: what is read, what a shape makes of it, and what is refused with which words."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.pattern import PatternError, bind, geometry, parse, show

BATCH, LAYER, INSTANCE = "n c ... -> c", "n c ... -> n", "n c ... -> n c"
GROUP, GHOST, BATCH_GROUP = "n (g=2 c) ... -> n g", "(b n=2) c ... -> b c", "n (g=2 c) ... -> g"


@pytest.mark.parametrize(
    ("text", "axes", "kept", "sizes"),
    [
        (BATCH, (("n",), ("c",), ("...",)), ("c",), {}),
        (GROUP, (("n",), ("g", "c"), ("...",)), ("n", "g"), {"g": 2}),
        (GHOST, (("b", "n"), ("c",), ("...",)), ("b", "c"), {"n": 2}),
        ("n c h w -> n h w", (("n",), ("c",), ("h",), ("w",)), ("n", "h", "w"), {}),
        ("n c ... -> n c ...", (("n",), ("c",), ("...",)), ("n", "c", "..."), {}),
        ("  n(g=2   c)   ...->n g ", (("n",), ("g", "c"), ("...",)), ("n", "g"), {"g": 2}),
        ("o i ... ->", (("o",), ("i",), ("...",)), (), {}),
    ],
)
def test_text_is_read(text, axes, kept, sizes):
    pattern = parse(text)
    assert (pattern.axes, pattern.kept, pattern.sizes) == (axes, kept, sizes)


@pytest.mark.parametrize(
    ("text", "shape", "split", "statistics", "count", "channels"),
    [
        (BATCH, (5, 10, 4, 3), (5, 10, 4, 3), (10,), 60, (1,)),
        (LAYER, (5, 10, 4, 3), (5, 10, 4, 3), (5,), 120, (1,)),
        (INSTANCE, (5, 10, 4, 3), (5, 10, 4, 3), (5, 10), 12, (1,)),
        (GROUP, (5, 10, 4, 3), (5, 2, 5, 4, 3), (5, 2), 60, (1, 2)),
        (GHOST, (4, 10, 4, 3), (2, 2, 10, 4, 3), (2, 10), 24, (2,)),
        (BATCH_GROUP, (5, 10, 4, 3), (5, 2, 5, 4, 3), (2,), 300, (1, 2)),
        ("n c h w -> n h w", (5, 10, 4, 3), (5, 10, 4, 3), (5, 4, 3), 10, (1,)),
        ("n c ... -> n c ...", (5, 10, 4), (5, 10, 4), (5, 10, 4), 1, (1,)),
        (LAYER, (5, 10), (5, 10), (5,), 10, (1,)),
        (BATCH, (0, 10, 4), (0, 10, 4), (10,), 0, (1,)),
    ],
)
def test_shape_is_split(text, shape, split, statistics, count, channels):
    found = geometry(text, shape)
    assert (found.split, found.statistics, found.count, found.channels) == (
        split, statistics, count, channels,
    )  # fmt: skip


def test_statistics_and_parameters_line_up_with_the_split_input():
    found = geometry(GROUP, (5, 10, 4, 3))
    assert found.broadcast == (5, 2, 1, 1, 1)
    assert found.per_channel == (1, 2, 5, 1, 1)


@pytest.mark.parametrize(
    ("text", "shape", "runs"),
    [
        (BATCH, (5, 10, 4, 3), (1, 5, 10, 12)),
        (LAYER, (5, 10, 4, 3), (5, 120, 1, 1)),
        (INSTANCE, (5, 10, 4, 3), (50, 12, 1, 1)),
        (GROUP, (5, 10, 4, 3), (10, 60, 1, 1)),
        (GHOST, (4, 10, 4, 3), (2, 2, 10, 12)),
        (BATCH_GROUP, (5, 10, 4, 3), (1, 5, 2, 60)),
        ("n ... c -> c", (5, 4, 3, 10), (1, 60, 10, 1)),
        ("n ... (g=2 c) -> n g", (5, 4, 3, 10), (5, 12, 2, 5)),
        ("n c h w -> n h w", (5, 10, 4, 3), (5, 10, 12, 1)),
        pytest.param(BATCH, (1, 10, 1, 1), (10, 1, 1, 1), id="axes of size 1 have no fate"),
        pytest.param(BATCH, (0, 10, 4), (1, 0, 10, 4), id="no samples"),
    ],
)
def test_neighbours_with_the_same_fate_join(text, shape, runs):
    assert geometry(text, shape).runs == runs


def test_a_fifth_run_is_refused():
    alternating = geometry("a b c d e -> b d", (2, 3, 4, 5, 6))
    with pytest.raises(PatternError, match=r"\(2, 3, 4, 5, 6\) reduced at \(0, 2, 4\)"):
        _ = alternating.runs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n c", 'n c" needs one "->", as in'),
        ("n -> c -> d", 'needs one "->"'),
        ("", 'needs one "->"'),
        (" -> n", "names no axes"),
        ("n (g c -> n", "unmatched parenthesis"),
        ("n g c) -> n", "unmatched parenthesis"),
        ("n ((g c)) -> n", "unmatched parenthesis"),
        ("n () c -> n", r"empty axis \(\)"),
        ("n c n -> n", "names n twice"),
        ("... c ... -> c", r"names \.\.\. twice"),
        ("n c -> n d", 'n c -> n d" keeps d, which is not among n c'),
        ("n c -> c n", "keep axes in the order of its left side"),
        ("n c -> n n", "each once"),
        ("n C -> n", 'cannot read "C"; axes are words'),
        ("n c1 -> n", 'cannot read "c1"'),
        ("n (g ...) -> n", r'cannot read "\.\.\."'),
        ("n c=0 -> n", 'cannot read "c=0"'),
        ("n c=-2 -> n", 'cannot read "c=-2"'),
        ("n c= -> n", 'cannot read "c="'),
        ("n (g=2.5 c) -> n", 'cannot read "g=2.5"'),
        ("n c=8=8 -> n", 'cannot read "c=8=8"'),
        pytest.param(f"n c={'9' * 5000} -> n", "cannot read", id="a size of 5000 digits"),
    ],
)
def test_unreadable_text_is_named(text, message):
    with pytest.raises(PatternError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r'n \(g c\) \.\.\. -> n g" does not say how \(g c\) splits; give g=…'),
        ({"g": 0}, "size of g must be at least 1, got 0"),
        ({"g": -2}, "size of g must be at least 1, got -2"),
        ({"g": 2.5}, "size of g must be a whole number, got 2.5"),
        ({"g": "32"}, "size of g must be a whole number, got '32'"),
        ({"g": True}, "size of g must be a whole number, got True"),
        ({"g": 2, "k": 3}, "has no axis k"),
    ],
)
def test_sizes_that_do_not_bind_are_named(sizes, message):
    with pytest.raises(PatternError, match=message):
        bind("n (g c) ... -> n g", **sizes)


def test_sizes_are_written_into_the_text():
    assert bind("n (g c) ... -> n g", g=8) == "n (g=8 c) ... -> n g"
    assert bind("n (g=4 c) ... -> n g", g=8) == "n (g=8 c) ... -> n g"
    assert bind("n (g c) ... -> n g", c=8) == "n (g c=8) ... -> n g"
    assert bind(BATCH) == BATCH


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        (
            "n (g=24 c) ... -> n g", (2, 64, 7, 7),
            r'"n \(g=24 c\) \.\.\. -> n g": an axis of 64 in shape 2×64×7×7 does not split into '
            r"g=24; choose one of 1, 2, 4, 8, 16, 32, 64",
        ),
        ("n (g=2 c=5) -> n g", (2, 64), r"axis of 64 in shape 2×64 .* g=2 · c=5; choose one of 64"),
        ("n c=8 -> n", (2, 64), "an axis of 64 in shape 2×64 does not split into c=8"),
        (BATCH, (3,), r'"n c \.\.\. -> c" is for at least 2 axes, got shape 3 with 1'),
        (BATCH, (), r"at least 2 axes, got shape \(\) with 0"),
        ("n c h w -> n h w", (2, 3, 4), "is for 4 axes, got shape 2×3×4 with 3"),
        ("n c -> n", (2, 3, 4), "is for 2 axes, got shape 2×3×4 with 3"),
        ("n (g c) ... -> n g", (2, 6, 4), r"does not say how \(g c\) splits; give g=…"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(text, shape, message):
    with pytest.raises(PatternError, match=message):
        geometry(text, shape)


@pytest.mark.parametrize(
    ("norm", "text", "pairs"),
    [("IN", INSTANCE, 50), ("LN", LAYER, 5), ("GN, two groups", GROUP, 10), ("BN", BATCH, 10)],
)
def test_five_samples_of_ten_channels_have_this_many_means(norm, text, pairs):
    assert math.prod(geometry(text, (5, 10, 7, 7)).statistics) == pairs


def test_shapes_are_shown_as_people_write_them():
    assert show((8, 64, 7, 7)) == "8×64×7×7"


@st.composite
def laid_over_a_shape(draw):
    """A pattern with its sizes written in, and a shape it fits."""
    names = draw(st.permutations("abcdefg"))[: draw(st.integers(2, 6))]
    kept = [name for name in names if draw(st.booleans())]
    left, shape = [], []
    while names:
        axis, names = names[:2], names[2:]
        if draw(st.booleans()) or len(axis) == 1:
            names, axis = axis[1:] + names, axis[:1]
        sizes = [draw(st.integers(1, 4)) for _ in axis]
        stated = [f"{name}={size}" for name, size in zip(axis[1:], sizes[1:])]
        left.append(f"({' '.join([axis[0], *stated])})" if stated else axis[0])
        shape.append(math.prod(sizes))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(left)))
        left.insert(at, "...")
        shape[at:at] = draw(st.lists(st.integers(0, 4), max_size=3))
    return f"{' '.join(left)} -> {' '.join(kept)}", tuple(shape)


@settings(max_examples=200, deadline=None)
@given(laid_over_a_shape())
def test_statistics_times_count_is_the_number_of_elements(case):
    text, shape = case
    found = geometry(text, shape)
    assert math.prod(found.statistics) * found.count == math.prod(shape)
    assert math.prod(found.split) == math.prod(shape)


@settings(max_examples=200, deadline=None)
@given(laid_over_a_shape())
def test_runs_hold_every_element_unless_refused(case):
    text, shape = case
    try:
        runs = geometry(text, shape).runs
    except PatternError:
        return
    assert math.prod(runs) == math.prod(shape)


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="ngc ()=.->08", max_size=24),
    st.dictionaries(st.sampled_from("ngc"), st.integers(-1, 9), max_size=2),
    st.lists(st.integers(0, 12), max_size=5),
)
def test_random_text_raises_nothing_but_pattern_errors(text, sizes, shape):
    try:
        geometry(bind(text, **sizes), shape)
    except PatternError as error:
        assert str(error)
