"""How many images should share batch norm's statistics where the last maps are small?

Section 4 of "Rethinking Batch in BatchNorm" (second-hand): the normalization batch is swept at a
fixed batch of SGD; training error, validation error with batch statistics and with those of the
population are set side by side. Unlike `norm_batch_cifar10.py`, the last map of the small setting
is one pixel, so that 2 images give 2 values per channel. `FULL` is ResNet-50 on ImageNet, 2 to 128
images of an SGD batch of 256. Small setting: ResNet-18 of a quarter of the width on ten classes of
Tiny ImageNet at 32×32 pixels, 2 to 32 images of a batch of 32, three seeds: 18 runs, about 6
minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Experiment, Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY

TITLE = __doc__.splitlines()[0]
SMALL = TINY.replace(model="resnet:18:16", image_size=32)
NOTE = (
    "Small setting: ResNet-18 of a quarter of the width, 4,000 training and 500 validation images "
    "of ten classes of Tiny ImageNet at 32×32 pixels, 10 epochs. No published number was at hand."
)


def sweep(base: Experiment, sizes: tuple[int | None, ...], note: str) -> Sweep:
    batch = Sweep.grid(
        TITLE, base.replace(norm="batch"), note=note, norm_batch_size=sizes, seed=range(3)
    )
    return batch + Sweep.grid("", base, seed=range(3))


FULL = sweep(IMAGENET, (2, 4, 8, 16, 32, 64, 128), IMAGENET_NOTE)
SWEEP = sweep(SMALL, (2, 4, 8, 16, None), NOTE)
