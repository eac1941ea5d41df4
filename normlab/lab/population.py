"""Whose statistics: a trained network judged by running, by population and by batch statistics.

What batch norm loses in evaluation is told apart by it: running statistics that are not those of
the population can be mended (`normlab.calibrate`), weights that need the statistics of a batch not.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.lab import evaluate
from normlab.lab.data.batches import fetch
from normlab.lab.data.dataset import Dataset
from normlab.lab.domains import has_domains
from normlab.lab.tasks import classification
from normlab.lab.tasks.classification import Input
from normlab.layer import Norm
from normlab.surgery import SurgeryError, calibrate
from normlab.surgery.batches import in_evaluation

MOST_IMAGES = 1024  # of the population: enough for its statistics, and little beside an epoch
_TOGETHER = 128  # images


def errors(
    model: nn.Module,
    train_set: Dataset,
    validation_set: Dataset,
    input: Input,
    device: torch.device,
    batch_size: int,
) -> dict[str, float | None]:
    """Validation error in percent under other statistics than running ones; {} without batch norms.

    population: statistics of training images, of up to MOST_IMAGES.
    batch: those of the validation images of each batch, of batch_size, drawn in an order without
    regard to classes; a last smaller one is left out. None where there are none: a population that
    is not finite, or fewer images than a batch. The model is left as it was.
    """
    if not batch_norms(model) or has_domains(model):
        return {}
    twin, population = copy.deepcopy(model), None
    try:
        calibrate(twin, Prepared(train_set, _spread(train_set), input, device))
        _, population = evaluate.measure(twin, validation_set, input, device)
    except SurgeryError:
        pass  # no finite statistics, so no error under them
    batch = _under_batches(copy.deepcopy(model), validation_set, input, device, batch_size)
    return {"population": population, "batch": batch}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Norms that normalize by the batch in training, and by running statistics after."""
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm | Norm)
        and m.running_mean is not None
        and (isinstance(m, _BatchNorm) or m.mixes_samples)
    ]


@torch.no_grad()
def _under_batches(
    model: nn.Module, images: Dataset, input: Input, device: torch.device, batch_size: int
) -> float | None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    wrong = seen = 0
    with in_evaluation(model, but=batch_norms(model)):
        for at in order.split(batch_size):
            if len(at) == batch_size:
                logits = model(input.prepare(images.images[at], device))
                wrong += classification.num_wrong(logits, images.labels[at].to(device))
                seen += batch_size
    return 100 * wrong / seen if seen else None


class Prepared:
    """Some images of a set in batches, as a network sees them, as often as they are asked for."""

    def __init__(self, images: Dataset, chosen: Tensor, input: Input, device: torch.device) -> None:
        self._images, self._chosen, self._input, self._device = images, chosen, input, device

    def __iter__(self) -> Iterator[Tensor]:
        for at in self._chosen.split(_TOGETHER):
            batch = fetch(self._images, at, skip_bad=True)
            yield self._input.prepare(batch.images, self._device)


def _spread(images: Dataset) -> Tensor:
    """Indices of up to MOST_IMAGES, spread over all of them."""
    count = min(len(images), MOST_IMAGES)
    return torch.linspace(0, len(images) - 1, count).round().long()
