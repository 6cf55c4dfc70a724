#!/usr/bin/env python3
"""PyTorch's training step timed as a training loop runs: blocks of steps with one wait at the end of each, fused SGD, channels_last.

    torch_step.py [--arch resnet20|resnet8x4] [--batch 64] [--precision fp32|tf32|bf16|fp16] [--compile] [--teacher ARCH] [--eval]

One float batch lies ready in device memory; loss: cross-entropy + KD. --eval: inference alone. Prints one line of JSON: img/s, median over blocks.
"""

import argparse, json, time
import torch, torch.nn as nn, torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.downsample = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            if stride != 1 or i != o
            else nn.Identity()
        )

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, arch, classes):
        super().__init__()
        widths = (32, 64, 128, 256) if arch.endswith('x4') else (16, 16, 32, 64)
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        blocks, i = [], widths[0]
        for stage, o in enumerate(widths[1:]):
            for k in range((int(arch[6:].split('x')[0]) - 2) // 6):
                blocks.append(Block(i, o, 2 if stage and not k else 1))
                i = o
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(i, classes)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(F.relu(self.bn1(self.conv1(x)))), 1).flatten(1))


def kd(s, t, T=4.0):
    return F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction='batchmean') * T * T


def main():
    p = argparse.ArgumentParser()
    add = p.add_argument
    add('--arch', default='resnet20')
    add('--teacher')
    add('--batch', type=int, default=64)
    add('--classes', type=int, default=100)
    add('--steps', type=int, default=50)
    add('--blocks', type=int, default=21)
    add('--warmup', type=int, default=3)
    add('--device', default='cuda')
    add('--precision', default='bf16', choices=('fp32', 'tf32', 'bf16', 'fp16'))
    add('--compile', action='store_true')
    add('--eval', action='store_true')
    a = p.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = a.precision == 'tf32'
    half = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(a.precision)
    cuda, fmt = a.device == 'cuda', torch.channels_last
    wait = torch.cuda.synchronize if cuda else lambda: None
    cast = lambda: torch.autocast(a.device, dtype=half or torch.bfloat16, enabled=half is not None)
    net = ResNet(a.arch, a.classes).to(a.device, memory_format=fmt).train(not a.eval)
    teacher = ResNet(a.teacher, a.classes).to(a.device, memory_format=fmt).eval() if a.teacher else None
    forward = torch.compile(net, mode='max-autotune') if a.compile else net
    optimizer = torch.optim.SGD(
        net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, **({'fused': True} if cuda else {})
    )
    scaler = torch.amp.GradScaler(a.device, enabled=a.precision == 'fp16')
    x = torch.randn(a.batch, 3, 32, 32, device=a.device).to(memory_format=fmt)
    y, cached = torch.randint(0, a.classes, (a.batch,), device=a.device), torch.randn(
        a.batch, a.classes, device=a.device
    )

    def step():
        if a.eval:
            with torch.no_grad(), cast():
                return forward(x)
        with cast():
            s = forward(x)
            t = cached
            if teacher is not None:
                with torch.no_grad():
                    t = teacher(x)
        s, t = s.float(), t.float()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(F.cross_entropy(s, y) + kd(s, t)).backward()
        scaler.step(optimizer)
        scaler.update()

    times = []
    for block in range(-a.warmup, a.blocks):
        wait()
        began = time.perf_counter()
        for _ in range(a.steps):
            step()
        wait()
        if block >= 0:
            times.append(time.perf_counter() - began)
    times.sort()
    rows = a.batch * a.steps
    print(
        json.dumps(
            dict(
                arch=a.arch,
                teacher=a.teacher,
                batch=a.batch,
                precision=a.precision,
                compile=a.compile,
                eval=a.eval,
                torch=torch.__version__,
                device=torch.cuda.get_device_name() if cuda else 'cpu',
                blocks=a.blocks,
                steps=a.steps,
                img_per_s=round(rows / times[len(times) // 2], 1),
                best_img_per_s=round(rows / times[0], 1),
            )
        )
    )


main()
