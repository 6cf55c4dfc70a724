#!/usr/bin/env python3
"""Compares cmkd's networks with PyTorch: same weights, same images, logits and every parameter gradient.

    parity.py check [--program build/tests/test_parity] [--device ref|cpu|cuda] [ARCH ...]   every number, against a run of the program
    parity.py cases [ARCH ...]                                                               writes the small cases that the test suite replays
    parity.py tensors [ARCH ...]                                                             writes tensors beside them, one network of each family

Weights, images and labels follow from integer formulas that both sides compute (number_of below, tests/test_parity.c), so that a case
is a few KB however large the network. PyTorch runs in float64. Needs python3-torch and numpy.

Gradients jump where an activation changes sides. In float32 that happens to activations within rounding of 0, which a deep network has many of:
its gradients then differ from float64's by percents, whoever computes them. So a float32 run is compared with float64 *on the sides that the
run took* (a run of the CPU backend reports them): what is left is rounding, which may be a few times that of PyTorch's own float32, compared
in the same way; and every activation on another side than in float64 must lie within rounding of 0 there. The cases avoid the question:
their images are drawn so that no activation comes near 0.
"""
import argparse, json, os, struct, subprocess, sys, tempfile
import numpy as np
import torch
import torch.nn.functional as F
import models

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = {'vgg16_bn': 1}  # 4 elsewhere
DRAWS, ENOUGH = {'vgg16_bn': 0, 'resnet50': 16, 'resnet18_cifar': 6, 'vgg13': 6}, 1.5e-5  # 40 draws elsewhere, or until the margin is enough
# side and classes of the comparison; members that the suite replays have a case file
SIZES = {'resnet18': 64, 'resnet34': 64, 'resnet50': 64, 'resnet101': 64, 'resnet152': 64, 'mobilenetv1': 64, 'mobilenetv2': 64, 'vgg16_bn': 224, 'mobilenetv2_cifar': 32}
SMALL = {'resnet18': 32, 'resnet50': 33, 'mobilenetv1': 33, 'mobilenetv2': 33, 'vgg16_bn': 224, 'mobilenetv2_cifar': 32}  # of the cases; 16 elsewhere
CASES = ('resnet8', 'resnet20', 'resnet14_pad', 'resnet8x4', 'resnet18_cifar', 'wrn-16-1', 'wrn-16-2', 'vgg8', 'vgg13', 'mobilenetv2_cifar', 'shufflenetv1_cifar',
         'shufflenetv2_cifar', 'resnet18', 'resnet50', 'mobilenetv1', 'mobilenetv2', 'vgg16_bn')

TENSORS, NUMBERS = ('resnet8', 'wrn-16-1', 'vgg8', 'mobilenetv2_cifar', 'shufflenetv1_cifar', 'shufflenetv2_cifar'), 10000  # whose file; numbers in it


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


def rows_of(arch):
    return ROWS.get(arch, 4)


def images_of(side, channels, rows, draw=0):
    pixels = ((number_of(f'images{draw}', rows * side * side * channels) + 1) * 128).astype(np.uint8).reshape(rows, side, side, channels)
    x = (pixels / 255.0 - 0.5) / 0.25
    return torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64)


def labels_of(classes, rows):
    return torch.tensor([(7 * i + 3) % classes for i in range(rows)])


class Sides:
    """Stands in for PyTorch's activations and max pools while a network runs: notes which side everything fell on, and how near the limit it
    came, or imposes the sides of another run, in the order of the calls."""
    def __init__(self, given=None):
        self.given, self.taken, self.margin, self.flips, self.worst, self.limits = given, [], np.inf, 0, 0.0, []

    def __enter__(self):
        self.kept = F.relu, F.hardtanh, F.max_pool2d
        F.relu = lambda x, inplace=False: self.clip(x, np.inf)
        F.hardtanh = lambda x, low=0.0, high=6.0, inplace=False: self.clip(x, high)
        F.max_pool2d = self.pool
        return self

    def __exit__(self, *_):
        F.relu, F.hardtanh, F.max_pool2d = self.kept

    def clip(self, x, high):
        own = (x > 0) & (x < high)
        scale = x.detach().std().item() or 1.0
        distance = torch.minimum(x.detach().abs(), (x.detach() - high).abs()) / scale
        self.margin = min(self.margin, distance[x != 0].min().item())  # pooled zeros of another ReLU are zeros in any precision
        through = own if self.given is None else self.given[len(self.taken)]
        assert through.shape == x.shape, 'activations in another order'
        flipped = own != through
        if flipped.any():
            self.flips += int(flipped.sum())
            self.worst = max(self.worst, distance[flipped].max().item())
        self.taken.append(through)
        self.limits.append(high)
        return torch.where(through, x, x.detach().clamp(0, high))

    def pool(self, x, kernel, stride=None, padding=0, dilation=1, **_):
        stride = kernel if stride is None else stride
        own = self.kept[2](x.detach(), kernel, stride, padding, return_indices=True)[1]
        through = own if self.given is None else self.given[len(self.taken)]
        flat = x.flatten(2)
        y, best = (flat.gather(2, i.flatten(2)).view(own.shape) for i in (through, own))
        scale = x.detach().std().item() or 1.0
        gap = (best - y).detach().abs() / scale
        self.flips += int((gap > 0).sum())
        self.worst = max(self.worst, gap.max().item())
        if self.given is None:  # how near the second of a window came
            windows = F.unfold(F.pad(x.detach(), (padding,) * 4, value=-1e30), kernel, stride=stride).view(x.shape[0], x.shape[1], kernel * kernel, -1)
            top = windows.topk(2, 2)[0]
            gaps = (top[:, :, 0] - top[:, :, 1])[top[:, :, 0] > 0] / scale  # of zeros behind a ReLU either will do
            self.margin = min(self.margin, gaps.min().item())
        self.taken.append(through)
        self.limits.append((kernel, stride, padding))
        return y


