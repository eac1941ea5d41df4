"""Do batches of one class teach batch norm to read the class off the batch?

Section 6 of "Rethinking Batch in BatchNorm" (second-hand): where all images of a batch are of one
class, its statistics give the label away in training, and not in evaluation. The sign of it is a
low training error beside a high validation error; group norm, which cannot see the batch, is the
control, as such batches are also worse for SGD itself. `FULL` is ResNet-20 on CIFAR-10, 100 epochs.
Small setting: ResNet-8, 4,000 training and 2,000 validation images of Fashion-MNIST at 14×14
pixels, batches of 8, 8 epochs, five seeds: 20 runs, about 6 minutes on two cores.

Needs `normlab data fashion_mnist`; `FULL` needs `normlab data cifar10`.
"""

from normlab import Experiment, Sweep

TITLE = __doc__.splitlines()[0]
ALL = Experiment(
    data="cifar10", model="cifar_resnet:20", batch_size=8, learning_rate=0.05, epochs=100,
    augment="crop_flip",
)  # fmt: skip
SMALL = Experiment(
    data="fashion_mnist", model="cifar_resnet:8", image_size=14, num_train=4000,
    num_validation=2000, batch_size=8, learning_rate=0.05, epochs=8,
)  # fmt: skip
NOTE = (
    "Small setting: ResNet-8, 4,000 training images of Fashion-MNIST at 14×14 pixels, batches of "
    "8. No published number was at hand."
)
VARIED = {"norm": ("batch", "group"), "order": (None, "class"), "seed": range(5)}

FULL = Sweep.grid(TITLE, ALL, note="Full setting: CIFAR-10, 100 epochs.", **VARIED)
SWEEP = Sweep.grid(TITLE, SMALL, note=NOTE, **VARIED)
