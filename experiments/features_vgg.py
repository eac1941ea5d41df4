"""What do batch norm and group norm do to the responses of a VGG as it learns?

Figure 6 of the group norm paper in a small setting: VGG-16 with a norm after every convolution, or
with none; percentiles 1, 20, 80 and 99 of what conv5_3 gives, before its norm and ReLU, and those
of the pooled features, over the training. There: ImageNet, full width, 100 epochs. Here: 3,000
training and 1,000 validation images of CIFAR-10, a quarter of the width, one linear layer instead
of three, 6 epochs, three seeds. `FULL` has all training images, the full width and 100 epochs.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz, or `data="cifar10"` after
`normlab data cifar10`.
"""

from normlab import Experiment, Sweep

NORMS = ("none", "batch", "group")

PAPER = Experiment(
    data="npz:data/cifar10",
    model="vgg:16",
    epochs=100,
    learning_rate=0.02,  # trains the network without norms, too
    schedule="step",
    augment="crop_flip",
    probe="norm1_1,norm3_3,norm5_3,features",
)
SMALL = PAPER.replace(
    model="vgg:16:16", epochs=6, schedule="cosine", num_train=3000, num_validation=1000
)

NOTE = (
    "Small setting: VGG-16 with 16 channels in its first stage, 3,000 training images of CIFAR-10, "
    "6 epochs. Not comparable with the paper's validation errors (ImageNet, 100 epochs): none "
    "29.2, batch norm 28.0, group norm 27.6. In its figure 6 batch norm and group norm behave "
    "alike, and unlike no norm."
)

FULL = Sweep.grid(__doc__.splitlines()[0], PAPER, note=NOTE, norm=NORMS, seed=(0, 1, 2))
SWEEP = Sweep.grid(__doc__.splitlines()[0], SMALL, note=NOTE, norm=NORMS, seed=(0, 1, 2))
