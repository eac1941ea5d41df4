"""What is run: one Experiment is one training run, a Sweep is several under one title.

Imports neither torch nor data: the command line builds its flags from these fields.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


class ExperimentError(ValueError):
    """A setting that cannot be run; names the field, what came and what is possible."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run, and nothing that does not change its result.

    Two experiments with equal fields are the same run: `id` is a hash of the fields.

    Raises:
        ExperimentError: a field of the wrong type or out of its range.

    >>> Experiment(norm="batch").id == Experiment(norm="batch").id != Experiment(seed=1).id
    True
    """

    data: str = "relit_digits"
    """Images: relit_digits, digits, mnist, cifar10, …, folder:PATH, imagenet:PATH, csv:FILE,
    webdataset:PATH, hdf5:FILE, npz:FILE, or several together, joined:mnist+fashion_mnist."""
    model: str = "cifar_resnet:8"
    """Network: cifar_resnet:N, resnet:50, vgg:16, convnet, or any classifier torchvision:NAME or
    timm:NAME."""
    norm: str = "group"
    """Norm: batch, group, group:8, layer, instance, …; `normlab norms` lists them."""
    batch_size: int = 32
    """Images per step of the optimizer."""
    norm_batch_size: int | None = None
    """Images that share batch statistics; None: all that are computed together."""
    accumulate: int = 1
    """Equal parts a batch is computed in, one after the other, adding up their gradients."""
    epochs: int = 8
    """Passes over the training images."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Update rule."""
    learning_rate: float = 0.1
    """Peak step size, for `learning_rate_batch` images per step."""
    learning_rate_batch: int | None = 32
    """Batch size `learning_rate` is meant for; others scale in proportion. None: no scaling."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """L2 penalty on all weights."""
    norm_weight_decay: float | None = None
    """L2 penalty on the weights and biases of norms; None: as `weight_decay`."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup: float = 0.05
    """Fraction of the training over which the learning rate rises linearly from 0."""
    milestones: tuple[float, ...] = (1 / 3, 2 / 3, 0.9)
    """Fractions of the training at which the step schedule divides the learning rate by 10."""
    label_smoothing: float | None = None
    """Part of each label that is spread over all classes; None: none."""
    mixup: float | None = None
    """Mix neighbours in a batch, in parts drawn from Beta(a, a) with this a; None: do not."""
    cutmix: float | None = None
    """Paste a part of a neighbour, of an area drawn likewise; with `mixup`, one of both a batch."""
    max_gradient_norm: float | None = None
    """Scale gradients down to this norm where theirs is larger; None: do not."""
    ema: float | None = None
    """Judge a running average of the weights, which keeps so much of itself a step; None: them."""
    precision: Literal["bfloat16", "float16"] | None = None
    """Train under torch.autocast in this type, float16 with scaled gradients; None: float32.
    Networks are judged in float32."""
    freeze_statistics: float | None = None
    """Fraction of the training after which norms keep to their running statistics; None: never."""
    zero_init: bool = False
    """Start the last norm of each residual block, or without norms its last convolution, at 0."""
    augment: Literal["none", "crop", "crop_flip", "resized_crop", "imagenet"] = "none"
    """Training images: as they are; cropped at random after padding by 1/8; mirrored, too; a part
    of 8 to 100 % resized to the whole and mirrored; and with other colours, too."""
    order: Literal["class", "domain"] | None = None
    """Batches of one class or one domain each; None: drawn without regard to them."""
    image_size: int | None = None
    """Height and width in pixels that images are resized to; None: as stored."""
    validation: float = 0.2
    """Fraction of the training images held out where the data has no validation set."""
    num_train: int | None = None
    """Use only this many training images; None: all."""
    num_validation: int | None = None
    """Use only this many validation images; None: all."""
    patience: int | None = None
    """Stop after this many epochs without a better validation error; None: never."""
    weights: str | None = None
    """File of weights to start from, .safetensors or a state_dict in .pt; None: random ones."""
    source: str | None = None
    """Folder of a run to start from: the norms of its network are converted to `norm`."""
    keep: Literal["function", "affine", "fresh"] = "function"
    """What converted norms keep of the source's: what they compute, weight and bias, or nothing."""
    strength: float | None = None
    """Shrink converted norms' statistics by so much, 0 to 1, to the source's; None: not at all."""
    final_strength: float | None = None
    """The same at the end of the training, which `strength` moves to. None: it stays."""
    probe: str | None = None
    """Layers to record: a glob of names, several with commas, `features` for the pooled features;
    None: none."""
    shift: Literal["none", "noise", "blur", "contrast", "dark", "all"] | None = None
    """Judge the trained network on images so changed, too, with the statistics of 1 to 10,000 of
    them; none: of training images as they are. None: do not."""
    seed: int = 0
    """Initial weights, order of images and augmentation."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _converted(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            if field.name in _RANGES and value is not None:
                _check_range(field.name, value)
        _check_batches(self)
        _check_start(self)

    @functools.cached_property  # sweeps ask for it hundreds of times a second
    def id(self) -> str:
        """Ten hexadecimal digits that change with any field; those that are None say nothing."""
        said = {key: v for key, v in dataclasses.asdict(self).items() if v is not None}
        fields = json.dumps(said, sort_keys=True)  # so a new field leaves the ids of old runs
        return hashlib.sha256(fields.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """A safe file name: the fields usually compared, for people, then the id."""
        norm_batch = f"-nb{self.norm_batch_size}" if self.norm_batch_size else ""
        readable = f"{self.norm}-b{self.batch_size}{norm_batch}-s{self.seed}"
        return "".join(c if c.isalnum() else "-" for c in readable)[:60] + f"-{self.id}"

    def replace(self, **fields: Any) -> "Experiment":
        """A copy with some fields changed."""
        return from_mapping({**dataclasses.asdict(self), **fields}, "replace()")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Several experiments that answer one question together.

    Args:
        title: the question; the headline of the report.
        experiments: the runs, in the order in which they start.
        note: what a reader has to know to judge the answer.

    >>> len(Sweep.grid("Which?", Experiment(), norm=["batch", "group"], seed=[0, 1, 2]).experiments)
    6
    """

    title: str
    experiments: tuple[Experiment, ...]
    note: str = ""

    @classmethod
    def grid(
        cls, title: str, base: Experiment, *, note: str = "", **fields: Iterable[Any]
    ) -> "Sweep":
        """Every combination of the values given for some fields; the last field varies fastest."""
        combinations = itertools.product(*fields.values())
        experiments = (base.replace(**dict(zip(fields, values))) for values in combinations)
        return cls(title=title, experiments=tuple(dict.fromkeys(experiments)), note=note)

    def __add__(self, other: "Sweep") -> "Sweep":
        """The runs of both under the first title."""
        both = dict.fromkeys(self.experiments + other.experiments)
        notes = " ".join(n for n in (self.note, other.note) if n)
        return Sweep(title=self.title, experiments=tuple(both), note=notes)


