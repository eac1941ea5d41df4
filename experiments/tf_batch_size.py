"""How do batch norm and group norm learn at batch sizes 1 to 32, by the images seen?

The figures of shaohua0116/Group-Normalization-Tensorflow: four strided convolutions, Adam at 1e-4,
gradients clipped at 20. There the learning rate is the same for all batches; here it is once, and
once in proportion, 1e-4 for 32 images. Curves of a report are by samples. Unlike there, evaluation
is on the whole set and without dropout and batch statistics. `FULL` has CIFAR-10 and SVHN, 20
epochs, where a training there goes on until it is stopped. Small setting: 2,000 training and 1,000
validation images of CIFAR-10, batches of 1, 4 and 32, 4 epochs at 1e-3, three seeds: 18 runs, about
18 minutes on two cores.

Needs CIFAR-10 as data/cifar10/train.npz and test.npz; `FULL` needs `normlab data cifar10 svhn`.
"""

from normlab import Sweep
from normlab.lab.recipes import TENSORFLOW

TITLE = __doc__.splitlines()[0]
NORMS = ("batch", "group:32")
NOTE = (
    "Small setting: 2,000 training images of CIFAR-10, 4 epochs, Adam at 1e-3 for all batches. The "
    "repository has curves only, with batch statistics and dropout on at test."
)

FULL = Sweep.grid(
    TITLE, TENSORFLOW, note="Full setting: the repository's, 20 epochs.",
    data=("cifar10", "svhn"), learning_rate_batch=(None, 32), norm=NORMS,
    batch_size=(1, 2, 4, 8, 16, 32), seed=range(3),
)  # fmt: skip
SWEEP = Sweep.grid(
    TITLE,
    TENSORFLOW.replace(
        data="npz:data/cifar10", num_train=2000, num_validation=1000, epochs=4, learning_rate=1e-3
    ),
    note=NOTE, norm=NORMS, batch_size=(1, 4, 32), seed=range(3),
)  # fmt: skip
