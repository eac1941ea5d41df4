"""Which of seven norms for CIFAR-10?

The study of HarmanDotpy/Normalizations-in-Deep-Learning in a small setting. There: ResNet-14,
40,000 training and 10,000 validation images, 100 epochs, batch 128, SGD at 0.1 without momentum or
weight decay, divided by 10 at epochs 75 and 95, crop and flip; one seed. Here: 4,000 training
images at 16×16 pixels, 8 epochs, momentum 0.9 and batch 32 to make up for the fewer steps, five
seeds; the rest is the same: 35 runs, about 11 minutes on two cores. `FULL` is the study's own
setting, three seeds; images enter with variance 1, too, where the study takes off the mean only.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz; `FULL` needs `normlab data cifar10`.
"""

from normlab import Sweep
from normlab.lab.recipes import CIFAR_STUDY

NORMS = ("torch_bn", "batch", "instance", "batch_instance", "layer", "group:size=4", "none")

SMALL = CIFAR_STUDY.replace(
    data="npz:data/cifar10", epochs=8, batch_size=32, momentum=0.9, num_train=4000,
    num_validation=2000, image_size=16,
)  # fmt: skip

NOTE = (
    "Small setting: ResNet-14, 4,000 training and 2,000 validation images of CIFAR-10 at 16×16 "
    "pixels, 8 epochs. "
    "Not comparable with the study's 100 epochs on 40,000 images, whose test accuracies (one seed) "
    "are torch_bn .879, bn .878, bin .881, gn .858, in .847, ln .849, none .849. Group norm has "
    "four channels a group, as there."
)

FULL = Sweep.grid(
    __doc__.splitlines()[0], CIFAR_STUDY, note="Full setting: the study's.", norm=NORMS,
    seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(__doc__.splitlines()[0], SMALL, note=NOTE, seed=range(5), norm=NORMS)
