#!/usr/bin/env python3
"""Compares cmkd's networks with PyTorch: same weights, same images, logits and every parameter gradient.

    parity.py check [--program build/tests/test_parity] [--device ref|cpu|cuda] [ARCH ...]   every number, against a run of the program
    parity.py cases [ARCH ...]                                                               writes the small cases that the test suite replays

Weights, images and labels follow from integer formulas that both sides compute (number_of below, tests/test_parity.c), so that a case
is a few KB however large the network. PyTorch runs in float64. Needs python3-torch and numpy.
"""
import argparse, json, os, struct, subprocess, sys, tempfile
import numpy as np
import torch
import torch.nn.functional as F
import models

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = 4
# side and classes of the comparison; members that the suite replays have a case file
SIZES = {'resnet18': 64, 'resnet34': 64, 'resnet50': 64, 'resnet101': 64, 'resnet152': 64, 'mobilenetv1': 64, 'mobilenetv2': 64, 'vgg16_bn': 224, 'mobilenetv2_cifar': 32}
CASES = ('resnet8', 'resnet20', 'resnet14_pad', 'resnet8x4', 'resnet18_cifar', 'wrn-16-1', 'wrn-16-2', 'vgg8', 'vgg13', 'mobilenetv2_cifar', 'shufflenetv1_cifar',
         'shufflenetv2_cifar', 'resnet18', 'resnet50', 'mobilenetv1', 'mobilenetv2')


def number_of(name, count):
    """count numbers in [-1, 1), multiples of 2^-15, from the name alone: FNV-1a of the name, then an integer hash of each index."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 & 0xFFFFFFFF
    x = (np.arange(count, dtype=np.uint64) * 0x9E3779B1 + seed & 0xFFFFFFFF).astype(np.uint32)
    x ^= x >> np.uint32(16); x *= np.uint32(0x7FEB352D); x ^= x >> np.uint32(15); x *= np.uint32(0x846CA68B); x ^= x >> np.uint32(16)
    return (x >> np.uint32(16)).astype(np.float64) / 32768 - 1


def value_of(name, shape):
    """A parameter's numbers; scales are powers of two, so float32 holds them exactly."""
    v = number_of(name, int(np.prod(shape, dtype=np.int64))).reshape(shape)
    leaf = name.rsplit('.', 1)[1]
    if len(shape) > 1:
        fan, scale = int(np.prod(shape[1:], dtype=np.int64)), 1.0
        while scale * scale * fan > 6:
            scale /= 2
        return v * scale
    return v / 2 + 1 if leaf in ('weight', 'running_var') else v / 4


def images_of(side, channels):
    pixels = ((number_of('images', ROWS * side * side * channels) + 1) * 128).astype(np.uint8).reshape(ROWS, side, side, channels)
    x = (pixels / 255.0 - 0.5) / 0.25
    return torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64)


def labels_of(classes):
    return torch.tensor([(7 * i + 3) % classes for i in range(ROWS)])


def reference(arch, side, channels, classes, dtype=torch.float64):
    """Inference logits, then one training pass: logits' loss, gradients and the running statistics it leaves."""
    net = models.build(arch, channels, classes).to(dtype)
    state = net.state_dict()
    net.load_state_dict({k: torch.zeros_like(v) if k.endswith('num_batches_tracked') else torch.tensor(value_of(k, tuple(v.shape))) for k, v in state.items()}, strict=True)
    x = images_of(side, channels).to(dtype)
    with torch.no_grad():
        logits = net.eval()(x)
    loss = F.cross_entropy(net.train()(x), labels_of(classes))
    loss.backward()
    grads = {k: p.grad.numpy() for k, p in net.named_parameters()}
    stats = {k: v.numpy() for k, v in net.state_dict().items() if k.endswith(('running_mean', 'running_var'))}
    return net, logits.numpy(), loss.item(), grads, stats


def digest(a):
    """sum, sum of magnitudes, sum under alternating weights: three numbers that a wrong gradient does not share"""
    flat = a.reshape(-1)
    w = number_of('projection', flat.size)
    return float(flat.sum()), float(np.abs(flat).sum()), float((flat * w).sum())


