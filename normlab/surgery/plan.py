"""What a conversion will do to each norm of a model, found out before anything is changed."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normlab import norms
from normlab import pattern as patterns
from normlab.surgery.calls import functional_norms
from normlab.surgery.commit import Report, commit, versions
from normlab.surgery.freeze import is_frozen
from normlab.surgery.known import known
from normlab.surgery.layers import Site, SurgeryError, Where
from normlab.surgery.moments import channel_axes
from normlab.surgery.refusals import check_model, plainly_held, problem
from normlab.surgery.rules import NO_RULE, kind, read
from normlab.surgery.sample import run_sample
from normlab.surgery.selection import Left, select
from normlab.surgery.shrunk import Shrunk, check_strength
from normlab.surgery.tables import table
from normlab.surgery.targets import MEANINGS, Made, Wish, make

KEEPS = ("function", "affine", "fresh")
FEW = 8  # values; the variance of so few is off by 50 %: sqrt(2 / 8)


@dataclass(frozen=True)
class Change:
    """One norm of a model and what takes its place.

    Args:
        names: every path the layer is reached by; more than one if it is shared.
        keeps: what of the old layer; see `MEANINGS`.
        values: per statistic, for the sample input.
        notes: what to look at.
    """

    names: tuple[str, ...]
    old: nn.Module
    new: nn.Module
    keeps: str
    values: int | None = None
    notes: tuple[str, ...] = ()
    versions: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", versions(self.old))

    def row(self) -> list[str]:
        new = read(self.new)
        assert new is not None
        sizes, _ = channel_axes(new.pattern, new.num_channels)
        groups = "×".join(map(str, sizes)) if len(sizes) > 1 else ""
        old = read(self.old)
        assert old is not None
        then = [new.activation or "", *(type(m).__name__ for m in new.then)]
        to = " + ".join(filter(None, [_show_kind(self.new, new.core), *then]))
        return [
            self.names[0] or "(the model)",
            f"{kind(self.old).__name__}({old.num_channels})",
            to, groups, "" if self.values is None else str(self.values), self.keeps,
            "; ".join(self.notes),
        ]  # fmt: skip


@dataclass
class Plan:
    """A conversion that can be made; print it, then `commit`. Nothing is changed until then.

    Args:
        model: without torch.compile's wrapper.
        changes: norms that will be replaced, in the order of the model.
        left: norms that will not.
        calls: norms that are no layers, in words.
        warnings: what to look at, in words.
    """

    model: nn.Module
    wish: Wish
    changes: list[Change]
    left: list[Left]
    calls: list[str]
    warnings: list[str] = field(default_factory=list)

    def commit(self, sample_input: Any = None, optimizer: Any = None) -> Report:
        """Make the changes, all or none; see `normlab.convert` for the arguments.

        Raises:
            SurgeryError: a layer was changed since the plan was made, or the owner of one takes no
                other; the model is unchanged.
        """
        return commit(self, sample_input, optimizer)

    def untouched(self) -> list[str]:
        """What stays that a rule or a layer in the model could change, in words."""
        without = [left for left in self.left if left.reason.startswith(NO_RULE)]
        return _reasons(without) + [f"outside layers: {call}" for call in self.calls]

    def __str__(self) -> str:
        head = f"{len(self.changes)} norms → {self.wish.spec!r}, keep={self.wish.keep!r}"
        if self.wish.strength is not None:
            head += f", strength={self.wish.strength:g}"
        titles = ["layer", "from", "to", "groups", "values", "keeps", "note"]
        lines = [head, *table(titles, [change.row() for change in self.changes])]
        kept = Counter(change.keeps for change in self.changes)
        lines += [f"{keeps} ({n}): {MEANINGS[keeps]}" for keeps, n in kept.items()]
        lines += _reasons(self.left)
        lines += [f"outside layers: {call}" for call in self.calls]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def plan(
    model: nn.Module,
    spec: str,
    *,
    where: Where | None = None,
    keep: str = "function",
    strength: float | None = None,
    sample_input: Any = None,
    **options: Any,
) -> Plan:
    """What `convert` would do; changes nothing. See `normlab.convert` for the arguments.

    Raises:
        SurgeryError: no norm matched, or some cannot be converted: all of these are listed.
        LookupError: no norm is called like that.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(6))
    >>> print(plan(model, "group:4"))
    1 norms → 'group:4', keep='function'
    layer  from            to     groups  values  keeps         note
    1      BatchNorm2d(8)  group  4×2             weight, bias
    weight, bias (1): as they are; more needs trained population statistics and keep='function'
    left: 1 LayerNorm: normalizes over the last axes, not over channels
    """
    wish = _wish(spec, keep, strength, options)
    model, warnings = _unwrapped(model)
    check_model(model)
    calls = functional_norms(model)
    left, wanted = select(model, wish, where, calls)
    held = plainly_held(model)
    problems = {s.names[0]: p for s in wanted if (p := problem(model, s, held))}
    shapes: dict[int, tuple[int, ...]] = {}
    if sample_input is not None and not problems:
        layers = [site.layer for site in wanted]
        _, shapes = run_sample(model, sample_input, layers)
    owners = _owners(model)
    like = next(model.parameters(), None)
    changes = []
    for site in wanted:
        if site.names[0] in problems:
            continue
        try:
            made = make(site.layer, wish, like, owners)
            values = _values(site, made.layer, shapes.get(id(site.layer)))
        except (ValueError, TypeError) as error:
            problems[site.names[0]] = str(error)
            continue
        notes = _notes(site, made, values, bool(shapes) and id(site.layer) not in shapes)
        changes.append(Change(site.names, site.layer, made.layer, made.keeps, values, notes))
    if problems:
        raise SurgeryError(_list(problems, wanted, wish))
    warnings += _warnings(changes, wish)
    return Plan(model, wish, changes, left, calls, warnings)


def _reasons(left: list[Left]) -> list[str]:
    counted = Counter((kind(one.layer).__name__, one.reason) for one in left)
    return [f"left: {n} {name}: {reason}" for (name, reason), n in counted.items()]


def _wish(spec: str, keep: str, strength: float | None, options: dict[str, Any]) -> Wish:
    norms.parse(spec)
    if keep not in KEEPS:
        raise SurgeryError(f"keep is one of {', '.join(map(repr, KEEPS))}, got {keep!r}")
    if strength is not None:
        check_strength(strength)
        if keep == "fresh":
            raise SurgeryError("strength needs what keep='fresh' throws away; leave one of them")
    return Wish(spec, keep, strength, options)


def _unwrapped(model: Any) -> tuple[Any, list[str]]:
    inner = getattr(model, "_orig_mod", None)
    if not isinstance(inner, nn.Module):
        return model, []
    return inner, ["the model was compiled; the one returned is not: call torch.compile again"]


def _owners(model: nn.Module) -> Counter[int]:
    """By the id of each parameter, how many places it has; shared layers are one place."""
    return Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )


def _values(site: Site, new: nn.Module, shape: tuple[int, ...] | None) -> int | None:
    """Values per statistic for the sample.

    Raises:
        SurgeryError: one, of which there is no variance.
    """
    reading = read(new)
    assert reading is not None
    if shape is None or getattr(reading.core, "name", None) == "none":
        return None
    try:
        count = patterns.geometry(reading.pattern, shape).count
    except patterns.PatternError:  # a sample of fewer than share statistics
        return None
    per_sample = "n" in patterns.parse(reading.pattern).kept
    if count == 1 and per_sample and not isinstance(reading.core, Shrunk):
        raise SurgeryError(
            f"one value per statistic at shape {patterns.show(shape)}, so its output would be its "
            "bias; choose larger groups, or leave this layer with where="
        )
    return count


def _notes(site: Site, made: Made, values: int | None, is_unused: bool) -> tuple[str, ...]:
    notes = []
    if len(site.names) > 1:
        notes.append(f"shared: {len(site.names)} names")
    if is_frozen(site.layer) and _tracks(made.layer) and not is_frozen(made.layer):
        notes.append("statistics were frozen, and are the batch's again")
    if made.is_tied:
        notes.append("tied to another layer: weight and bias stay as they are")
    if values is not None and values < FEW:
        notes.append(f"{values} values per statistic are few")
    if is_unused:
        notes.append("not reached by the sample")
    return tuple(notes)


def _list(problems: dict[str, str], wanted: list[Site], wish: Wish) -> str:
    lines = [f"{len(problems)} of {len(wanted)} norms cannot become {wish.spec!r}:"]
    lines += [f"  {name or '(the model)'}: {why}" for name, why in problems.items()]
    if any("divisib" in why or "do not split" in why for why in problems.values()):
        counts = [reading.num_channels for s in wanted if (reading := read(s.layer))]
        lines.append(
            f"All channels split into {math.gcd(*counts)} groups; 'group' chooses for each layer "
            "the group size nearest to 16 that divides."
        )
    return "\n".join(lines)


def _warnings(changes: list[Change], wish: Wish) -> list[str]:
    warnings = []
    tracked = [c for c in changes if _tracks(c.old)]
    unknown = [c.names[0] for c in tracked if known(c.old).mean is None]
    # a network that was never trained has nothing to lose; one that was in part is a mistake
    if wish.keep == "function" and 0 < len(unknown) < len(tracked):
        warnings.append(
            f"{len(unknown)} of {len(tracked)} norms have running statistics of no data "
            f"({', '.join(unknown[:3])}), so there is no function to keep"
        )
    empty = [
        c for c in changes if _tracks(c.new) and not _tracks(c.old) and known(c.new).mean is None
    ]
    if empty:
        warnings.append(
            f"{len(empty)} norms now need running statistics and have none yet; train, or call "
            "normlab.calibrate, before evaluating"
        )
    tied = [c.names[0] for c in changes if any("tied" in note for note in c.notes)]
    if tied:
        warnings.append(
            f"{len(tied)} norms share weight or bias with other layers ({', '.join(tied[:3])}), "
            "which were kept, and the function was not"
        )
    return warnings


def _tracks(layer: nn.Module) -> bool:
    """Whether a norm has running statistics that could be those of data."""
    reading = read(layer)
    mean = None if reading is None else reading.tensor("running_mean")
    return mean is not None and not mean.is_meta


def _show_kind(layer: nn.Module, core: Any) -> str:
    if isinstance(core, Shrunk):
        return f"shrunk {core.strength:g}"
    return getattr(core, "name", None) or kind(layer).__name__
