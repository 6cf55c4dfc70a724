"""What a machine has: its card, cuDNN, a Python with PyTorch, compute-sanitizer, and which kit is measured on it."""

import glob, json, os, platform, re, shutil, subprocess, sys
from pathlib import Path

# Data sheets, dense, SXM where there are several: HBM in TB/s; TFLOP/s of 16 bits, tf32, fp32. --hbm and --tflops override.
CARDS = {'H200': (4.8, 989, 494.5, 67), 'H100': (3.35, 989, 494.5, 67), 'A100': (2.04, 312, 156, 19.5)}


def output(*command, timeout=60):
    """Standard output of a command, or '' where it fails or is not there."""
    try:
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''


class Machine:
    def __init__(self, options, build):
        self.o, self.cuda, self.facts = options, options.device != 'cpu', {}
        f = self.facts
        f['card'], f['cores'], f['cpu'] = 'none (cpu)', os.cpu_count(), platform.machine()
        try:
            models = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
            f['cpu'] = models[0].split(':', 1)[1].strip()
        except (OSError, IndexError):
            pass
        if self.cuda:
            f['card'] = 'unknown card'
            line = output('nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader')
            if line:
                f['card'], f['driver'] = (word.strip() for word in (line.splitlines()[0] + ',').split(',')[:2])
        try:
            f['commit'] = json.loads((build / 'kit.json').read_text())['commit']
        except (OSError, ValueError, KeyError):
            f['commit'] = output('git', '-C', options.root, 'describe', '--always', '--dirty') or 'unknown'
        # timings of different cards are different cases
        known = re.search('|'.join(CARDS), f['card'])
        self.card = '' if not self.cuda else known.group() if known else f['card']

    def line(self):
        f = self.facts
        driver = f", driver {f['driver']}" if 'driver' in f else ''
        return f"{f['card']}{driver}; {f['cores']} cores of {f['cpu']}; commit {f['commit']}"

    def on(self, case):
        return f'{case}, {self.card}' if self.card else case

    def bounds(self, precision):
        """(HBM in TB/s, TFLOP/s, where from), or Nones."""
        row = CARDS.get(self.card)
        compute = row and {'bf16': row[1], 'fp16': row[1], 'tf32': row[2]}.get(precision, row[3])
        where = 'given' if self.o.hbm and self.o.tflops else 'data sheet' if row else None
        return self.o.hbm or (row and row[0]), self.o.tflops or compute, where

    def pythons(self):
        found = [self.o.python] if self.o.python else [shutil.which('python3'), '/usr/bin/python3', sys.executable]
        return list(dict.fromkeys(p for p in found if p and os.access(p, os.X_OK)))

    def torch(self):
        """A Python with PyTorch for this device, or None."""
        if not hasattr(self, '_torch'):
            check = f'import torch; print(torch.__version__ if {not self.cuda} or torch.cuda.is_available() else "")'
            self._torch = next((p for p in self.pythons() if output(p, '-c', check, timeout=120)), None)
        return self._torch

    def cudnn(self):
        """libcudnn.so.9: the named one, else pip's (which no search path of the loader has), else the system's; or None."""
        if not hasattr(self, '_cudnn'):
            named = self.o.cudnn or os.environ.get('CMKD_CUDNN')
            self._cudnn = named if named and named != 'off' else self.cudnn_of_pip() or self.cudnn_of_system()
        return self._cudnn

    def beside_cudnn(self):
        """Folders of the libraries that pip's cuDNN opens (NVRTC, cuBLAS)."""
        path = Path(self.cudnn() or '/')
        of_pip = path.parts[-4:-1] == ('nvidia', 'cudnn', 'lib')
        return sorted(map(str, path.parent.parent.parent.glob('*/lib'))) if of_pip else []

    def cudnn_of_pip(self):
        for python in self.pythons():
            folders = output(python, '-c', 'import nvidia.cudnn\nfor p in nvidia.cudnn.__path__: print(p)')
            for folder in folders.splitlines():
                for path in sorted(glob.glob(f'{glob.escape(folder)}/lib/libcudnn.so.9*')):
                    return path
        return None

    def cudnn_of_system(self):
        cached = re.search(r'libcudnn\.so\.9 .*=> (\S+)', output('ldconfig', '-p') or output('/sbin/ldconfig', '-p'))
        folders = os.environ.get('LD_LIBRARY_PATH', '').split(':') + ['/usr/local/cuda/lib64', '/usr/lib/x86_64-linux-gnu']
        found = [str(Path(d) / 'libcudnn.so.9') for d in folders if d and (Path(d) / 'libcudnn.so.9').exists()]
        return cached.group(1) if cached else found[0] if found else None

    def sanitizer(self):
        """compute-sanitizer, or None."""
        patterns = ('/usr/local/cuda*/bin/', '/usr/local/cuda*/compute-sanitizer/', '/opt/nvidia/*/')
        places = [path for pattern in patterns for path in sorted(glob.glob(pattern + 'compute-sanitizer'))]
        return shutil.which('compute-sanitizer') or next((p for p in places if os.access(p, os.X_OK)), None)
