"""The five published sets: the files they consist of, pinned hashes, and how they are read."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from normlab.lab.data.dataset import DataError, Dataset


@dataclass(frozen=True)
class Archive:
    """A file as it is published.

    Args:
        path: where it lies below the data folder.
        urls: where it can be fetched, tried in order; https only.
        size: bytes.
        sha256: of the file.
        members: path below the data folder and "algorithm:hash" of each file that is read.
    """

    path: str
    urls: tuple[str, ...]
    size: int
    sha256: str
    members: dict[str, str]


def data_root(what: str = "") -> Path:
    """The folder with all published sets: the one named, $NORMLAB_DATA, or ./data."""
    return Path(what or os.environ.get("NORMLAB_DATA") or "data")


def matches(file: Path, digest: str) -> bool:
    """Whether the file has the hash, given as "algorithm:hexadecimal"."""
    algorithm, _, expected = digest.partition(":")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest() == expected


def read(name: str, what: str, split: str) -> Dataset | None:
    """Training or test images of a published set, as uint8 (N, C, H, W).

    Raises:
        DataError: a file is absent or not the published one.
    """
    if split == "validation":
        return None
    root = data_root(what)
    _check_files(name, root)
    try:
        from torchvision import datasets
    except ImportError:
        raise ImportError(f'{name} needs torchvision: pip install "normlab[lab]"') from None
    kind, selectors = _READERS[name]
    try:
        source: Any = getattr(datasets, kind)(root, **selectors[split], download=False)
    except ImportError:
        raise ImportError(f"{name} needs scipy to read .mat files: pip install scipy") from None
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name} in {root}/: {error}; remove its files and fetch it with: normlab data {name}"
        ) from error
    images = torch.as_tensor(source.data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(source.labels if name == "svhn" else source.targets)
    classes = getattr(source, "classes", None) or [str(k) for k in range(10)]
    return Dataset(images.contiguous(), labels.to(torch.int64), tuple(classes))


def _check_files(name: str, root: Path) -> None:
    for archive in SETS[name]:
        for path, digest in archive.members.items():
            file = root / path
            if not file.is_file():
                raise DataError(f"{name} is not in {root}/; fetch it with: normlab data {name}")
            if not matches(file, digest):
                raise DataError(
                    f"{file} is not the published file, its hash is not {digest}; "
                    f"remove it and fetch it with: normlab data {name}"
                )


# name: (class in torchvision.datasets, its arguments for each split)
_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_READERS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "mnist": ("MNIST", _BY_TRAIN),
    "fashion_mnist": ("FashionMNIST", _BY_TRAIN),
    "cifar10": ("CIFAR10", _BY_TRAIN),
    "cifar100": ("CIFAR100", _BY_TRAIN),
    "svhn": ("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
}


def _gz(folder: str, hosts: tuple[str, ...], name: str, size: int, sha: str, raw: str) -> Archive:
    path = f"{folder}/raw/{name}-ubyte"
    urls = tuple(f"{host}/{name}-ubyte.gz" for host in hosts)
    return Archive(f"{path}.gz", urls, size, sha, {path: f"sha256:{raw}"})


def _tar(name: str, size: int, sha256: str, folder: str, members: dict[str, str]) -> Archive:
    digests = {f"{folder}/{member}": f"md5:{md5}" for member, md5 in members.items()}
    return Archive(name, (f"https://www.cs.toronto.edu/~kriz/{name}",), size, sha256, digests)


def _mat(name: str, size: int, sha256: str) -> Archive:
    url = f"https://ufldl.stanford.edu/housenumbers/{name}"
    return Archive(name, (url,), size, sha256, {name: f"sha256:{sha256}"})


_MNIST = "MNIST", ("https://ossci-datasets.s3.amazonaws.com/mnist",)
_FASHION = (
    "FashionMNIST",
    (
        # torchvision's own address, a bucket's website, has no https
        "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
)

SETS: dict[str, tuple[Archive, ...]] = {
    "mnist": (
        _gz(
            *_MNIST,
            "train-images-idx3",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _gz(
            *_MNIST,
            "train-labels-idx1",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        _gz(
            *_MNIST,
            "t10k-images-idx3",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _gz(
            *_MNIST,
            "t10k-labels-idx1",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": (
        _gz(
            *_FASHION,
            "train-images-idx3",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        _gz(
            *_FASHION,
            "train-labels-idx1",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        _gz(
            *_FASHION,
            "t10k-images-idx3",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        _gz(
            *_FASHION,
            "t10k-labels-idx1",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    "cifar10": (
        _tar(
            "cifar-10-python.tar.gz",
            170_498_071,
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "cifar-10-batches-py",
            {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
    ),
    "cifar100": (
        _tar(
            "cifar-100-python.tar.gz",
            169_001_437,
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            "cifar-100-python",
            {
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
        ),
    ),
    "svhn": (  # the "extra" images, 531,131 easier ones, belong to neither split
        _mat(
            "train_32x32.mat",
            182_040_794,
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        _mat(
            "test_32x32.mat",
            64_275_384,
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
}
