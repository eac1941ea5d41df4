"""When do running averages differ from the statistics of the population, and what mends it?

Section 3 of "Rethinking Batch in BatchNorm" (second-hand): small and large batches of SGD, where
the large ones leave few steps to average over. A trained network is judged with its running
averages, and with statistics re-estimated from 1 to 10,000 training images. `FULL` is ResNet-20 on
CIFAR-10, batches of 64 and 2,048, 100 epochs. Small setting: ResNet-8, 8,000 training and 2,000
validation images at 16×16 pixels, batches of 64 and 1,024, 8 epochs, five seeds: 10 runs, about
5 minutes on two cores.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz; `FULL` needs `normlab data cifar10`.
"""

from normlab import Experiment, Sweep

TITLE = __doc__.splitlines()[0]
ALL = Experiment(
    data="cifar10", model="cifar_resnet:20", norm="batch", epochs=100, augment="crop_flip",
    learning_rate_batch=128, shift="none",
)  # fmt: skip
SMALL = ALL.replace(
    data="npz:data/cifar10", model="cifar_resnet:8", image_size=16, num_train=8000,
    num_validation=2000, epochs=8,
)  # fmt: skip
NOTE = (
    "Small setting: ResNet-8, 8,000 training images of CIFAR-10 at 16×16 pixels. At batch 1,024 an "
    "epoch has 7 steps. No published number was at hand to compare with."
)

FULL = Sweep.grid(
    TITLE, ALL, note="Full setting: ResNet-20, CIFAR-10, 100 epochs.", batch_size=(64, 2048),
    seed=range(5),
)  # fmt: skip
SWEEP = Sweep.grid(TITLE, SMALL, note=NOTE, batch_size=(64, 1024), seed=range(5))
