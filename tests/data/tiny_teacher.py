#!/usr/bin/env python3
"""Writes tests/data/tiny-teacher: a trained teacher of 80 KB, 40 images, and the logits that PyTorch computes in float64.

    tiny_teacher.py WEIGHTS FASHION-MNIST-FOLDER

WEIGHTS is what cmkd-train wrote for resnet8_pad on Fashion-MNIST (the command is in tests/data/README.md). Convolutions are rounded to 8 bits:
a batch norm follows each of them, so a channel's weights may be multiples of any number, which its statistics take up. These are measured once more
on 2048 training images. Needs python3-torch and numpy.
"""
import gzip, json, os, struct, sys
import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'parity'))
import models

IMAGES, CALIBRATION, OUT = 40, 2048, os.path.join(HERE, 'tiny-teacher')
TYPES = {'F32': np.float32, 'F64': np.float64, 'I64': np.int64, 'I8': np.int8}


def read_safetensors(path):
    data = open(path, 'rb').read()
    n = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + n])
    meta = header.pop('__metadata__', {})
    part = lambda v: data[8 + n + v['data_offsets'][0]:8 + n + v['data_offsets'][1]]
    return {k: np.frombuffer(part(v), TYPES[v['dtype']]).reshape(v['shape']) for k, v in header.items()}, meta


def write_safetensors(path, arrays, meta):
    names, header, data = {v: k for k, v in TYPES.items()}, {'__metadata__': meta}, b''
    for k, a in arrays.items():
        header[k] = dict(dtype=names[a.dtype.type], shape=list(a.shape), data_offsets=[len(data), len(data) + a.nbytes])
        data += a.tobytes()
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    open(path, 'wb').write(struct.pack('<Q', len(text)) + text + data)


def images_of(folder, name):
    data = gzip.open(os.path.join(folder, name + '-images-idx3-ubyte.gz')).read()
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def labels_of(folder, name):
    return np.frombuffer(gzip.open(os.path.join(folder, name + '-labels-idx1-ubyte.gz')).read(), np.uint8, offset=8)


def write_gzip(name, header, array):
    with open(os.path.join(OUT, name), 'wb') as out, gzip.GzipFile('', 'wb', 9, out, mtime=0) as packed:
        packed.write(struct.pack('>%di' % len(header), *header) + array.tobytes())


def main():
    weights, source = sys.argv[1:]
    arrays, meta = read_safetensors(weights)
    mean, std = (float(meta[k].split(',')[0]) for k in ('mean', 'std'))
    normalised = lambda pixels: torch.tensor((pixels[:, None].astype(np.float64) / 255 - mean) / std)
    kept = {}
    for name, a in arrays.items():
        if a.ndim == 4:
            a = np.rint(a / np.abs(a).max((1, 2, 3), keepdims=True) * 127).astype(np.int8)
        kept[name] = a
    net = models.build(meta['arch'], 1, 10).double()
    net.load_state_dict({k: torch.tensor(v.astype(np.float64)) if v.dtype != np.int64 else torch.tensor(v) for k, v in kept.items()}, strict=True)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        net.train()(normalised(images_of(source, 'train')[:CALIBRATION]))
        for name, value in net.state_dict().items():
            if name.endswith(('running_mean', 'running_var')):
                kept[name] = value.numpy().astype(np.float32)
                value.copy_(torch.tensor(kept[name]))
        net.eval()
        pixels, labels = images_of(source, 't10k'), labels_of(source, 't10k')
        logits = net(normalised(pixels[:IMAGES])).numpy()
        right = sum(int((net(normalised(pixels[i:i + 1000])).argmax(1).numpy() == labels[i:i + 1000]).sum()) for i in range(0, 10000, 1000))
    os.makedirs(OUT, exist_ok=True)
    write_safetensors(os.path.join(OUT, 'teacher.safetensors'), kept, meta)
    write_safetensors(os.path.join(OUT, 'logits.safetensors'), {'logits': logits}, {'what': 'teacher.safetensors on the test images, PyTorch in float64'})
    write_gzip('t10k-images-idx3-ubyte.gz', (2051, IMAGES, 28, 28), pixels[:IMAGES])
    write_gzip('t10k-labels-idx1-ubyte.gz', (2049, IMAGES), labels[:IMAGES])
    print(f'{right / 100:.2f}% of the 10,000 test images, {int((logits.argmax(1) == labels[:IMAGES]).sum())} of these {IMAGES}')


main()
