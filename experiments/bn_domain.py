"""From how many images of a shifted domain does batch norm recover, and does group norm have to?

Section 5 of "Rethinking Batch in BatchNorm" (second-hand), with shifts of our own: noise, blur, low
contrast, darkness (`normlab.lab.shift`). Trained networks are judged on shifted validation images
as they are, and with statistics re-estimated from 1 to 1,000 shifted images that are not judged.
Group norm, which has no statistics to re-estimate, is the control. `FULL` is ResNet-50 on ImageNet.
Small setting: ResNet-8, 8,000 training and 2,000 validation images of CIFAR-10 at 16×16 pixels, 10
epochs, five seeds: 10 runs, about 6 minutes on two cores.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz; `FULL` needs ImageNet under data/imagenet.
"""

from normlab import Experiment, Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE

TITLE = __doc__.splitlines()[0]
SMALL = Experiment(
    data="npz:data/cifar10", model="cifar_resnet:8", image_size=16, num_train=8000,
    num_validation=2000, epochs=10, augment="crop_flip", shift="all",
)  # fmt: skip
NOTE = (
    "Small setting: ResNet-8, 8,000 training images of CIFAR-10 at 16×16 pixels; errors under a "
    "shift are those of 1,000 validation images. No published number was at hand."
)

FULL = Sweep.grid(
    TITLE, IMAGENET.replace(shift="all"), note=IMAGENET_NOTE, norm=("batch", "group:32"),
    seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(TITLE, SMALL, note=NOTE, norm=("batch", "group"), seed=range(5))
