"""Small data files that several tests read, and a look at a folder before and after."""

import hashlib

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
