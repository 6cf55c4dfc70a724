"""One slot of time on a machine: the clock, the results on disk, and programs that are stopped when time is up. Standard library only."""
import ctypes, fcntl, json, os, platform, shutil, signal, subprocess, sys, time
from pathlib import Path

PROFILE_ENV = 'CMKD_CUDA_PROFILE'
# Data sheets, dense, SXM where there are several: HBM in TB/s; TFLOP/s by precision. Overridden by --hbm and --tflops.
CARDS = {'H200': (4.8, 989, 494.5, 67), 'H100': (3.35, 989, 494.5, 67), 'A100': (2.04, 312, 156, 19.5)}


class OutOfTime(Exception):
    """The slot ended before the work did; what there is is saved."""


class Failed(Exception):
    """A program failed; the message is its last words."""


class Missing(Exception):
    """Something that this machine does not have (PyTorch, a library); the case is left out, and asked again in the next slot."""


def write_atomically(path, text):
    part = path.with_name(path.name + '.tmp')
    with open(part, 'w') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG: a training whose run-all was killed saves its state


class Slot:
    def __init__(self, options):
        self.o, self.began, self.worked, self.stopped = options, time.monotonic(), False, False
        self.out, self.build, self.tiny, self.cuda = Path(options.out), Path(options.build), options.tiny, options.device != 'cpu'
        self.out.mkdir(parents=True, exist_ok=True)
        self.precision = options.precision or ('bf16' if self.cuda else 'fp32')
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.on_signal)
        self.lock()
        self.same_settings()
        self.machine = self.describe()

    def on_signal(self, *_):
        self.stopped = True

    def lock(self):
        """Children inherit the lock, so a slot waits for what a killed one has left behind."""
        self.lock_file = open(self.out / 'run-all.lock', 'w')
        os.set_inheritable(self.lock_file.fileno(), True)
        until = time.monotonic() + 60
        while True:
            try:
                return fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > until or self.stopped:
                    sys.exit(f'run-all: {self.out}: another run-all, or what it started, works there')
                time.sleep(0.2)

    def same_settings(self):
        """Results of one folder belong together."""
        path, now = self.out / 'settings.json', {k: getattr(self.o, k) for k in ('device', 'tiny', 'epochs')} | {'precision': self.precision}
        there = json.loads(path.read_text()) if path.exists() else now
        for key in now:
            if there.get(key) != now[key]:
                sys.exit(f'run-all: {self.out} holds results with {key} {there.get(key)}, not {now[key]}; give another --out')
        write_atomically(path, json.dumps(now) + '\n')

    # ---- the clock

    def left(self):
        return 0 if self.stopped else self.o.seconds - (time.monotonic() - self.began) - self.o.margin

    def need(self, seconds):
        """A piece that cannot be cut starts when it fits, or as the first of a slot."""
        if self.tiny:
            seconds /= 50
        if self.stopped or self.left() <= 0 or (self.worked and self.left() < seconds):
            raise OutOfTime

    # ---- programs

    def environment(self, ours):
        env = dict(os.environ, CMKD_RECIPES=str(self.o.root / 'recipes'))
        if self.tiny:
            env['OMP_NUM_THREADS'] = '1'  # a dry run shares its machine
        if ours and self.o.libs:
            env['LD_LIBRARY_PATH'] = ':'.join(filter(None, [str(self.o.libs), env.get('LD_LIBRARY_PATH')]))
        return env

    def program(self, name):
        path = self.build / name
        if not os.access(path, os.X_OK):
            raise Missing(f'{path} is not built (make gpu-kit)')
        return str(path)

    def run(self, command, ours=True, cut=False, limit=None, env=None, tick=None):
        """Standard output of a program. cut: when time is up it gets SIGINT, saves its state, and OutOfTime is raised; else it may go on to
        `limit` seconds, and a few over the slot's end. tick(seconds) is called about once a second."""
        self.worked = True
        command = [str(c) for c in command]
        log = self.out / 'log'
        log.mkdir(exist_ok=True)
        errors = log / (Path(command[0 if ours else 1]).name + '.err')
        print('   ', ' '.join(command), flush=True)
        began = told = time.monotonic()
        asked = None
        with open(errors, 'w') as err, open(log / 'stdout', 'w+') as out:
            child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env={**self.environment(ours), **(env or {})},
                                     start_new_session=True, preexec_fn=die_with_parent, pass_fds=[self.lock_file.fileno()])
            while child.poll() is None:
                time.sleep(0.02)
                now = time.monotonic()
                if tick and now - told > 1:
                    tick(now - began)
                    told = now
                over = self.left() <= 0 if cut or self.stopped else now - began > (limit or 600)
                if over and asked is None:
                    asked = now
                    child.send_signal(signal.SIGINT)
                elif asked is not None and now - asked > max(30, self.o.margin):
                    child.kill()
            if tick:
                tick(time.monotonic() - began)
            out.seek(0)
            text = out.read()
        if child.returncode == 0:
            return text
        if asked is not None and (cut or self.stopped):
            raise OutOfTime
        words = errors.read_text(errors='replace').strip().splitlines()
        raise Failed(f'{Path(command[0]).name}: ' + (f'no answer in {limit or 600} s' if asked is not None else words[-1] if words else f'status {child.returncode}'))

    def json(self, command, **how):
        """The last line of a program's output as JSON."""
        lines = self.run(command, **how).strip().splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failed(f'{Path(str(command[0])).name}: no JSON at the end of its output')

    # ---- the machine

    def describe(self):
        m = {'card': 'none (cpu)', 'driver': None, 'cpu': platform.processor() or platform.machine(), 'cores': os.cpu_count()}
        try:
            m['cpu'] = next(l.split(':', 1)[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
        except (OSError, StopIteration):
            pass
        if not self.cuda:
            return m
        try:
            line = subprocess.run(['nvidia-smi', '--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit', '--format=csv,noheader'], capture_output=True, text=True, timeout=60).stdout.splitlines()[0]
            m.update(zip(('card', 'driver', 'memory', 'max_clock', 'power_limit'), (w.strip() for w in line.split(','))))
        except (OSError, IndexError, subprocess.SubprocessError):
            m['card'] = 'unknown (no nvidia-smi)'
        return m

    def bounds(self, precision):
        """(HBM in TB/s, TFLOP/s, where from), or Nones."""
        row = next((v for k, v in CARDS.items() if k in self.machine['card']), None)
        compute = row and {'bf16': row[1], 'fp16': row[1], 'tf32': row[2]}.get(precision, row[3])
        where = 'given' if self.o.hbm and self.o.tflops else 'data sheet' if row else None
        return self.o.hbm or (row and row[0]), self.o.tflops or compute, where

    def torch(self):
        """A Python with PyTorch for this device."""
        if not hasattr(self, '_python'):
            self._python = None
            check = 'import torch, sys; sys.exit(not torch.cuda.is_available())' if self.cuda else 'import torch'
            for python in [self.o.python] if self.o.python else filter(None, [shutil.which('python3'), '/usr/bin/python3']):
                if os.access(python, os.X_OK) and subprocess.run([python, '-c', check], capture_output=True).returncode == 0:
                    self._python = python
                    break
        if not self._python:
            raise Missing('no Python with PyTorch for this device (--python)')
        return self._python

    def peer(self):
        path = Path(self.o.shared) / 'peers' / 'torch_train.py'
        if not path.is_file():
            raise Missing(f'{path} is not here (CMKD_SHARED)')
        return path


class Item:
    """The results of one measurement: a JSON file of cases and a Markdown table, both written anew after every case."""

    def __init__(self, slot, number, name, title):
        self.slot, self.number, self.title = slot, number, title
        self.json_path, self.table_path = slot.out / f'{number}-{name}.json', slot.out / f'{number}-{name}.md'
        self.data = {'item': number, 'title': title, 'cases': {}}
        if self.json_path.exists():
            self.data = json.loads(self.json_path.read_text())
        self.pending = []

    def get(self, key):
        case = self.data['cases'].get(key, {})
        return case if case.get('done') else None

    def partial(self, key):
        return self.data['cases'].setdefault(key, {'done': False, 'machine': self.slot.machine, 'precision': self.slot.precision})

    def save(self, table=None):
        write_atomically(self.json_path, json.dumps(self.data, indent=1) + '\n')
        if table:
            dry = 'A dry run on small networks and made-up data: no result.\n\n' if self.slot.tiny else ''
            write_atomically(self.table_path, f'# {self.number}. {self.title}\n\n{dry}{table}')

    def do(self, key, seconds, work):
        """Runs a case unless it is done: work(case) fills its dict. seconds: what it needs in one piece (0: it can be cut). Its state: 'done',
        'later', 'missing', 'failed'."""
        if self.get(key):
            return 'done'
        case = self.partial(key)
        case.update(machine=self.slot.machine, precision=self.slot.precision)
        case.pop('error', None)
        case.pop('missing', None)
        try:
            self.slot.need(seconds)
            print(f'{self.number}. {key}', flush=True)
            work(case)
            case['done'] = True
            state = 'done'
        except OutOfTime:
            state = 'later'
        except Missing as e:
            state, case['missing'] = 'missing', str(e)
        except Failed as e:
            state, case['error'] = 'failed', str(e)
        if state != 'done':
            self.pending.append((state, key, case.get('error') or case.get('missing') or ''))
            if state != 'later':
                print(f'    {state}: {self.pending[-1][2]}', flush=True)
        if len(case) > 3 or state == 'done':
            self.save()
        else:
            del self.data['cases'][key]
        return state


def median(values):
    v = sorted(values)
    return None if not v else v[len(v) // 2] if len(v) % 2 else (v[len(v) // 2 - 1] + v[len(v) // 2]) / 2


def number(value, form='{:.0f}'):
    return '-' if value is None else form.format(value)


def table(heads, rows):
    lines = [heads, ['---'] + ['---:'] * (len(heads) - 1)] + rows
    return ''.join('| ' + ' | '.join(str(c) for c in line) + ' |\n' for line in lines)


def machines(cases):
    """The cards and drivers that the cases ran on, one line each."""
    seen = []
    for c in cases:
        m = c.get('machine', {})
        line = f"{m.get('card')}, driver {m.get('driver')}, {m.get('cores')} cores of {m.get('cpu')}"
        if line not in seen:
            seen.append(line)
    return ''.join(f'Measured on: {line}.\n' for line in seen)
