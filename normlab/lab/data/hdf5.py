"""Own images in HDF5: hdf5:FILE, in one of two layouts.

Arrays: `images`, uint8 (N, H, W, C), (N, C, H, W) or (N, H, W), and `labels`, whole numbers (N,),
at the top (all training images) or in groups train, validation and test. An attribute `classes` of
the file may name the classes.

Examples: one group per example with `image`, uint8 (H, W, C), and `label`, one-hot (K,), all
training images; a file id.txt beside it may list the groups to use, one a line.

Only data in the file itself is read: no links, no external storage, no filters from plugins. The
HDF5 library is not made for hostile files; take them from people you trust.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from normlab.lab.data.arrays import (
    IN_MEMORY,
    channel_axis,
    channels_first,
    check_claim,
    check_image_type,
    check_labels,
    class_names,
)
from normlab.lab.data.dataset import DataError, Dataset, Images

if TYPE_CHECKING:
    import h5py

_MAX_CHUNK = 2**30  # bytes
_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "offset",
    32000: "lzf",
}


def load(what: str, split: str) -> Dataset | None:
    """The images of one split; more than 1 GiB of them stay in the file.

    Raises:
        DataError: no such file, not an HDF5 file, or not in one of the layouts.
    """
    if not what:
        raise DataError("hdf5 needs a file: hdf5:FILE")
    path = Path(what)
    with _open(path) as file:
        try:
            return _read_layout(file, split, path)
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); copy it again") from error


def _read_layout(file: "h5py.File", split: str, path: Path) -> Dataset | None:
    if _has(file, "images") or _has(file, "labels"):
        return _from_arrays(file, "", path) if split == "train" else None
    if _has(file, "train"):
        return _from_arrays(file, f"{split}/", path) if _has(file, split) else None
    first = next(iter(file), None)
    if first is None or not _has(_group(file, first, path), "image"):
        raise _missing(file, "images", path)
    return _from_examples(file, path) if split == "train" else None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError('hdf5 data needs h5py: pip install "normlab[lab]"') from None
    return h5py


def _open(path: Path) -> "h5py.File":
    h5py = _h5py()
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected an HDF5 file: hdf5:FILE")
    try:
        if not h5py.is_hdf5(path):
            with path.open("rb") as stream:
                start = stream.read(8)
            raise DataError(f"{path} is not an HDF5 file (first bytes {start!r}); check the path")
        return h5py.File(path, "r")
    except OSError as error:
        causes = {
            "truncated": "it is cut short; copy it again",
            "unable to lock": "another program has it open for writing; close it there first",
        }
        text = str(error)
        advice = next((said for sign, said in causes.items() if sign in text), text)
        raise DataError(f"{path} cannot be opened as HDF5: {advice}") from error


def _from_arrays(file: "h5py.File", prefix: str, path: Path) -> Dataset:
    """`images` and `labels` below a prefix, "" or "train/"."""
    names = _class_attribute(file)
    train_prefix = "train/" if prefix else ""
    train_labels = _labels(file, f"{train_prefix}labels", path)
    classes = class_names(names, train_labels, str(path))
    labels = train_labels if prefix == train_prefix else _labels(file, f"{prefix}labels", path)
    data = _array(file, f"{prefix}images", path)
    where = f"{path}: {prefix}images"
    check_image_type(data.dtype, where)
    channel_axis(data.shape, where)
    images: Images = _Stored(path, f"{prefix}images", data.shape)
    checked = check_labels(labels, data.shape[0], len(classes), f"{path}: {prefix}labels")
    if math.prod(data.shape) <= IN_MEMORY:
        images = channels_first(_read(data, ..., path), where)
    return Dataset(images, checked, classes)


def _from_examples(file: "h5py.File", path: Path) -> Dataset:
    """One group per example, in the order of id.txt or of the names."""
    ids = _ids(file, path)
    first = _array(file, f"{ids[0]}/image", path)
    classes_wanted = _array(file, f"{ids[0]}/label", path).shape
    if len(classes_wanted) != 1:
        raise DataError(f"{path}: {ids[0]}/label has shape {classes_wanted}, expected one-hot (K,)")
    check_image_type(first.dtype, f"{path}: {ids[0]}/image")
    check_claim((len(ids), *first.shape), 1, path.stat().st_size, str(path))
    images = np.empty((len(ids), *first.shape), np.uint8)
    labels = np.empty(len(ids), np.int64)
    for row, name in enumerate(ids):
        image, label = _array(file, f"{name}/image", path), _array(file, f"{name}/label", path)
        check_image_type(image.dtype, f"{path}: {name}/image")
        if image.shape != first.shape or label.shape != classes_wanted:
            raise DataError(
                f"{path}: {name} has an image {image.shape} and a label {label.shape}, but "
                f"{ids[0]} {first.shape} and {classes_wanted}; all must have one shape"
            )
        images[row] = _read(image, ..., path)
        one_hot = np.asarray(_read(label, ..., path))
        if np.count_nonzero(one_hot) != 1 or one_hot.max() != 1:
            raise DataError(
                f"{path}: {name}/label is not one-hot: {_few(one_hot)}; expected a single 1"
            )
        labels[row] = one_hot.argmax()
    classes = _class_attribute(file) or tuple(str(k) for k in range(classes_wanted[0]))
    tensor = channels_first(images, f"{path}: image of all examples")
    return Dataset(tensor, check_labels(labels, len(ids), len(classes), str(path)), classes)


def _ids(file: "h5py.File", path: Path) -> list[str]:
    listing = path.with_name("id.txt")
    if not listing.is_file():
        return sorted(file)
    ids = listing.read_text(encoding="utf-8", errors="replace").split()
    if not ids:
        raise DataError(f"{listing} is empty; expected the name of one example a line")
    for line, name in enumerate(ids, start=1):
        if not _has(file, name):
            raise DataError(f"{listing}:{line}: {path.name} has no example {name!r}")
    return ids


def _class_attribute(file: "h5py.File") -> tuple[str, ...] | None:
    names = file.attrs.get("classes")
    if names is None:
        return None
    return tuple(n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names)


def _labels(file: "h5py.File", name: str, path: Path) -> np.ndarray:
    data = _array(file, name, path)
    if data.dtype.kind in "iuf" and math.prod(data.shape) * data.dtype.itemsize <= IN_MEMORY:
        return np.asarray(_read(data, ..., path))
    raise DataError(f"{path}: {name} are {data.dtype} {data.shape}, expected whole numbers (N,)")


def _group(file: "h5py.File", name: str, path: Path) -> "h5py.Group":
    node = _member(file, name, path)
    if not isinstance(node, _h5py().Group):
        raise _missing(file, "images", path)
    return node


def _array(file: "h5py.File", name: str, path: Path) -> "h5py.Dataset":
    """An array that can be read without leaving the file; every step to it is checked first."""
    node: Any = file
    for step in name.split("/"):
        if not isinstance(node, _h5py().Group):
            raise DataError(f"{path}: {node.name} is an array, expected a group with {step!r}")
        node = _member(node, step, path)
    where = f"{path}: {name}"
    if not isinstance(node, _h5py().Dataset):
        raise DataError(f"{where} is a group, expected an array; {_keys(node)}")
    if node.external or node.is_virtual:
        raise DataError(
            f"{where} keeps its values in other files, which are not read; copy it into one file"
        )
    properties = node.id.get_create_plist()
    for index in range(properties.get_nfilters()):
        number = properties.get_filter(index)[0]
        if number not in _FILTERS:
            raise DataError(
                f"{where} is compressed with HDF5 filter {number}, which needs a plugin; plugins "
                "are not loaded, save it with compression='gzip'"
            )
    item = node.dtype.itemsize
    check_claim(node.shape or (), item, node.id.get_storage_size(), where)
    if node.chunks and math.prod(node.chunks) * item > _MAX_CHUNK:
        raise DataError(
            f"{where} is stored in chunks of {math.prod(node.chunks) * item:,} bytes; "
            "save it in smaller ones"
        )
    return node


def _has(group: "h5py.Group", name: str) -> bool:
    # `name in group` would follow a link out of the file.
    return bool(name) and "/" not in name and group.id.links.exists(name.encode())


def _member(group: "h5py.Group", name: str, path: Path) -> Any:
    if not _has(group, name):
        raise _missing(group, name, path)
    links = group.id.links
    if links.get_info(name.encode()).type != _h5py().h5l.TYPE_HARD:
        raise DataError(
            f"{path}: {name!r} in {group.name} is a link to {links.get_val(name.encode())}; links "
            "are not followed, copy the array itself into the file"
        )
    return group[name]


def _missing(group: "h5py.Group", name: str, path: Path) -> DataError:
    return DataError(f"{path}: no {name!r} in {group.name}; {_keys(group)}")


def _keys(group: "h5py.Group") -> str:
    names = list(itertools.islice(group, 8))
    more = ", …" if len(group) > len(names) else ""
    return f"there are {', '.join(map(repr, names))}{more}" if names else "it is empty"


def _read(data: "h5py.Dataset", part: Any, path: Path) -> Any:
    try:
        return data[part]
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: {data.name} is damaged ({error}); copy the file again") from error


def _few(values: np.ndarray) -> str:
    return np.array2string(values.ravel(), threshold=6, edgeitems=3)


class _Stored:
    """Images read from the file batch by batch; it is opened each time, so forks may share this."""

    def __init__(self, path: Path, name: str, stored_shape: Sequence[int]) -> None:
        self._path, self._name = path, name
        self._axis = channel_axis(stored_shape, str(path))
        n, *rest = stored_shape
        if self._axis is None:
            rest = [1, *rest]
        if self._axis == 3:
            rest = [rest[2], rest[0], rest[1]]
        self.shape = torch.Size((n, *rest))

    def __getitem__(self, indices: Tensor) -> Tensor:
        with _open(self._path) as file:
            data = _array(file, self._name, self._path)
            rows = [_read(data, int(i), self._path) for i in indices]
        images = torch.from_numpy(np.stack(rows))
        if self._axis == 3:
            images = images.permute(0, 3, 1, 2)
        return images.reshape(-1, *self.shape[1:])
