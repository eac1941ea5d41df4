"""On which data sets is batch norm ahead of group norm, on which behind?

The data sets of shaohua0116/Group-Normalization-Tensorflow, with its network and optimizer: four
strided convolutions, Adam at 1e-4, batches of 64. `FULL` has all six, as they are stored and
ImageNet at 224 pixels, 20 epochs. Small setting: the four at hand at 32×32 pixels, of each at most
4,000 training and 2,000 validation images, 4 epochs at 1e-3, three seeds: 24 runs, about 13 minutes
on two cores.

Needs `normlab data mnist fashion_mnist`, CIFAR-10 as data/cifar10/train.npz and test.npz and Tiny
ImageNet under data/tiny-imagenet-10; `FULL` needs `normlab data cifar10 svhn`, and ImageNet.
"""

from normlab import Sweep
from normlab.lab.recipes import TENSORFLOW

TITLE = __doc__.splitlines()[0]
NORMS = ("batch", "group:32")
STORED = ("mnist", "fashion_mnist", "svhn", "cifar10", "tiny_imagenet:data/tiny-imagenet-200")
AT_HAND = (
    "mnist", "fashion_mnist", "npz:data/cifar10", "tiny_imagenet:data/tiny-imagenet-10",
)  # fmt: skip
NOTE = (
    "Small setting: at most 4,000 training images at 32×32 pixels, ten classes of Tiny ImageNet, 4 "
    "epochs, Adam at 1e-3. The repository has no numbers."
)

FULL = Sweep.grid(
    TITLE, TENSORFLOW, note="Full setting: the repository's, 20 epochs.",
    data=STORED, norm=NORMS, seed=range(3),
) + Sweep.grid(
    "", TENSORFLOW.replace(data="imagenet:data/imagenet", image_size=224, augment="resized_crop"),
    norm=NORMS, seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(
    TITLE,
    TENSORFLOW.replace(
        image_size=32, num_train=4000, num_validation=2000, epochs=4, learning_rate=1e-3
    ),
    note=NOTE, data=AT_HAND, norm=NORMS, seed=range(3),
)  # fmt: skip
