#!/usr/bin/env python3
"""CIFAR's official binary files from their lossless form: JPEG XL mosaics of 40 x 25 images, labels.bin, SHA256.

    cifar.py SOURCE TARGET      TARGET/train.bin, test.bin or data_batch_1.bin ..., checked by SHA-256

Every mosaic is kept as it is decoded, so that it may be cut and go on, and the mosaics may come in pieces: SOURCE/FILES, where it is
there, lists what there will be. Exit status: 0, or 3 where mosaics are missing. Needs djxl (Debian package libjxl-tools)."""

import hashlib, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COLUMNS, ROWS, SIDE = 40, 25, 32
IMAGES, WIDTH, PIXELS = COLUMNS * ROWS, COLUMNS * SIDE, COLUMNS * ROWS * SIDE * SIDE * 3


class Broken(Exception):
    """A file that is not what it should be, or a djxl that fails; one line."""


def write(path, data):
    part = path.with_name(path.name + '.part')
    part.write_bytes(data)
    part.rename(path)


def decode(mosaic, target, djxl):
    """One mosaic as its images: 3072 bytes each, the red, the green, the blue plane."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / 'mosaic.ppm'
        try:
            ended = subprocess.run([djxl, str(mosaic), str(picture), '--num_threads=1'], capture_output=True, text=True)
        except OSError as e:
            raise Broken(f'{djxl}: {e.strerror}; apt-get install libjxl-tools')
        if ended.returncode or not picture.exists():
            raise Broken(f'{mosaic}: djxl: {(ended.stderr.strip() or "failed").splitlines()[-1]}')
        raw = picture.read_bytes()[-PIXELS:]
    planes = [raw[colour::3] for colour in range(3)]
    images = []
    for first in (row * SIDE * WIDTH + column * SIDE for row in range(ROWS) for column in range(COLUMNS)):
        lines = range(first, first + SIDE * WIDTH, WIDTH)
        images += [plane[at : at + SIDE] for plane in planes for at in lines]
    write(target, b''.join(images))


def assemble(parts, labels, digest, path):
    """A binary file of its parts' images, each behind its labels (an equal share of `labels`)."""
    size = PIXELS // IMAGES
    pixels = b''.join(part.read_bytes() for part in parts)
    each = len(labels) * size // len(pixels)
    records = (labels[i * each : (i + 1) * each] + pixels[i * size : (i + 1) * size] for i in range(len(pixels) // size))
    data = b''.join(records)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Broken(f'{path}: its SHA-256 is not {digest}; carry {path.stem}-*.jxl again')
    write(path, data)


def unpack(source, target, djxl='djxl', stop=lambda: False):
    """(mosaics that are decoded, mosaics that there will be). Binary files are made of those that are whole."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    listed = source / 'FILES'
    names = [line.split()[0] for line in listed.read_text().splitlines()] if listed.exists() else os.listdir(source)
    files = [line.split() for line in (source / 'SHA256').read_text().splitlines()]
    mosaics = {name: sorted(Path(n).name for n in names if Path(n).name.startswith(f'{Path(name).stem}-')) for _, name in files}
    part = lambda mosaic: target / f'{Path(mosaic).stem}.images'
    left = [m for name in mosaics if not (target / name).exists() for m in mosaics[name] if not part(m).exists()]

    def work(mosaic):
        if (source / mosaic).exists() and not stop():
            decode(source / mosaic, part(mosaic), djxl)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, left))
    total, at = sum(map(len, mosaics.values())), 0
    for digest, name in files:
        parts = [part(mosaic) for mosaic in mosaics[name]]
        if not (target / name).exists() and all(p.exists() for p in parts) and (source / 'labels.bin').exists():
            labels = (source / 'labels.bin').read_bytes()
            each = len(labels) // total
            assemble(parts, labels[at * each : (at + len(parts)) * each], digest, target / name)
        if (target / name).exists():
            for p in parts:
                p.unlink(missing_ok=True)
        at += len(parts)
    return total - sum(not part(m).exists() for name in mosaics if not (target / name).exists() for m in mosaics[name]), total


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        decoded, total = unpack(sys.argv[1], sys.argv[2])
    except (Broken, OSError) as error:
        sys.exit(f'cifar.py: {error}')
    sys.exit(0 if decoded == total else 3)
