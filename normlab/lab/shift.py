"""How much batch norm loses where images are others than in training, and from how few it recovers.

A trained network is judged with the statistics it has, and with statistics re-estimated from a few
images, as in sections 3 and 5 of Wu and Johnson 2021, https://arxiv.org/abs/2105.07576.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab.lab import evaluate
from normlab.lab.data.arrays import fixed_permutation
from normlab.lab.data.dataset import Dataset, Images
from normlab.lab.population import Prepared, batch_norms
from normlab.lab.tasks.classification import Input
from normlab.surgery import SurgeryError, calibrate

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # images that statistics are estimated from
MOST_SHIFTED = 1000  # of them, where validation images have to be spared for it
DRAWS = 3  # at most: disjoint sets of so many images, over which the error is averaged
NOISE = 26.0  # standard deviation, of 255
BLUR, LEAST_BLUR = 1 / 40, 0.5  # standard deviation, of the height; in pixels
CONTRAST = 0.3  # of the distance from the image's mean
DARK = 0.3  # of the brightness
_TOGETHER = 128  # images


class ShiftError(ValueError):
    """A shift that is not known; names those that are."""


def corrupt(images: Tensor, indices: Tensor, shift: str) -> Tensor:
    """Images as another camera might give them: a function of the image and of its index alone.

    noise: a normal number is added to every value, with standard deviation NOISE.
    blur: a Gaussian with a standard deviation of BLUR times the height, and at least LEAST_BLUR
        pixels; edges are repeated.
    contrast: CONTRAST times the distance from the mean of the image, per channel.
    dark: DARK times the value.

    Args:
        images: uint8 (N, C, H, W).
        indices: (N,), their places in their set; noise depends on them.

    Returns:
        uint8 (N, C, H, W), rounded and clipped.

    Raises:
        ShiftError: no such shift.

    >>> corrupt(torch.full((1, 1, 2, 2), 100, dtype=torch.uint8), torch.tensor([0]), "dark").max()
    tensor(30, dtype=torch.uint8)
    """
    if shift not in CORRUPTIONS:
        raise ShiftError(f"no shift is called {shift!r}; there are {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[shift](images.float(), indices).round().clamp(0, 255).to(torch.uint8)


def _noisy(x: Tensor, indices: Tensor) -> Tensor:
    shape = tuple(x.shape[1:])
    drawn = [
        np.random.Generator(np.random.Philox(key=index)).standard_normal(shape, np.float32)
        for index in indices.tolist()
    ]
    return x + NOISE * torch.from_numpy(np.stack(drawn)) if drawn else x


def _blurred(x: Tensor, _: Tensor) -> Tensor:
    std = max(BLUR * x.shape[2], LEAST_BLUR)
    reach = max(1, round(3 * std))
    across = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(across**2) / (2 * std**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, [reach] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[..., None], groups=x.shape[1])
    return F.conv2d(rows, kernel[:, :, None], groups=x.shape[1])


def _flat(x: Tensor, _: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + CONTRAST * (x - mean)


def _dark(x: Tensor, _: Tensor) -> Tensor:
    return DARK * x


CORRUPTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "noise": _noisy,
    "blur": _blurred,
    "contrast": _flat,
    "dark": _dark,
}
SHIFTS = ("none", *CORRUPTIONS)


def errors(
    model: nn.Module,
    train_set: Dataset,
    validation_set: Dataset,
    input: Input,
    device: torch.device,
    shift: str,
) -> list[dict[str, Any]]:
    """Validation error in percent under a shift: as trained, and with re-estimated statistics.

    With shift "none" statistics are re-estimated from training images, and all validation images
    are judged. Under another one, half the validation images are judged, corrupted, and statistics
    are re-estimated from corrupted ones of the other half. A row is the mean over up to DRAWS
    disjoint sets of its images; its error is None where they give no finite statistics, as one
    image whose last map is one pixel. The model is left as it was.

    Args:
        shift: one of SHIFTS; "all" is each of them in turn.

    Returns:
        Rows of shift, statistics, images and error. First the error as trained, statistics
        "running" and images 0; then, for a network with batch norms, "reestimated" from images as
        in COUNTS, as many as there are.

    Raises:
        ShiftError: no such shift.
    """
    if shift == "all":
        every = (errors(model, train_set, validation_set, input, device, s) for s in SHIFTS)
        return [row for rows in every for row in rows]
    if shift == "none":
        judged, source, most = validation_set, train_set, max(COUNTS)
        pool = fixed_permutation(len(source))
    else:
        order, half = fixed_permutation(len(validation_set)), (len(validation_set) + 1) // 2
        source = _shifted(validation_set, shift)
        judged = source.select(order[:half].sort().values)
        pool, most = order[half:], MOST_SHIFTED
    _, error = evaluate.measure(model, judged, input, device)
    rows = [{"shift": shift, "statistics": "running", "images": 0, "error": error}]
    if not batch_norms(model):
        return rows
    for count in COUNTS:
        if count > min(most, len(pool)):
            break
        draws = pool.split(count)[: min(DRAWS, len(pool) // count)]
        found = [_reestimated(model, source, at, judged, input, device) for at in draws]
        known = [e for e in found if e is not None]
        mean = sum(known) / len(known) if len(known) == len(found) else None
        rows.append({"shift": shift, "statistics": "reestimated", "images": count, "error": mean})
    return rows


def _reestimated(
    model: nn.Module, source: Dataset, chosen: Tensor, judged: Dataset, *where: Any
) -> float | None:
    """The error with the statistics of the chosen images; None if they have no finite ones."""
    twin = copy.deepcopy(model)
    try:
        calibrate(twin, Prepared(source, chosen.sort().values, *where))
    except SurgeryError:
        return None
    return evaluate.measure(twin, judged, *where)[1]


class _Corrupted:
    """Another store's images, corrupted as they are fetched."""

    def __init__(self, images: Images, shift: str) -> None:
        self._images, self._shift, self.shape = images, shift, images.shape

    def __getitem__(self, indices: Tensor) -> Tensor:
        return corrupt(self._images[indices], indices, self._shift)


def _shifted(dataset: Dataset, shift: str) -> Dataset:
    """All images corrupted; at once if they are in memory."""
    images: Images = _Corrupted(dataset.images, shift)
    if isinstance(dataset.images, Tensor):
        parts: Iterable[Tensor] = torch.arange(len(dataset)).split(_TOGETHER)
        images = torch.cat([images[at] for at in parts])
    return replace(dataset, images=images)
