"""Every architecture once more, in PyTorch, written from the papers and the tensor names in circulation: what the C networks are compared with.
Nothing here is used outside the comparison. build(arch, channels, classes) gives a module whose state dict has the names that cmkd writes."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn import AvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d, ReLU, ReLU6, Sequential


def conv(i, o, k, stride=1, groups=1, bias=False):
    return Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias)


def mean_pool(x):
    return x.mean((2, 3))


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class PadShortcut(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class Basic(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1 x)))) + shortcut), the shortcut under the given name."""
    def __init__(self, i, o, stride, name, kind='conv'):
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, 3, stride), BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o, 3), BatchNorm2d(o)
        self.short = name
        if stride != 1 or i != o:
            setattr(self, name, PadShortcut(o - i) if kind == 'pad' else Sequential(conv(i, o, 1, stride), BatchNorm2d(o)))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (getattr(self, self.short)(x) if hasattr(self, self.short) else x))


class Bottle(nn.Module):
    def __init__(self, i, width, stride, name):
        super().__init__()
        o = 4 * width
        self.conv1, self.bn1 = conv(i, width, 1), BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, o, 1), BatchNorm2d(o)
        self.short = name
        if stride != 1 or i != o:
            setattr(self, name, Sequential(conv(i, o, 1, stride), BatchNorm2d(o)))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (getattr(self, self.short)(x) if hasattr(self, self.short) else x))


