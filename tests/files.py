"""Small data files that several tests read, and a look at a folder before and after."""

import hashlib
import io
import tarfile

import numpy as np

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)  # N, H, W, C
LABELS = np.arange(10) % 4


def snapshot(top):
    """The hash of every file below a folder."""
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(top.rglob("*"))
        if p.is_file()
    }


def write_hdf5(path, images=IMAGES, labels=LABELS, prefix="", **options):
    import h5py

    with h5py.File(path, "a") as file:
        if images is not None:
            file.create_dataset(f"{prefix}images", data=images, **options)
        if labels is not None:
            file.create_dataset(f"{prefix}labels", data=labels)
    return path


def write_npz(path, images=IMAGES, labels=LABELS, **more):
    np.savez(path, images=images, labels=labels, **more)
    return path


def sha256_of(content):
    return hashlib.sha256(content).hexdigest()


def tar_gz(entries):
    """A .tar.gz of (name, content) or TarInfo entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return out.getvalue()


def tree(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
