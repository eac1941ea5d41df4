"""The network a run starts from: new, with weights of a file, or another run's, converted."""

from pathlib import Path

import torch
from torch import nn

from normlab import surgery
from normlab.lab import checkpoint, domains, evaluate, models
from normlab.lab.data.dataset import Dataset
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.norm_names import parts
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input
from normlab.lab.weights import load_weights

_CENTRED = ("resized_crop", "imagenet")  # augmentation by parts of a picture, seen larger


def network(e: Experiment, images: Dataset) -> tuple[nn.Module, Input]:
    """The network of an experiment, with the weights it starts from, and how images enter it.

    Images enter a network that another run has trained as they did there.

    Raises:
        ExperimentError: the run to start from is of another network.
        CheckpointError, SurgeryError: its weights cannot be read, or its norms not converted.
    """
    if e.source is not None:
        return _converted(e, images)
    model = models.build(
        e.model,
        len(images.classes),
        norm=e.norm,
        norm_batch_size=e.norm_batch_size,
        zero_init=e.zero_init,
    )
    domains.begin(model)
    if e.weights is not None:
        load_weights(model, checkpoint.read_weights(Path(e.weights)), e.weights)
    return model, Input.of(images, view_of(e))


def _converted(e: Experiment, images: Dataset) -> tuple[nn.Module, Input]:
    assert e.source is not None
    source = Run.open(Path(e.source))
    model, input = evaluate.load_model(source, "last", torch.device("cpu"))
    found, wanted = (source.experiment.model, len(input.classes)), (e.model, len(images.classes))
    if found != wanted:
        raise ExperimentError(
            f"source {e.source}: a {found[0]} for {found[1]} classes, "
            f"where model is {wanted[0]} for {wanted[1]}"
        )
    if source.experiment.norm == e.norm and e.strength is None:
        return model, input
    (_, weights_found), (layer, weights) = parts(source.experiment.norm), parts(e.norm)
    if weights_found != weights:
        raise ExperimentError(
            f"source {e.source}: its weights are normalized by {weights_found or 'nothing'}, those "
            f"of norm {e.norm!r} by {weights or 'nothing'}; only the norms of layers are converted"
        )
    return surgery.convert(model, layer, keep=e.keep, strength=e.strength), input


def view_of(e: Experiment) -> str:
    """What is seen of pictures that are larger than the network's input, when it is judged."""
    return "centre" if e.augment in _CENTRED else "whole"


def strength(e: Experiment, progress: float) -> float | None:
    """The strength after a part of the training, 0 to 1; None if it never changes."""
    if e.strength is None or e.final_strength is None:
        return None
    return e.strength + progress * (e.final_strength - e.strength)
