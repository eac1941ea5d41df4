"""Does freezing the statistics for the end of the training help where few images share them?

Section 4 of "Rethinking Batch in BatchNorm" (second-hand): in the last fifth of the training batch
norms keep to their running statistics, so that what is trained is what is judged. `FULL` is
ResNet-50 on ImageNet, 2 to 32 images of an SGD batch of 256. Small setting: ResNet-18 of a quarter
of the width on ten classes of Tiny ImageNet at 32×32 pixels, where the last map is one pixel; 2, 4
and 32 images of a batch of 32, three seeds: 18 runs, about 6 minutes on two cores.

Needs ImageNet under data/imagenet, or Tiny ImageNet under data/tiny-imagenet-10.
"""

from normlab import Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, TINY

TITLE = __doc__.splitlines()[0]
FROZEN = (None, 0.8)
SMALL = TINY.replace(norm="batch", model="resnet:18:16", image_size=32)
NOTE = (
    "Small setting: ResNet-18 of a quarter of the width, 4,000 training and 500 validation images "
    "of ten classes of Tiny ImageNet at 32×32 pixels, 10 epochs, the last 2 frozen. No published "
    "number was at hand."
)

FULL = Sweep.grid(
    TITLE, IMAGENET.replace(norm="batch"), note=IMAGENET_NOTE, freeze_statistics=FROZEN,
    norm_batch_size=(2, 4, 8, 32), seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(
    TITLE, SMALL, note=NOTE, freeze_statistics=FROZEN, norm_batch_size=(2, 4, None), seed=range(3)
)
