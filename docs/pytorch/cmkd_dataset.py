#!/usr/bin/env python3
"""A PyTorch Dataset over a CMKD cache: replayed pixels, label, teacher logits, seed.

    from cmkd_dataset import CachedDataset
    data = CachedDataset("teacher.h5", "/data/cifar100")      # numpy and h5py; torch only if you use its DataLoader
    for epoch in range(epochs):
        data.set_view(epoch % data.views)                     # one view an epoch, as cmkd-train does
        for pixels, label, logits, seed in DataLoader(data, batch_size=64, shuffle=True): ...

The pixels of a view follow from its seed and the policy alone: replay() below is the whole rule. So a teacher in any framework can
fill a cache too: draw seeds, replay, run it, save logits, labels and seeds as .npy, then `cmkd-cache import`.

h5py needs our zstd filter once:  export HDF5_PLUGIN_PATH=PREFIX/lib/cmkd   (or: pip install hdf5plugin; import hdf5plugin)
Not for: speed. cmkd-train and include/cmkd/cache.h stream the same rows many times faster.
"""
import gzip
import json
import os
import struct
import sys

import h5py
import numpy as np

VARIANTS = {"none": 1, "flip": 2, "crop": 81, "crop+flip": 162}


def replay(policy, seed, image):
    """(h, w, c) uint8 -> the same shape, moved as `seed` says: zero padding 4, crop to the old size, then flip."""
    variant = int(seed) % VARIANTS[policy]
    flip = dy = dx = 0
    if "flip" in policy:
        variant, flip = divmod(variant, 2)
    if "crop" in policy:
        dy, dx = divmod(variant, 9)
        h, w = image.shape[:2]
        image = np.pad(image, ((4, 4), (4, 4), (0, 0)))[dy:dy + h, dx:dx + w]
    return np.ascontiguousarray(image[:, ::-1] if flip else image)


def read_idx(path):
    for name in (path, path + ".gz"):
        if os.path.exists(name):
            data = (gzip.open if name.endswith(".gz") else open)(name, "rb").read()
            dims = data[3]
            shape = struct.unpack(">%dI" % dims, data[4:4 + 4 * dims])
            return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    sys.exit(f"{path}: not found")


def read_images(dataset, folder, split):
    """(n, h, w, c) uint8 and (n,) labels of one of the data sets that cmkd knows."""
    if dataset in ("fashion-mnist", "mnist"):
        stem = {"train": "train", "test": "t10k"}[split]
        images = read_idx(os.path.join(folder, stem + "-images-idx3-ubyte"))
        return images[..., None], read_idx(os.path.join(folder, stem + "-labels-idx1-ubyte")).astype(np.int32)
    label_bytes, names = {
        ("cifar100", "train"): (2, ["train.bin"]), ("cifar100", "test"): (2, ["test.bin"]),
        ("cifar10", "train"): (1, ["data_batch_%d.bin" % i for i in range(1, 6)]), ("cifar10", "test"): (1, ["test_batch.bin"]),
    }[dataset, split]
    raw = np.concatenate([np.fromfile(os.path.join(folder, n), np.uint8) for n in names]).reshape(-1, label_bytes + 3072)
    return raw[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), raw[:, label_bytes - 1].astype(np.int32)


class CachedDataset:
    """Length n; item i is (pixels uint8 (h, w, c), label, logits float32 (classes,), the seed's bits). One view at a time: set_view."""

    def __init__(self, cache, folder, view=0):
        self.master = h5py.File(cache, "r")
        self.files = [self.master[k] for k in sorted(self.master) if k.startswith("shard-")]  # a missing shard fails here, loudly
        attributes = {k: (v.decode() if isinstance(v, bytes) else v) for k, v in self.master.attrs.items()}
        self.policy, self.codec = str(attributes["augment"]), str(attributes["codec"])
        self.ids = np.concatenate([f["sample_id"][:] for f in self.files])
        self.labels = np.concatenate([f["label"][:] for f in self.files])
        self.views = self.files[0]["logits"].shape[1]
        self.images, labels = read_images(str(attributes["dataset"]), folder, str(attributes["split"]))
        if not np.array_equal(labels[self.ids], self.labels):
            sys.exit(f"{cache}: its labels are not those of {folder}; give the folder that it was built from")
        self.set_view(view)

    def set_view(self, view):
        """Reads one view of all samples: n * classes * 4 bytes of memory."""
        self.logits = np.concatenate([self.decode(f, view) for f in self.files])
        self.seeds = np.concatenate([f["seeds"][:, view] for f in self.files])

    def decode(self, file, view):
        stored = file["logits"][:, view]
        if self.codec != "u8sqrt":
            return stored.astype(np.float32)
        high, span = (file[k][:, view].astype(np.float32)[:, None] for k in ("row_max", "row_range"))
        return high - span / np.float32(65025) * np.square(stored.astype(np.float32))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        pixels = replay(self.policy, self.seeds[i], self.images[self.ids[i]])
        return pixels, int(self.labels[i]), self.logits[i], self.seeds[i].view(np.int64)  # torch has no uint64


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: cmkd_dataset.py CACHE.h5 DATA_FOLDER [VIEW]     prints what a DataLoader would see first")
    data = CachedDataset(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    pixels, label, logits, seed = data[0]
    print(json.dumps(dict(samples=len(data), views=data.views, policy=data.policy, codec=data.codec, pixels=list(pixels.shape), label=label, seed=int(seed.view(np.uint64)), top1=int(logits.argmax()))))
