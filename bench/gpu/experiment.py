"""What measurements 7, 8 and 9 share: CIFAR-100, its teacher, the recipe, and the cache; with --tiny made-up data and a
teacher trained on it."""

import json, os, random, struct
from pathlib import Path
from results import Missing, OutOfTime

RECIPE = 'resnet56-resnet20'


class Experiment:
    def __init__(self, slot):
        self.slot, tiny = slot, slot.tiny
        self.teacher_arch, self.student_arch = ('resnet8', 'resnet8') if tiny else ('resnet56', 'resnet20')
        self.teacher_batch = (4 if slot.emulated else 16) if tiny else 512
        self.batch = (4 if slot.emulated else 16) if tiny else 64
        self.views = 4 if slot.emulated else 'all'
        self.epochs = slot.o.epochs or (4 if tiny else 240)
        self.cache = slot.work / 'teacher.h5'
        self.settings = ['--recipe', RECIPE]
        if tiny:
            self.settings = ['--student', self.student_arch, '--batch', self.batch, '--lr', 0.05]
            self.settings += ['--augment', 'crop+flip']
        self.folder = slot.work / 'tiny'
        self.teacher = self.folder / 'teacher' / 'last.safetensors' if tiny else Path(slot.o.teacher)

    def data(self):
        """--data's value for our programs. Without data or teacher there is no experiment; says what is missing."""
        if self.slot.tiny:
            self.make_tiny()
            return f'fashion-mnist:{self.folder}'
        folder = Path(self.slot.o.data) if self.slot.o.data else self.unpacked()
        for path in (self.teacher, folder / 'train.bin', folder / 'test.bin'):
            if not os.access(path, os.R_OK):
                raise Missing(f'{path} is not here')
        return f'cifar100:{folder}'

    def unpacked(self):
        """CIFAR-100 from its lossless files, once all pieces have been carried."""
        folder = self.slot.work / 'cifar-100'
        done, total = self.slot.decode_data()
        if not total:
            raise Missing('CIFAR-100 is not here: give --data DIR, or make gpu-data and carry gpu-data/cifar-100-*.tar')
        if done < total and self.slot.left() > 0:
            raise Missing(f'CIFAR-100: {done} of {total} mosaics are here; carry the other gpu-data/*.tar too')
        if done < total:
            raise OutOfTime
        return folder

    def device(self):
        return ['--device', self.slot.o.device] + (['--threads', 1] if self.slot.tiny else [])

    def train(self, *options, out, **how):
        """The command of a training and its JSON; an earlier slot's is gone on with."""
        command = [self.slot.program('cmkd-train'), *self.settings, *self.device(), '--data', self.data()]
        command += ['--precision', self.slot.precision, '--quiet', '--json', '--resume', '--out', out, *options]
        return self.slot.json(command, **how)

    def build(self, **how):
        """The cache: builds what is not there yet, in the arithmetic that the builder takes by itself. Its summary."""
        command = [self.slot.program('cmkd-cache'), 'build', '--teacher', self.teacher, '--data', self.data()]
        command += ['--views', self.views, '--augment', 'crop+flip', '--teacher-batch', self.teacher_batch]
        command += [*self.device(), '--out', self.cache, '--quiet', '--json']
        if self.slot.o.precision:
            command += ['--precision', self.slot.o.precision]
        return self.slot.json(command, continues=True, **how)

    def cached(self):
        """The whole cache's path; a machine that does not hold it yet builds it."""
        if not self.cache.exists():
            print('    this machine has no cache yet: building it', flush=True)
            self.build()
        return self.cache

    def published(self):
        recipe = self.slot.o.root / 'recipes' / f'{RECIPE}.json'
        return {} if self.slot.tiny else json.loads(recipe.read_text())['published']

    # ---- made-up data in MNIST's format: the one that may have any number of images

    def make_tiny(self):
        folder = self.folder
        folder.mkdir(exist_ok=True)
        if not (folder / 'done').exists():
            rng = random.Random(1)
            patterns = [[rng.randrange(256) for _ in range(49)] for _ in range(10)]
            for stem, n in (('train', 2 * self.batch), ('t10k', self.batch)):
                labels = [i % 10 for i in range(n)]
                pixels = bytearray()
                for label in labels:
                    pixels += bytes(
                        (patterns[label][y // 4 * 7 + x // 4] * 3 + rng.randrange(256)) // 4
                        for y in range(28)
                        for x in range(28)
                    )
                (folder / f'{stem}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, n, 28, 28) + pixels)
                (folder / f'{stem}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, n) + bytes(labels))
            (folder / 'done').touch()
        if not (folder / 'trained').exists():
            command = [self.slot.program('cmkd-train'), '--data', f'fashion-mnist:{folder}']
            command += ['--arch', self.teacher_arch, '--loss', 'ce', '--epochs', 2]
            command += ['--device', 'cpu', '--threads', 1, '--quiet', '--resume', '--out', folder / 'teacher']
            self.slot.run(command, continues=True)
            (folder / 'trained').touch()


def finished(slot, name):
    """The results of another measurement: {case: {run: result}}."""
    for path in slot.out.glob(f'*-{name}.json'):
        cases = json.loads(path.read_text())['cases']
        results = lambda case: {run: entry['result'] for run, entry in case['runs'].items() if 'result' in entry}
        return {key: results(case) for key, case in cases.items()}
    return {}
