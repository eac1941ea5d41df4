"""What does a network lose when its batch norms become group norms, and what does it regain?

Networks are trained with batch norm at batch 32. Then their norms are converted in one of several
ways, and training goes on at a small batch, for one epoch of 1,000 images:

    fresh      new layers
    affine     weight and bias of the batch norm
    function   weight and bias that make up for the groups' moments
    0.5 → 0    the same, statistics shrunk to the source's by 0.5 at first and not at all at the end
    1 → 0      from the frozen batch norm to the plain group norm
    frozen     statistics of the source throughout: batch norm in evaluation
    batch      batch norm itself, not converted

A run records its error before its first step, which is that right after conversion.

Needs Fashion-MNIST and CIFAR-10 under data/.
"""

import itertools

from normlab import Experiment, Sweep

FOLDER = "runs/conversion"  # where `normlab sweep` puts the runs of this file
SEEDS = (0, 1, 2, 3, 4)
BATCH_SIZES = (1, 2, 4, 8)
NETWORKS = (
    Experiment(
        norm="batch", data="fashion_mnist", model="cifar_resnet:8", image_size=14,
        num_train=4000, num_validation=2000, epochs=8,
    ),
    Experiment(
        norm="batch", data="npz:data/cifar10", model="cifar_resnet:8", image_size=16,
        num_train=8000, num_validation=2000, epochs=10, augment="crop_flip",
    ),
    Experiment(
        norm="batch", data="fashion_mnist", model="convnet", image_size=28,
        num_train=4000, num_validation=2000, epochs=8, learning_rate=0.02,
    ),
)  # fmt: skip
WAYS = {
    "fresh": {"norm": "group", "keep": "fresh"},
    "affine": {"norm": "group", "keep": "affine"},
    "function": {"norm": "group"},
    "0.5 → 0": {"norm": "group", "strength": 0.5, "final_strength": 0.0},
    "1 → 0": {"norm": "group", "strength": 1.0, "final_strength": 0.0},
    "frozen": {"norm": "group", "strength": 1.0},
    "batch": {"norm": "batch"},
}

SOURCES = [n.replace(seed=seed) for n, seed in itertools.product(NETWORKS, SEEDS)]
CONVERTED = [
    source.replace(
        source=f"{FOLDER}/{source.name}", num_train=1000, epochs=1, batch_size=size,
        learning_rate=source.learning_rate / 5, augment="none", **way,
    )
    for source, size, way in itertools.product(SOURCES, BATCH_SIZES, WAYS.values())
]  # fmt: skip
SWEEP = Sweep(title=__doc__.splitlines()[0], experiments=(*SOURCES, *CONVERTED))