class CifarResNet(nn.Module):
    def __init__(self, depth, stem, width, kind, channels, classes):
        super().__init__()
        self.conv1, self.bn1, i = conv(channels, stem, 3), BatchNorm2d(stem), stem
        for stage in range(3):
            blocks = []
            for b in range((depth - 2) // 6):
                blocks.append(Basic(i, width << stage, 2 if stage and not b else 1, 'downsample', kind))
                i = width << stage
            setattr(self, f'layer{stage + 1}', Sequential(*blocks))
        self.head = 'linear' if kind == 'pad' else 'fc'
        setattr(self, self.head, Linear(i, classes))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return getattr(self, self.head)(mean_pool(x))


class ResNet(nn.Module):
    def __init__(self, counts, deep, cifar, channels, classes):
        super().__init__()
        self.cifar, i = cifar, 64
        self.conv1, self.bn1 = (conv(channels, 64, 3) if cifar else conv(channels, 64, 7, 2)), BatchNorm2d(64)
        for stage, count in enumerate(counts):
            blocks = []
            for b in range(count):
                blocks.append((Bottle if deep else Basic)(i, 64 << stage, 2 if stage and not b else 1, 'shortcut' if cifar else 'downsample'))
                i = (64 << stage) * (4 if deep else 1)
            setattr(self, f'layer{stage + 1}', Sequential(*blocks))
        setattr(self, 'linear' if cifar else 'fc', Linear(i, classes))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if not self.cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        x = mean_pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.linear(x) if self.cifar else self.fc(x)


class WideBlock(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = BatchNorm2d(i), conv(i, o, 3, stride)
        self.bn2, self.conv2 = BatchNorm2d(o), conv(o, o, 3)
        self.convShortcut = conv(i, o, 1, stride) if i != o else None

    def forward(self, x):
        a = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + (x if self.convShortcut is None else self.convShortcut(a))


class WideResNet(nn.Module):
    def __init__(self, depth, k, channels, classes):
        super().__init__()
        self.conv1, i = conv(channels, 16, 3), 16
        for stage in range(3):
            group, o = nn.Module(), 16 * k << stage
            group.layer = Sequential(*[WideBlock(i if not b else o, o, 2 if stage and not b else 1) for b in range((depth - 4) // 6)])
            setattr(self, f'block{stage + 1}', group)
            i = o
        self.bn1, self.fc = BatchNorm2d(i), Linear(i, classes)

    def forward(self, x):
        x = self.block3.layer(self.block2.layer(self.block1.layer(self.conv1(x))))
        return self.fc(mean_pool(F.relu(self.bn1(x))))


class CifarVGG(nn.Module):
    def __init__(self, counts, channels, classes):
        super().__init__()
        i = channels
        for b, (count, o) in enumerate(zip(counts, (64, 128, 256, 512, 512))):
            layers = []
            for _ in range(count):
                layers += [conv(i, o, 3, bias=True), BatchNorm2d(o), ReLU()]
                i = o
            setattr(self, f'block{b}', Sequential(*layers))
        self.classifier = Linear(512, classes)

    def forward(self, x):
        side = x.shape[2]
        for b in range(5):
            x = getattr(self, f'block{b}')(x)
            if b < 3 or b == 3 and side == 64:
                x = F.max_pool2d(x, 2)
        return self.classifier(mean_pool(x))


class VGG(nn.Module):
    def __init__(self, counts, channels, classes):
        super().__init__()
        layers, i = [], channels
        for count, o in zip(counts, (64, 128, 256, 512, 512)):
            for _ in range(count):
                layers += [conv(i, o, 3, bias=True), BatchNorm2d(o), ReLU()]
                i = o
            layers.append(MaxPool2d(2))
        self.features = Sequential(*layers)
        self.classifier = Sequential(Linear(512 * 49, 4096), ReLU(), nn.Identity(), Linear(4096, 4096), ReLU(), nn.Identity(), Linear(4096, classes))

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


class Residual(nn.Module):
    """x + conv(x) where shapes allow, else conv(x)."""
    def __init__(self, body, add):
        super().__init__()
        self.conv, self.add = body, add

    def forward(self, x):
        return x + self.conv(x) if self.add else self.conv(x)


def inverted(i, t, o, stride):
    m = i * t
    return Residual(Sequential(conv(i, m, 1), BatchNorm2d(m), ReLU(), conv(m, m, 3, stride, m), BatchNorm2d(m), ReLU(), conv(m, o, 1), BatchNorm2d(o)), stride == 1 and i == o)


STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class CifarMobileNetV2(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = Sequential(conv(channels, 16, 3, 2), BatchNorm2d(16), ReLU())
        blocks, i = [], 16
        for s, (t, c, n, stride) in enumerate(STAGES):
            o, layers = c // 2, []
            for b in range(n):
                layers.append(inverted(i, t, o, stride if not b and s != 1 else 1))
                i = o
            blocks.append(Sequential(*layers))
        self.blocks = Sequential(*blocks)
        self.conv2 = Sequential(conv(i, 1280, 1), BatchNorm2d(1280), ReLU())
        self.classifier = Sequential(Linear(1280, classes))

    def forward(self, x):
        return self.classifier(mean_pool(self.conv2(self.blocks(self.conv1(x)))))


def conv6(i, o, k, stride=1, groups=1):
    return Sequential(conv(i, o, k, stride, groups), BatchNorm2d(o), ReLU6())


class MobileNetV2(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        layers, i = [conv6(channels, 32, 3, 2)], 32
        for t, o, n, stride in STAGES:
            for b in range(n):
                s, m = (stride if not b else 1), i * t
                body = ([conv6(i, m, 1)] if t > 1 else []) + [conv6(m, m, 3, s, m), conv(m, o, 1), BatchNorm2d(o)]
                layers.append(Residual(Sequential(*body), s == 1 and i == o))
                i = o
        self.features = Sequential(*layers, conv6(i, 1280, 1))
        self.classifier = Sequential(nn.Identity(), Linear(1280, classes))

    def forward(self, x):
        return self.classifier(mean_pool(self.features(x)))


class MobileNetV1(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        layers, i = [Sequential(conv(channels, 32, 3, 2), BatchNorm2d(32), ReLU())], 32
        for o, s in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)):
            layers.append(Sequential(conv(i, i, 3, s, i), BatchNorm2d(i), ReLU(), conv(i, o, 1), BatchNorm2d(o), ReLU()))
            i = o
        self.model, self.fc = Sequential(*layers), Linear(1024, classes)

    def forward(self, x):
        return self.fc(mean_pool(self.model(x)))


class Shuffle1(nn.Module):
    def __init__(self, i, o, stride, groups):
        super().__init__()
        m = o // 4
        self.groups, self.stride = groups, stride
        self.conv1, self.bn1 = conv(i, m, 1, groups=groups), BatchNorm2d(m)
        self.conv2, self.bn2 = conv(m, m, 3, stride, m), BatchNorm2d(m)
        self.conv3, self.bn3 = conv(m, o, 1, groups=3), BatchNorm2d(o)

    def forward(self, x):
        y = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(torch.cat((y, F.avg_pool2d(x, 3, 2, 1)), 1) if self.stride == 2 else y + x)


class ShuffleNetV1(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1, self.bn1, i = conv(channels, 24, 1), BatchNorm2d(24), 24
        for stage, (o, n) in enumerate(((240, 4), (480, 8), (960, 4))):
            blocks = [Shuffle1(i, o - i, 2, 1 if stage == 0 else 3)] + [Shuffle1(o, o, 1, 3) for _ in range(n - 1)]
            setattr(self, f'layer{stage + 1}', Sequential(*blocks))
            i = o
        self.linear = Linear(960, classes)

    def forward(self, x):
        return self.linear(mean_pool(self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))))


class Shuffle2(nn.Module):
    def __init__(self, c):
        super().__init__()
        c //= 2
        self.conv1, self.bn1 = conv(c, c, 1), BatchNorm2d(c)
        self.conv2, self.bn2 = conv(c, c, 3, groups=c), BatchNorm2d(c)
        self.conv3, self.bn3 = conv(c, c, 1), BatchNorm2d(c)

    def forward(self, x):
        keep, y = x.chunk(2, 1)
        y = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y))))))))
        return shuffle(torch.cat((keep, y), 1), 2)


