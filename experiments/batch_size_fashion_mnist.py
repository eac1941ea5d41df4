"""How do batch norm and group norm take small batches on Fashion-MNIST?

The batch size of SGD itself is swept, with the learning rate in proportion and the same number of
epochs, as in table 2 of the group norm paper. Small setting: ResNet-8, 4,000 training and 2,000
validation images at 14×14 pixels, 8 epochs, three seeds.

Needs Fashion-MNIST: `normlab data fashion_mnist`.
"""

from normlab import Experiment, Sweep

BASE = Experiment(
    data="fashion_mnist",
    model="cifar_resnet:8",
    image_size=14,
    num_train=4000,
    num_validation=2000,
    epochs=8,
)

NOTE = (
    "Small setting, 14×14 pixels: the last map has 4×4 positions, so even 2 images give batch norm "
    "32 values per channel. The paper's table 2 (ImageNet, ResNet-50, 32 to 2 images a worker: "
    "batch norm 23.6 23.7 24.8 27.3 34.7, group norm 24.1 24.2 24.0 24.2 24.1) is of another scale "
    "and not comparable."
)

SWEEP = Sweep.grid(
    __doc__.splitlines()[0],
    BASE,
    note=NOTE,
    norm=("batch", "group"),
    batch_size=(2, 4, 8, 32),
    seed=(0, 1, 2),
)