def reference(arch, side, channels, classes, dtype=torch.float64, sides=None, draw=0):
    """Inference logits, then one training pass: logits' loss, gradients, the running statistics it leaves, and the sides it took."""
    net = models.build(arch, channels, classes).to(dtype)
    state = net.state_dict()
    net.load_state_dict({k: torch.zeros_like(v) if k.endswith('num_batches_tracked') else torch.tensor(value_of(k, tuple(v.shape))) for k, v in state.items()}, strict=True)
    x = images_of(side, channels, rows_of(arch), draw).to(dtype)
    with torch.no_grad():
        logits = net.eval()(x)
    with Sides(sides) as used:
        loss = F.cross_entropy(net.train()(x), labels_of(classes, rows_of(arch)))
    loss.backward()
    grads = {k: p.grad.numpy() for k, p in net.named_parameters()}
    stats = {k: v.numpy() for k, v in net.state_dict().items() if k.endswith(('running_mean', 'running_var'))}
    return net, logits.numpy(), loss.item(), grads, stats, used


def sides_of(arrays, like):
    """The sides that a run of the program took, from the activations it reports, for the calls of a PyTorch run."""
    names, sides = sorted(k for k in arrays if k.startswith('active.')), []
    assert len(names) == len(like.taken), f'{len(names)} activations, PyTorch has {len(like.taken)}'
    for name, own, limit in zip(names, like.taken, like.limits):
        x = torch.tensor(arrays[name].transpose(0, 3, 1, 2).copy()).reshape((len(own),) + tuple(arrays[name].shape[3:] + arrays[name].shape[1:3] if own.dim() == 4 else own.shape[1:]))
        sides.append((x > 0) & (x < limit) if own.dtype == torch.bool else F.max_pool2d(x, *limit, return_indices=True)[1])
    return sides


def digest(a):
    """sum, sum of magnitudes, sum under alternating weights: three numbers that a wrong gradient does not share"""
    flat = a.reshape(-1)
    w = number_of('projection', flat.size)
    return float(flat.sum()), float(np.abs(flat).sum()), float((flat * w).sum())


def write_case(arch):
    side, channels, classes = SMALL.get(arch, 16), 3, 10
    margin, draw = 0, 0
    for n in range(DRAWS.get(arch, 40)):
        margin, draw = max((margin, draw), (reference(arch, side, channels, classes, draw=n)[5].margin, n))
        if margin >= ENOUGH:
            break
    _, logits, loss, grads, stats, _ = reference(arch, side, channels, classes, draw=draw)
    path = os.path.join(HERE, arch + '.case')
    with open(path, 'w') as out:
        print(f'cmkd-parity-2 {arch} {side} {channels} {classes} {rows_of(arch)} draw {draw} margin {margin:.2e}', file=out)
        print('loss', repr(loss), file=out)
        for row in logits:
            print('logits', *[repr(float(v)) for v in row], file=out)
        for kind, arrays in (('grad', grads), ('stat', stats)):
            for name, a in arrays.items():
                print(kind, name, *['%.9g' % v for v in digest(a)], file=out)
    print(path, os.path.getsize(path), 'bytes, margin', margin)


def first_line(arch):
    """The shape and the draw of a case that `cases` wrote: {'side': 16, ...}"""
    word = open(os.path.join(HERE, arch + '.case')).readline().split()
    return dict(side=int(word[2]), channels=int(word[3]), classes=int(word[4]), draw=int(word[7]))


