"""One slot of time on a machine: the clock, and programs that are stopped when it runs out. Standard library only."""

import ctypes, fcntl, json, os, signal, subprocess, sys, tarfile, time
from pathlib import Path
from typing import NamedTuple
import cifar
from machine import Machine
from results import Failed, Missing, OutOfTime, check_settings, keep_settings, pack, unpack_results


class Ended(NamedTuple):
    """How a program ended. cut: None, 'slot' (the slot's time was up) or 'limit' (its own was)."""

    command: str
    text: str
    errors: str
    status: int
    cut: str

    def why(self):
        words = [line for line in self.errors.strip().splitlines() if line.strip()]
        last = words[-1] if words else f'ended with status {self.status}'
        if self.cut == 'limit':
            last = 'no answer within its limit of time'
        return last if last.startswith(f'{self.command}: ') else f'{self.command}: {last}'


def carried_archives(paths):
    """Files as they are given; of a folder what our make targets leave there, and results.tar.gz."""
    archives = []
    for path in map(Path, paths):
        named = ('gpu-data/*.tar', 'gpu-reference*.tar', 'results.tar.gz')
        archives += [p for name in named for p in sorted(path.glob(name))] if path.is_dir() else [path]
    return archives


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG: a training whose run-all was killed saves its state


class Slot:
    def __init__(self, options):
        self.o, self.began, self.worked, self.stopped = options, time.monotonic(), False, False
        self.out, self.work, self.build = Path(options.out), Path(options.work), Path(options.build).resolve()
        self.tiny, self.cuda = options.tiny, options.device != 'cpu'
        self.emulated = self.tiny and self.cuda  # a dry run on the emulated plugin: hundreds of times slower than a CPU
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.on_signal)
        self.lock()
        self.precision = options.precision or ('bf16' if self.cuda else 'fp32')
        self.settings = {key: getattr(options, key) for key in ('device', 'tiny', 'epochs')}
        self.settings |= {'precision': self.precision, 'cudnn': options.cudnn != 'off'}
        check_settings(self.out, self.settings)
        for archive in carried_archives(options.carried):
            self.unpack(archive)
        self.machine = Machine(options, self.build)

    def on_signal(self, *_):
        self.stopped = True

    def lock(self):
        """Children inherit the lock, so a slot waits for what a killed one has left behind."""
        self.lock_file = open(self.work / 'run-all.lock', 'w')
        os.set_inheritable(self.lock_file.fileno(), True)
        until = time.monotonic() + 60
        while True:
            try:
                return fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > until or self.stopped:
                    sys.exit(f'run-all: {self.work}: another run-all, or what it started, works there')
                time.sleep(0.2)

    def unpack(self, archive):
        """An archive that was carried along, once: an earlier call's results into OUT, all others into WORK/carried."""
        if archive.name.startswith('results'):
            print(f'run-all: {unpack_results(archive, self.out, self.settings)}', flush=True)
            return
        try:
            there = archive.stat()
        except OSError as e:
            sys.exit(f'run-all: {archive}: {e.strerror}; carry it along, or leave it out of --carried')
        mark = self.work / 'carried' / f'.{archive.name}-{there.st_size}-{int(there.st_mtime)}'
        if mark.exists():
            return
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(self.work / 'carried', **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        except (OSError, EOFError, tarfile.TarError) as e:
            sys.exit(f'run-all: {archive}: {e}; make it anew and carry it again')
        mark.touch()
        print(f'run-all: {archive} unpacked', flush=True)

    def decode_data(self):
        """CIFAR-100's mosaics that have been carried, into WORK/cifar-100: (how many are decoded, how many there will be)."""
        source, djxl = self.work / 'carried' / 'data' / 'cifar-100', self.build / 'bin' / 'djxl'
        if not (source / 'SHA256').exists():
            return 0, 0
        stop = lambda: self.stopped or (self.o.seconds > 0 and self.left() <= 0)
        try:
            return cifar.unpack(source, self.work / 'cifar-100', str(djxl) if djxl.exists() else 'djxl', stop)
        except cifar.Broken as e:
            raise Failed(str(e))

    def pack(self):
        if self.o.tar:
            pack(self.out, Path(self.o.tar))

    # ---- the clock

    def left(self):
        return 0 if self.stopped else self.o.seconds - (time.monotonic() - self.began) - self.o.margin

    def admits(self, seconds):
        """Whether a run starts: there is the time that it is known to need, or it is the first of a slot."""
        return self.left() > 0 and (not self.worked or self.left() >= seconds)

    # ---- programs

    def environment(self, ours, engine):
        """engine: whose convolutions: 'cudnn' or 'own'."""
        env = dict(os.environ)
        if self.tiny:
            env['OMP_NUM_THREADS'] = '1'  # a dry run shares its machine
        if not ours:
            caches = self.work.resolve()
            return env | {
                'TORCHINDUCTOR_CACHE_DIR': str(caches / 'inductor'),
                'TRITON_CACHE_DIR': str(caches / 'triton'),
            }
        env.setdefault('CMKD_CUDA_PLUGIN', str(self.build / 'libcmkd-cuda.so'))
        env.update(
            CMKD_BUILD=str(self.build),
            CMKD_RECIPES=str(self.o.root / 'recipes'),
            CMKD_CUDA_PLANS=str(self.out.resolve() / 'plans.json'),
            CMKD_CUDNN='off',
        )
        if self.cuda and engine == 'cudnn' and self.o.cudnn != 'off':
            env['CMKD_CUDNN'] = self.cudnn()  # a library that is named is required, in every program
            # pip's cuDNN finds pip's NVRTC by itself, but loads it anew for every engine
            folders = [*self.machine.beside_cudnn(), env.get('LD_LIBRARY_PATH')]
            env['LD_LIBRARY_PATH'] = ':'.join(filter(None, folders))
        return env

    def open(self):
        """Before anything is measured. One step of a tiny network on the device: where there is no GPU at all, nothing needs
        to be tried. A device that opens and computes wrongly is for the tests to take apart."""
        if self.cuda and self.left() > 0:
            self.first_step()
        keep_settings(self.out, self.settings)

    def first_step(self):
        command = [self.program('bench/gpu/step'), '--device', 'cuda', '--arch', 'resnet8', '--side', 8, '--batch', 2]
        ended = self.start([*command, '--steps', 1, '--blocks', 1, '--images', 8], engine='own', limit=self.o.limit)
        self.worked = False
        if ended.status and ended.cut != 'slot':
            if any(words in ended.errors for words in ('NVIDIA driver', 'libcmkd-cuda.so', 'there is no GPU')):
                sys.exit(f'run-all: {ended.why()}')
            print(f'run-all: a first step failed, going on with the tests: {ended.why()}', flush=True)

    def cudnn(self):
        path = self.machine.cudnn()
        if not path:
            raise Missing('cuDNN 9 is not here (pip install nvidia-cudnn-cu13, or --cudnn FILE); --cudnn off goes without')
        return path

    def program(self, name):
        path = self.build / name
        if not os.access(path, os.X_OK):
            raise Missing(f'{path} is not built (make gpu-kit)')
        return str(path)

    def torch(self):
        python = self.machine.torch()
        if not python:
            raise Missing('no Python with PyTorch for this device (--python)')
        return python

    def start(self, command, ours=True, engine='cudnn', limit=None, env=None, tick=None):
        """Runs a program to its end, to `limit` seconds, or to the end of the slot: then it gets SIGINT, and SIGKILL when it
        does not obey. tick(seconds) is called about once a second."""
        command = [str(c) for c in command]
        full = {**self.environment(ours, engine), **(env or {})}
        log = self.out / 'log'
        log.mkdir(exist_ok=True)
        self.worked = True
        began = told = time.monotonic()
        asked = cut = None
        how = {'start_new_session': True, 'preexec_fn': die_with_parent, 'pass_fds': [self.lock_file.fileno()]}
        with open(log / 'stderr', 'w+', errors='replace') as err, open(log / 'stdout', 'w+', errors='replace') as out:
            try:
                child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=full, **how)
            except OSError as e:
                raise Failed(f'{command[0]}: {e.strerror}')
            while child.poll() is None:
                time.sleep(0.02)
                now = time.monotonic()
                if tick and now - told > 1:
                    tick(now - began)
                    told = now
                if asked is None and (self.left() <= 0 or (limit and now - began > limit)):
                    asked, cut = now, 'slot' if self.left() <= 0 else 'limit'
                    os.killpg(child.pid, signal.SIGINT)
                elif asked is not None and now - asked > max(2, self.o.margin - 2):
                    os.killpg(child.pid, signal.SIGKILL)
            if tick:
                tick(time.monotonic() - began)
            out.seek(0)
            err.seek(0)
            text, errors = out.read(), err.read()
        cut = cut if child.returncode else None
        self.note(log / 'commands', command, time.monotonic() - began, child.returncode, cut, errors)
        name = Path(command[0]).name if ours else Path(command[1]).name
        return Ended(name, text, errors, child.returncode, cut)

    @staticmethod
    def note(path, command, seconds, status, cut, errors):
        with open(path, 'a') as f:
            f.write(f"{' '.join(command)}\n  {seconds:.1f} s, status {status}{f', cut: {cut}' if cut else ''}\n")
            if status:
                f.write(''.join(f'    {line}\n' for line in errors.strip().splitlines()[-20:]))

    def run(self, command, continues=False, **how):
        """Standard output of a program that succeeded. continues: started again, one that was cut goes on where it was."""
        ended = self.start(command, **how)
        if ended.status == 0:
            return ended.text
        if ended.cut == 'slot' or (ended.cut and continues):
            raise OutOfTime
        raise Failed(ended.why())

    def json(self, command, **how):
        """The last line of a program's output as JSON."""
        lines = self.run(command, **how).strip().splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failed(f'{Path(str(command[0])).name}: no JSON at the end of its output')
