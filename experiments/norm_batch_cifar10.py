"""How many images should share batch norm's statistics when the batch of SGD stays the same?

The normalization batch is swept from 1 to 32 images at an SGD batch of 32, so that nothing but the
statistics changes: the number of steps and the learning rate are the same throughout. Group norm,
which does not know the batch, is the reference. Small setting: ResNet-8, 4,000 training and 2,000
validation images of CIFAR-10 at 16×16 pixels, 8 epochs, five seeds. `FULL` is ResNet-20 on all
images at 32×32 pixels, 100 epochs.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz, or `data="cifar10"` after
`normlab data cifar10`.
"""

from normlab import Experiment, Sweep

ALL = Experiment(
    data="npz:data/cifar10", model="cifar_resnet:20", epochs=100, augment="crop_flip",
    schedule="step", norm="batch",
)  # fmt: skip
SMALL = ALL.replace(
    model="cifar_resnet:8", image_size=16, num_train=4000, num_validation=2000, epochs=8,
    schedule="cosine",
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, None)  # images; None is all 32

NOTE = (
    "Batch norm's normalization batch at a fixed SGD batch of 32; with 1 image it trains as "
    "instance norm, and is evaluated with running statistics, which instance norm has not."
)


def sweep(base: Experiment, note: str) -> Sweep:
    batch = Sweep.grid("", base, norm_batch_size=SIZES, seed=range(5))
    group = Sweep.grid("", base.replace(norm="group"), seed=range(5))
    title = __doc__.splitlines()[0]
    return Sweep(title=title, note=note, experiments=(*batch.experiments, *group.experiments))


FULL = sweep(ALL, f"Full setting: all images of CIFAR-10, 100 epochs. {NOTE}")
SWEEP = sweep(SMALL, NOTE)