def from_mapping(fields: Mapping[str, Any], where: str) -> Experiment:
    """The experiment described by a mapping, as read from a file; unknown keys are errors."""
    known = [f.name for f in dataclasses.fields(Experiment)]
    for key in fields:
        if key not in known:
            raise ExperimentError(f"{where}: unknown field {key!r}{did_you_mean(key, known)}")
    try:
        return Experiment(**fields)
    except ExperimentError as error:
        raise ExperimentError(f"{where}: {error}") from None


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """The rest of an error message: the closest known word, else all of them."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


# field: (smallest, largest, whether the smallest itself is refused)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "batch_size": (1, 2**20, False),
    "norm_batch_size": (1, 2**20, False),
    "accumulate": (1, 2**20, False),
    "epochs": (1, 100_000, False),
    "learning_rate": (0, 1e6, True),
    "learning_rate_batch": (1, 2**20, False),
    "momentum": (0, 1, False),
    "weight_decay": (0, 1e6, False),
    "norm_weight_decay": (0, 1e6, False),
    "warmup": (0, 1, False),
    "label_smoothing": (0, 1, True),
    "mixup": (0, 100, True),
    "cutmix": (0, 100, True),
    "max_gradient_norm": (0, 1e6, True),
    "ema": (0, 1, True),
    "freeze_statistics": (0, 1, False),
    "image_size": (1, 8192, False),
    "validation": (0, 0.9, True),
    "num_train": (1, 2**40, False),
    "num_validation": (1, 2**40, False),
    "patience": (1, 100_000, False),
    "strength": (0, 1, False),
    "final_strength": (0, 1, False),
    "seed": (0, 2**63 - 1, False),
}


def _check_range(name: str, value: float) -> None:
    low, high, open_below = _RANGES[name]
    if not math.isfinite(value) or value < low or value > high or (open_below and value == low):
        above = "greater than" if open_below else "at least"
        raise ExperimentError(f"{name} must be {above} {low:g} and at most {high:g}, got {value!r}")


def _check_batches(e: Experiment) -> None:
    if e.batch_size % e.accumulate:
        raise ExperimentError(
            f"a batch of {e.batch_size} images does not split into accumulate={e.accumulate} equal "
            "parts; choose a divisor"
        )
    together = e.batch_size // e.accumulate
    if e.norm_batch_size and (e.norm_batch_size > together or together % e.norm_batch_size):
        raise ExperimentError(
            f"norm_batch_size={e.norm_batch_size} does not divide the {together} images computed "
            f"together (batch_size {e.batch_size} / accumulate {e.accumulate}); choose a divisor"
        )
    if any(not 0 < m < 1 for m in e.milestones) or list(e.milestones) != sorted(e.milestones):
        raise ExperimentError(
            "milestones must be rising fractions of the training between 0 and 1, "
            f"got {e.milestones}"
        )


def _check_start(e: Experiment) -> None:
    if e.source is not None and e.weights is not None:
        raise ExperimentError("give source, a run to start from, or weights, not both")
    if e.strength is not None and e.source is None:
        raise ExperimentError("strength is for converted norms; give the source they come from")
    if e.final_strength is not None and e.strength is None:
        raise ExperimentError("final_strength is where strength moves to; give strength too")


def is_optional(hint: Any) -> bool:
    """Whether a type is "something or None"."""
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as its field's type where nothing is lost (JSON has lists, and 1 for 1.0)."""
    if is_optional(hint):
        return None if value is None else _converted(name, value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ExperimentError(
                f"{name}: {value!r} is not possible{did_you_mean(value, typing.get_args(hint))}"
            )
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ExperimentError(f"{name} must be a list of numbers, got {value!r}")
        return tuple(_converted(name, v, typing.get_args(hint)[0]) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ExperimentError(f"{name} must be {_KINDS[hint]}, got {value!r}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
