"""Predict the classes of images in a file: pixels in CSV, or a folder of pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from normlab.lab import evaluate
from normlab.lab.data import folder, pixels
from normlab.lab.data.dataset import DataError
from normlab.lab.data.views import PLACES
from normlab.lab.runs import Run
from normlab.lab.tasks.classification import Input


def predict_file(
    run: Run,
    source: Path,
    out: Path,
    which: str,
    full: bool,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the predicted class of every image in a CSV or a folder; returns how many.

    Args:
        source: CSV without header, C·H·W integers a line, channel first; or a folder of pictures,
            resized to what the network was trained on.
        out: CSV to write. One class index a line, or where `full` a header and image, index, class
            and probability.

    Raises:
        DataError: the source does not hold such images.
        CheckpointError: the run has no usable weights.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give a CSV file or a folder of images")
    model, input = evaluate.load_model(run, which, device)
    if source.is_dir():
        files = folder.list_images(source)
        names: Sequence[str] = [str(f.relative_to(source)) for f in files]
        images: evaluate.Images = _Pictures(files, input)
    else:
        images = pixels.read_csv(source, input.shape)
        names = range(len(images))  # type: ignore[assignment]
    probabilities = evaluate.predict(model, images, input, device, progress)
    best, indices = probabilities.max(1)
    if full:
        pixels.write_csv(
            out,
            (
                (name, index, input.classes[index], f"{probability:.6f}")
                for name, index, probability in zip(names, indices.tolist(), best.tolist())
            ),
            header=("image", "index", "class", "probability"),
        )
    else:
        pixels.write_csv(out, ((index,) for index in indices.tolist()))
    return len(indices)


class _Pictures:
    """The pictures of a folder in the shape the network was trained on, decoded when asked for."""

    def __init__(self, files: Sequence[Path], input: Input) -> None:
        self._files, self._input = files, input
        self.shape = torch.Size((len(files), *input.shape))

    def __getitem__(self, indices: Tensor) -> Tensor:
        channels, height, width = self._input.shape
        place = PLACES[self._input.view]
        files = [self._files[i] for i in indices.tolist()]
        decoded = torch.stack([folder.decode(file, (height, width), place) for file in files])
        if channels == 1:  # ITU-R 601 luma, as Pillow converts
            luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
            decoded = (decoded * luma).sum(1, keepdim=True).round().to(torch.uint8)
        return decoded
