"""What do batch norm and group norm do to the responses of a VGG as it learns?

Figure 6 of the group norm paper: VGG-16 with a norm after every convolution, or with none;
percentiles 1, 20, 80 and 99 of what conv5_3 gives, before its norm and ReLU, and those of the
pooled features, over the training. `FULL` is the paper's setting on ImageNet, with the three large
linear layers; of its learning rate nothing is said, and 0.1 does not train the network without
norms, so that it is VGG's own, 0.01 for 256 images; three seeds, where the paper has one run. Small
setting: 3,000 training and 1,000 validation images of CIFAR-10, a quarter of the width, one linear
layer instead of three, 6 epochs, three seeds: 9 runs, about 5 minutes on two cores.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz, or `data="cifar10"` after
`normlab data cifar10`; `FULL` needs ImageNet under data/imagenet.
"""

from normlab import Experiment, Sweep
from normlab.lab.recipes import IMAGENET, IMAGENET_NOTE, by_workers

PAPER = IMAGENET.replace(
    model="vgg:16:64:4096", learning_rate=0.01, zero_init=False, probe="norm5_3,features"
)
SMALL = Experiment(
    data="npz:data/cifar10",
    model="vgg:16:16",
    epochs=6,
    learning_rate=0.02,  # trains the network without norms, too
    augment="crop_flip",
    num_train=3000,
    num_validation=1000,
    probe="norm1_1,norm3_3,norm5_3,features",
)

NOTE = (
    "Small setting: VGG-16 with 16 channels in its first stage, 3,000 training images of CIFAR-10, "
    "6 epochs. Not comparable with the paper's validation errors (ImageNet, 100 epochs): none "
    "29.2, batch norm 28.0, group norm 27.6. In its figure 6 batch norm and group norm behave "
    "alike, and unlike no norm."
)

FULL = by_workers(
    __doc__.splitlines()[0], PAPER, (32,), note=IMAGENET_NOTE,
    norm=("none", "batch", "group:32"), seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(
    __doc__.splitlines()[0], SMALL, note=NOTE, norm=("none", "batch", "group"), seed=range(3)
)
