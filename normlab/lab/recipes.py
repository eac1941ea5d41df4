"""Settings of papers that several experiments share, and small ones that stand for them.

Imports neither torch nor data, as the command line reads experiments with it.
"""

from collections.abc import Iterable
from typing import Any

from normlab.lab.experiment import Experiment, Sweep

WORKERS = 8  # of the group norm paper; statistics are those of a worker's images

IMAGENET = Experiment(
    data="imagenet:data/imagenet",
    model="resnet:50",
    norm="group:32",
    batch_size=256,
    epochs=100,
    learning_rate=0.1,
    learning_rate_batch=256,  # 32 images a worker
    momentum=0.9,
    weight_decay=1e-4,  # of all weights, those of norms too
    schedule="step",
    milestones=(0.3, 0.6, 0.9),
    warmup=0.0,
    zero_init=True,
    augment="imagenet",
    image_size=224,
)
"""Wu and He 2018, section 4.1. Results there are medians of the last five epochs: `--last 5`."""

IMAGENET_NOTE = "Full setting: ImageNet, as in the group norm paper."

TINY = IMAGENET.replace(
    data="tiny_imagenet:data/tiny-imagenet-10", model="resnet:50:16", norm="group:8",
    batch_size=32, learning_rate_batch=64, epochs=10, augment="crop_flip", image_size=40,
)  # fmt: skip
"""IMAGENET in minutes: ten classes, a quarter of the width, a last map of 2×2.

In ten epochs of 62 steps, batches of 64, group norm has hardly begun to learn; of 125 it has.
"""

TINY_NOTE = (
    "Small setting: 4,000 training and 500 validation images of ten classes of Tiny ImageNet at "
    "40×40 pixels, a quarter of the width, 10 epochs, learning rate 0.1 for 64 images. With 500 "
    "images one point of error is 5 images. Not comparable with the paper's ImageNet."
)

CIFAR_STUDY = Experiment(
    data="cifar10",  # 50,000 images, of which 0.2 are held out
    model="cifar_resnet:14",
    epochs=100,
    batch_size=128,
    learning_rate=0.1,
    learning_rate_batch=128,
    momentum=0.0,
    weight_decay=0.0,
    schedule="step",
    milestones=(0.75, 0.95),
    warmup=0.0,
    augment="crop_flip",
    probe="features",
)
"""HarmanDotpy/Normalizations-in-Deep-Learning; its group norm has 4 channels a group."""

TENSORFLOW = Experiment(
    data="cifar10",
    model="convnet",
    norm="group:32",
    batch_size=64,
    epochs=20,
    optimizer="adam",
    learning_rate=1e-4,
    learning_rate_batch=None,
    weight_decay=0.0,
    max_gradient_norm=20.0,
    schedule="constant",
    warmup=0.0,
)
"""shaohua0116/Group-Normalization-Tensorflow; there a training goes on until it is stopped."""


def by_workers(
    title: str, base: Experiment, images: Iterable[int], *, note: str = "", **fields: Any
) -> Sweep:
    """A grid for each number of images a worker: the batch of SGD is WORKERS times as many.

    >>> found = by_workers("Which?", IMAGENET, (32, 2), norm=("batch",)).experiments
    >>> [(e.batch_size, e.norm_batch_size) for e in found]
    [(256, 32), (16, 2)]
    """
    experiments = [
        experiment
        for size in images
        for experiment in Sweep.grid(
            title, base.replace(batch_size=WORKERS * size, norm_batch_size=size), **fields
        ).experiments
    ]
    return Sweep(title=title, note=note, experiments=tuple(experiments))
