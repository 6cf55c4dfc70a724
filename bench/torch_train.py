#!/usr/bin/env python3
"""The peer of bench/train.sh: one training step (forward, cross-entropy, backward, SGD with momentum) or one inference pass in PyTorch.

    torch_train.py --arch NAME [--batch 64] [--steps 12] [--warmup 4] [--classes 100] [--threads 2] [--layout nhwc|nchw] [--eval] [--cpu-time]

Networks are those of tests/parity/models.py, plain PyTorch modules. Images are made once and stay in memory, so that PyTorch pays for no loader
and no augmentation. Prints one line of JSON: img_per_s is the median step's. Needs torch (Debian's python3-torch is enough)."""
import argparse, json, os, sys, time
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'tests', 'parity'))
import models


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--arch', required=True); ap.add_argument('--batch', type=int, default=64); ap.add_argument('--steps', type=int, default=12)
    ap.add_argument('--warmup', type=int, default=4); ap.add_argument('--classes', type=int, default=100); ap.add_argument('--threads', type=int, default=2)
    ap.add_argument('--layout', choices=('nhwc', 'nchw'), default='nhwc'); ap.add_argument('--eval', action='store_true')
    ap.add_argument('--cpu-time', action='store_true', help='count the process\'s own seconds (for --threads 1)')
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    layout = torch.channels_last if a.layout == 'nhwc' else torch.contiguous_format
    net = models.build(a.arch, 3, a.classes).to(memory_format=layout).train(not a.eval)
    optimizer = torch.optim.SGD(net.parameters(), .05, momentum=.9, weight_decay=5e-4)
    x = torch.randn(a.batch, 3, 32, 32).to(memory_format=layout)
    y = torch.randint(0, a.classes, (a.batch,))
    seconds, now = [], time.process_time if a.cpu_time else time.perf_counter
    for step in range(a.warmup + a.steps):
        start = now()
        if a.eval:
            with torch.no_grad():
                net(x)
        else:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        if step >= a.warmup:
            seconds.append(now() - start)
    median = sorted(seconds)[len(seconds) // 2]
    print(json.dumps({'arch': a.arch, 'batch': a.batch, 'layout': a.layout, 'eval': a.eval, 'torch': torch.__version__, 'threads': a.threads, 'img_per_s': round(a.batch / median, 1)}))


main()