def write_case(arch):
    side, channels, classes = SIZES.get(arch, 16), 3, 10
    _, logits, loss, grads, stats = reference(arch, side, channels, classes)
    path = os.path.join(HERE, arch + '.case')
    with open(path, 'w') as out:
        print(f'cmkd-parity-1 {arch} {side} {channels} {classes} {ROWS}', file=out)
        print('loss', repr(loss), file=out)
        for row in logits:
            print('logits', *[repr(float(v)) for v in row], file=out)
        for kind, arrays in (('grad', grads), ('stat', stats)):
            for name, a in arrays.items():
                print(kind, name, *['%.9g' % v for v in digest(a)], file=out)
    print(path, os.path.getsize(path), 'bytes')


def read_safetensors(path):
    data = open(path, 'rb').read()
    n = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + n])
    types = {'F32': np.float32, 'F64': np.float64, 'I64': np.int64}
    return {k: np.frombuffer(data[8 + n + v['data_offsets'][0]:8 + n + v['data_offsets'][1]], types[v['dtype']]).reshape(v['shape']) for k, v in header.items() if k != '__metadata__'}


def off(a, b, least=1e-30):
    """Relative distance of two arrays."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / max(np.linalg.norm(b), least))


# Room for logits, loss, gradients, statistics. In float32 a deep net's gradients move by percents when one activation near 0 changes sides
# under batch statistics, PyTorch's own too: three times the distance of its float32 from its float64 is allowed where that is more.
ROOM = {'ref': (1e-6, 1e-6, 1e-6, 1e-6)}
FLOAT = (1e-5, 1e-4, 5e-2, 1e-3)


def check(arch, program, device):
    side, channels, classes = SIZES.get(arch, 32), 3, 100
    net, logits, loss, grads, stats = reference(arch, side, channels, classes)
    with tempfile.TemporaryDirectory() as tmp:
        out, weights = os.path.join(tmp, 'out.safetensors'), os.path.join(tmp, 'weights.safetensors')
        subprocess.run([program, 'run', device, arch, str(side), str(channels), str(classes), str(ROWS), out, weights], check=True)
        got, saved = read_safetensors(out), read_safetensors(weights)
    net.float().load_state_dict({k: torch.tensor(v) for k, v in saved.items()}, strict=True)  # what cmkd writes, PyTorch loads
    # a bias before batch norm has gradient 0, of which only rounding is left: it is measured against the largest of the network
    least = max(np.linalg.norm(g) for g in grads.values()) * 1e-3
    worst, where = max((off(got['grad.' + name], g, least), name) for name, g in grads.items())
    row = off(got['logits'], logits), abs(float(got['loss'][0]) - loss) / loss, worst, max(off(got['stat.' + k], s) for k, s in stats.items())
    own = max(off(g, grads[name], least) for name, g in reference(arch, side, channels, classes, torch.float32)[3].items()) if device != 'ref' else 0
    rooms = list(ROOM.get(device, FLOAT))
    rooms[2] = max(rooms[2], 3 * own)
    good = all(v < room for v, room in zip(row, rooms))
    print(f'{arch:20s} {"ok  " if good else "BAD "} logits {row[0]:.1e}  loss {row[1]:.1e}  gradients {row[2]:.1e} ({where})  statistics {row[3]:.1e}' + (f'  (gradients of PyTorch in float32: {own:.1e})' if own else ''), flush=True)
    return good


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('command', choices=('check', 'cases')); ap.add_argument('arch', nargs='*')
    ap.add_argument('--program', default='build/tests/test_parity'); ap.add_argument('--device', default='ref')
    a = ap.parse_intermixed_args()
    if a.command == 'cases':
        for arch in a.arch or CASES:
            write_case(arch)
        return
    bad = [arch for arch in a.arch or models.table() if not check(arch, a.program, a.device)]
    sys.exit(f'differ: {" ".join(bad)}' if bad else 0)


main()
