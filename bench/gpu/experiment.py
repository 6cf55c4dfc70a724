"""What measurements 3, 4 and 5 share: CIFAR-100, its teacher, the recipe, and the cache; with --tiny made-up data and a teacher trained on it."""
import json, random, struct
from slot import Missing, OutOfTime

RECIPE = 'resnet56-resnet20'


class Experiment:
    def __init__(self, slot):
        self.slot, tiny = slot, slot.tiny
        self.teacher_arch, self.student_arch = ('resnet8', 'resnet8') if tiny else ('resnet56', 'resnet20')
        self.teacher_batch = 16 if tiny else 512
        self.batch = 16 if tiny else 64
        self.epochs = slot.o.epochs or (4 if tiny else 240)
        self.cache = slot.out / 'teacher.h5'
        self.settings = ['--student', self.student_arch, '--batch', self.batch, '--lr', 0.05, '--augment', 'crop+flip'] if tiny else ['--recipe', RECIPE]
        self.folder = slot.out / 'tiny'
        self.data, self.teacher = (f'fashion-mnist:{self.folder}', self.folder / 'teacher' / 'last.safetensors') if tiny else (f'cifar100:{slot.o.data}', slot.o.teacher)

    def check(self):
        """Without data or teacher there is no experiment; says what is missing."""
        o = self.slot.o
        if self.slot.tiny:
            self.make_tiny()
        elif not o.data:
            raise Missing('CIFAR-100: give --data DIR')
        for path in [self.teacher] + ([] if self.slot.tiny else [f'{o.data}/train.bin', f'{o.data}/test.bin']):
            try:
                open(path, 'rb').close()
            except OSError as e:
                raise Missing(f'{path}: {e.strerror}')

    def device(self):
        return ['--device', self.slot.o.device] + (['--threads', 1] if self.slot.tiny else [])

    def train(self, *options, out, **how):
        """The command of a training and its JSON; an earlier slot's is gone on with."""
        self.check()
        return self.slot.json([self.slot.program('cmkd-train'), *self.settings, *self.device(), '--precision', self.slot.precision, '--quiet', '--json', '--resume', '--out', out, *options], **how)

    def published(self):
        return {} if self.slot.tiny else json.loads((self.slot.o.root / 'recipes' / f'{RECIPE}.json').read_text())['published']

    # ---- made-up data in MNIST's format: the one that may have any number of images

    def make_tiny(self):
        folder = self.folder
        if not (folder / 'done').exists():
            folder.mkdir(exist_ok=True)
            rng = random.Random(1)
            patterns = [[rng.randrange(256) for _ in range(49)] for _ in range(10)]
            for stem, n in (('train', 32), ('t10k', 16)):
                labels = [i % 10 for i in range(n)]
                pixels = bytearray()
                for label in labels:
                    pixels += bytes((patterns[label][y // 4 * 7 + x // 4] * 3 + rng.randrange(256)) // 4 for y in range(28) for x in range(28))
                (folder / f'{stem}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, n, 28, 28) + pixels)
                (folder / f'{stem}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, n) + bytes(labels))
            (folder / 'done').touch()
        if not self.teacher.exists():
            self.slot.run([self.slot.program('cmkd-train'), '--data', self.data, '--arch', self.teacher_arch, '--loss', 'ce', '--epochs', 2, '--device', 'cpu', '--threads', 1, '--quiet', '--resume', '--out', folder / 'teacher'])


def from_item(slot, number, name, key):
    """A case of another measurement, which must be done before: in this slot or a later one, or it is missing."""
    path = slot.out / f'{number}-{name}.json'
    case = json.loads(path.read_text())['cases'].get(key, {}) if path.exists() else {}
    if not case.get('done'):
        if number in slot.o.only:
            raise OutOfTime
        raise Missing(f'measurement {number} ({key}) comes first')
    return case