def stride_of(count, most):
    """1 for a tensor of at most `most` numbers; else a number that has no factor 2 or 3, as shapes do, and leaves `most` or fewer"""
    stride = 1
    while -(-count // stride) > most:
        stride += 2
        while stride % 3 == 0:
            stride += 2
    return stride


def write_tensors(arch):
    """Gradients and statistics in float32: the smallest whole, of the others every n-th number, named NAME/n. A file is some 40 KB."""
    case = first_line(arch)
    _, _, _, grads, stats, _ = reference(arch, case['side'], case['channels'], case['classes'], draw=case['draw'])
    arrays = {f'{kind}.{name}': a.astype(np.float32) for kind, group in (('grad', grads), ('stat', stats)) for name, a in group.items()}
    sizes = sorted(a.size for a in arrays.values())
    least = max([size for size in sizes if sum(s for s in sizes if s <= size) <= NUMBERS / 2])  # whole up to here
    count = lambda most: sum(a.size if a.size <= least else min(a.size, most) for a in arrays.values())
    most = max([m for m in range(16, 4096, 4) if count(m) <= NUMBERS] or [16])
    header, data, whole = {}, b'', 0
    for name, a in arrays.items():
        stride = 1 if a.size <= least else stride_of(a.size, most)
        whole += stride == 1
        part = a if stride == 1 else a.reshape(-1)[::stride]
        header[name if stride == 1 else f'{name}/{stride}'] = dict(dtype='F32', shape=list(part.shape), data_offsets=[len(data), len(data) + 4 * part.size])
        data += part.tobytes()
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    path = os.path.join(HERE, arch + '.safetensors')
    with open(path, 'wb') as out:
        out.write(struct.pack('<Q', len(text)) + text + data)
    print(path, os.path.getsize(path), f'bytes, {whole} of {len(arrays)} tensors whole, {most} numbers of the others')


def read_safetensors(path):
    data = open(path, 'rb').read()
    n = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + n])
    types = {'F32': np.float32, 'F64': np.float64, 'I64': np.int64}
    return {k: np.frombuffer(data[8 + n + v['data_offsets'][0]:8 + n + v['data_offsets'][1]], types[v['dtype']]).reshape(v['shape']) for k, v in header.items() if k != '__metadata__'}


def off(a, b, least=1e-30):
    """Relative distance of two arrays."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / max(np.linalg.norm(b), least))


# Room for logits, loss, gradients, statistics: in double, and in float32. There gradients on the same sides, and statistics, may be TIMES as
# far from float64 as PyTorch's own float32 where that is more; likewise sides may differ for activations within NEAR of 0, in deviations of their tensor.
ROOM, FLOAT, TIMES, NEAR = (1e-6, 1e-6, 1e-6, 1e-6), (1e-5, 1e-4, 2e-5, 1e-5), 3, 2e-4


def farthest(got, want, prefix=''):
    # a bias before batch norm has gradient 0, of which only rounding is left: it is measured against the largest of the network
    least = max(np.linalg.norm(g) for g in want.values()) * 1e-3
    return max((off(got[prefix + name], g, least), name) for name, g in want.items())


def check(arch, program, device):
    side, channels, classes = SIZES.get(arch, 32), 3, 100
    net, logits, loss, grads, stats, used = reference(arch, side, channels, classes)
    with tempfile.TemporaryDirectory() as tmp:
        out, weights = os.path.join(tmp, 'out.safetensors'), os.path.join(tmp, 'weights.safetensors')
        subprocess.run([program, 'run', device, arch, str(side), str(channels), str(classes), str(rows_of(arch)), out, weights], check=True)
        got, saved = read_safetensors(out), read_safetensors(weights)
    net.float().load_state_dict({k: torch.tensor(v) for k, v in saved.items()}, strict=True)  # what cmkd writes, PyTorch loads
    plain, rooms, note, good = farthest(got, grads, 'grad.')[0], list(ROOM), '', True
    statistics = lambda s, prefix='': max(off(s[prefix + k], v) for k, v in stats.items())
    if device != 'ref':
        single = reference(arch, side, channels, classes, torch.float32)
        there = reference(arch, side, channels, classes, sides=single[5].taken)
        own, rooms = farthest(single[3], there[3])[0], list(FLOAT)
        note = f'  PyTorch in float32: {farthest(single[3], grads)[0]:.1e}, {there[5].flips} on other sides (within {there[5].worst:.0e}), on the same {own:.1e}'
        rooms[2], rooms[3] = max(rooms[2], TIMES * own), max(rooms[3], TIMES * statistics(single[4]))
        if any(k.startswith('active.') for k in got):
            here = reference(arch, side, channels, classes, sides=sides_of(got, used))
            grads, good = here[3], here[5].worst <= max(NEAR, TIMES * there[5].worst)
            note = f'  all sides {plain:.1e}, {here[5].flips} on others than in float64 (within {here[5].worst:.0e});' + note
    worst, where = farthest(got, grads, 'grad.')
    row = off(got['logits'], logits), abs(float(got['loss'][0]) - loss) / loss, worst, statistics(got, 'stat.')
    good = good and all(v < room for v, room in zip(row, rooms))
    print(f'{arch:20s} {"ok  " if good else "BAD "} logits {row[0]:.1e}  loss {row[1]:.1e}  gradients {row[2]:.1e} ({where})  statistics {row[3]:.1e}{note}', flush=True)
    return good


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('command', choices=('check', 'cases', 'tensors')); ap.add_argument('arch', nargs='*')
    ap.add_argument('--program', default='build/tests/test_parity'); ap.add_argument('--device', default='ref')
    a = ap.parse_intermixed_args()
    if a.command == 'cases':
        for arch in a.arch or CASES:
            write_case(arch)
        return
    if a.command == 'tensors':
        for arch in a.arch or TENSORS:
            write_tensors(arch)
        return
    bad = [arch for arch in a.arch or models.table() if not check(arch, a.program, a.device)]
    sys.exit(f'differ: {" ".join(bad)}' if bad else 0)


main()
