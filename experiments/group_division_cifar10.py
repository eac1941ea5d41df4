"""Into how many groups should group norm divide the channels on CIFAR-10?

Table 3 of the group norm paper: once by the number of groups, from layer norm (one) on, once by
the channels in a group, down to instance norm (one). Small setting: ResNet-8 with 16, 32 and 64
channels, 4,000 training and 2,000 validation images at 16×16 pixels, 8 epochs, five seeds. `FULL`
is ResNet-20 on all images at 32×32 pixels, 100 epochs.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz, or `data="cifar10"` after
`normlab data cifar10`.
"""

from normlab import Experiment, Sweep

NORMS = (
    "layer", "group:2", "group:4", "group:8", "group:16",
    "group:size=16", "group:size=8", "group:size=4", "group:size=2", "instance",
)  # fmt: skip
ALL = Experiment(
    data="npz:data/cifar10", model="cifar_resnet:20", epochs=100, augment="crop_flip",
    schedule="step",
)  # fmt: skip
SMALL = ALL.replace(
    model="cifar_resnet:8", image_size=16, num_train=4000, num_validation=2000, epochs=8,
    schedule="cosine",
)  # fmt: skip

NOTE = (
    "Small setting, up to 64 channels. Not comparable with the paper's table 3 (ImageNet, "
    "ResNet-50): 64 to 1 groups 24.6 24.1 24.6 24.4 24.6 24.7 25.3, 64 to 1 channels a group "
    "24.4 24.5 24.2 24.3 24.8 25.6 28.4."
)

FULL = Sweep.grid(__doc__.splitlines()[0], ALL, norm=NORMS, seed=range(5))
SWEEP = Sweep.grid(__doc__.splitlines()[0], SMALL, note=NOTE, norm=NORMS, seed=range(5))