class Shuffle2Down(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        m = o // 2
        self.conv1, self.bn1 = conv(i, i, 3, 2, i), BatchNorm2d(i)
        self.conv2, self.bn2 = conv(i, m, 1), BatchNorm2d(m)
        self.conv3, self.bn3 = conv(i, m, 1), BatchNorm2d(m)
        self.conv4, self.bn4 = conv(m, m, 3, 2, m), BatchNorm2d(m)
        self.conv5, self.bn5 = conv(m, m, 1), BatchNorm2d(m)

    def forward(self, x):
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle(torch.cat((left, right), 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1, self.bn1, i = conv(channels, 24, 1), BatchNorm2d(24), 24
        for stage, (o, n) in enumerate(((116, 3), (232, 7), (464, 3))):
            setattr(self, f'layer{stage + 1}', Sequential(Shuffle2Down(i, o), *[Shuffle2(o) for _ in range(n)]))
            i = o
        self.conv2, self.bn2, self.linear = conv(i, 1024, 1), BatchNorm2d(1024), Linear(1024, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(mean_pool(F.relu(self.bn2(self.conv2(x)))))


FOUR = {18: ((2, 2, 2, 2), 0), 34: ((3, 4, 6, 3), 0), 50: ((3, 4, 6, 3), 1), 101: ((3, 4, 23, 3), 1), 152: ((3, 8, 36, 3), 1)}
VGGS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def table():
    nets = {}
    for d in (8, 14, 20, 32, 44, 56, 110):
        nets[f'resnet{d}'] = lambda c, k, d=d: CifarResNet(d, 16, 16, 'conv', c, k)
        nets[f'resnet{d}_pad'] = lambda c, k, d=d: CifarResNet(d, 16, 16, 'pad', c, k)
    for d in (8, 32):
        nets[f'resnet{d}x4'] = lambda c, k, d=d: CifarResNet(d, 32, 64, 'conv', c, k)
    for d, (counts, deep) in FOUR.items():
        nets[f'resnet{d}'] = lambda c, k, a=counts, b=deep: ResNet(a, b, False, c, k)
        if d <= 50:
            nets[f'resnet{d}_cifar'] = lambda c, k, a=counts, b=deep: ResNet(a, b, True, c, k)
    for d, w in ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10)):
        nets[f'wrn-{d}-{w}'] = lambda c, k, d=d, w=w: WideResNet(d, w, c, k)
    for d, counts in VGGS.items():
        nets[f'vgg{d}'] = lambda c, k, a=counts: CifarVGG(a, c, k)
    nets['mobilenetv2_cifar'], nets['mobilenetv2'], nets['mobilenetv1'] = CifarMobileNetV2, MobileNetV2, MobileNetV1
    nets['shufflenetv1_cifar'], nets['shufflenetv2_cifar'] = ShuffleNetV1, ShuffleNetV2
    nets['vgg16_bn'] = lambda c, k: VGG(VGGS[16], c, k)
    return nets


def build(arch, channels, classes):
    return table()[arch](channels, classes)
