"""Results on disk: a JSON file and a Markdown table a measurement, written anew after every run, and one archive of all."""

import io, json, os, re, statistics, sys, tarfile, time
from pathlib import Path

TRIES = 2  # of a run that fails: in this call and the next
LARGEST = 8 << 20  # bytes of a file that goes into the archive


class OutOfTime(Exception):
    """The slot ended before the work did; what there is is saved."""


class Failed(Exception):
    """A program failed; the message is its last words."""


class Missing(Exception):
    """What this machine does not have (PyTorch, cuDNN, a file that was not carried); asked again in the next slot."""


def write_atomically(path, text):
    part = path.with_name(path.name + '.tmp')
    with open(part, 'w') as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def pack(out, archive):
    """All of OUT as one .tar.gz, replaced atomically; larger files are left out and named in it."""
    part, left = archive.with_name(archive.name + '.tmp'), []
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(part, 'w:gz', compresslevel=5) as tar:
        for path in sorted(out.rglob('*')):
            name = path.relative_to(out)
            if not path.is_file() or path.suffix == '.tmp':
                continue
            if path.stat().st_size > LARGEST:
                left.append(f'{name}: {path.stat().st_size} bytes\n')
            else:
                tar.add(path, arcname=str(Path('results') / name))
        if left:
            text = ''.join(left).encode()
            entry = tarfile.TarInfo('results/left-out.txt')
            entry.size, entry.mtime = len(text), int(time.time())
            tar.addfile(entry, io.BytesIO(text))
    os.replace(part, archive)


def option(key, value):
    """A setting as it would be typed."""
    if key == 'cudnn':
        return 'with cuDNN' if value else 'of --cudnn off'
    if not value:
        return f'without --{key}'
    return f'of --{key}' if value is True else f'of --{key} {value}'


def difference(there, now):
    """In what results and this call differ first, or None."""
    differ = (key for key in now if there.get(key) != now[key])
    return next((f'{option(key, there.get(key))}, not {option(key, now[key])}' for key in differ), None)


def unpack_results(archive, out, settings):
    """What an earlier machine packed, unless OUT has results already. Says what it did."""
    if (out / 'settings.json').exists():
        return f'{archive} is not needed: {out} has results already'
    try:
        with tarfile.open(archive) as tar:
            files = {Path(e.name): tar.extractfile(e).read() for e in tar if e.isfile() and Path(e.name).parts[:1] == ('results',)}
        there = json.loads(files[Path('results/settings.json')])
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as e:
        sys.exit(f'run-all: {archive}: {e}; carry the results.tar.gz of an earlier call, or none')
    if difference(there, settings):
        sys.exit(f'run-all: {archive} holds results {difference(there, settings)}: give the same, or put that file elsewhere')
    for name, data in files.items():
        if '..' not in name.parts:
            target = out.joinpath(*name.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return f'{archive} goes on: {len(files)} files'


def check_settings(out, now):
    """Results of one folder belong together."""
    path = out / 'settings.json'
    there = json.loads(path.read_text()) if path.exists() else now
    if difference(there, now):
        sys.exit(f'run-all: {out} holds results {difference(there, now)}: give the same, or another --out and carry no results')


def keep_settings(out, now):
    write_atomically(out / 'settings.json', json.dumps(now) + '\n')


class Measurement:
    """One of run-all's measurements: cases (rows of its table), each of named runs. A run is one program's result; it is saved
    when it ends, and never repeated. `table(slot, measurement)` makes text of whatever is there."""

    def __init__(self, slot, number, name, title, table):
        self.slot, self.number, self.title, self.table = slot, number, title, table
        self.json_path, self.table_path = (slot.out / f'{number}-{name}.{suffix}' for suffix in ('json', 'md'))
        self.data = {'measurement': number, 'title': title, 'cases': {}}
        if self.json_path.exists():
            self.data = json.loads(self.json_path.read_text())
        self.pending, self.new = [], 0

    def case(self, key):
        return self.data['cases'].setdefault(key, {'runs': {}})

    def cases(self):
        return self.data['cases']

    def result(self, case, name):
        return self.cases().get(case, {'runs': {}})['runs'].get(name, {}).get('result')

    def ended(self, case, name):
        """Whether a run came to its end, well or not."""
        entry = self.cases().get(case, {'runs': {}})['runs'].get(name, {})
        return 'result' in entry or 'failed' in entry

    def results(self, case, name):
        """Of all rounds: runs called `name`, `name 2`, ..."""
        runs = self.cases().get(case, {'runs': {}})['runs']
        rounds = re.compile(re.escape(name) + r'( \d+)?')
        return [r['result'] for key, r in runs.items() if 'result' in r and rounds.fullmatch(key)]

    def save(self, pack=True):
        self.data['counts'] = self.counts()
        write_atomically(self.json_path, json.dumps(self.data, indent=1) + '\n')
        notes = ''.join(f'- {line}\n' for line in grouped(self.pending))
        dry = 'A dry run on small networks and made-up data: no result.\n\n' if self.slot.tiny else ''
        missing = f'\nNot measured:\n\n{notes}' if notes else ''
        text = f'# {self.number}. {self.title}\n\n{dry}{self.table(self.slot, self)}{missing}'
        write_atomically(self.table_path, text)
        if pack:
            self.slot.pack()

    def leave(self, state, case, name, why=''):
        """Not done: for later, failed, or missing what it needs."""
        self.pending.append((state, f'{case}: {name}', why))
        if state == 'failed':
            print(f'{self.number}. {case}: {name}: {state}: {why}', flush=True)

    def saved_counts(self):
        """counts() of the last call that worked at this measurement; None before."""
        return self.data.get('counts')

    def counts(self):
        """How many runs are done, failed, missing what they need, left for later."""
        done = sum('result' in r for case in self.cases().values() for r in case['runs'].values())
        return [done] + [sum(state == s for s, _, _ in self.pending) for state in ('failed', 'missing', 'later')]

    def run(self, case, name, work, limits=1, continues=False):
        """The result of a run, made by work(limit) unless it is there; None where it is left for later, missing or failed. It
        may take `limits` times --limit seconds (0: the slot). A run that the slot's end cut starts again only where there
        is more time than it had; continues: instead, it goes on where it was."""
        limit = limits * self.slot.o.limit or None
        runs = self.case(case)['runs']
        entry = runs.get(name, {})
        if 'result' in entry:
            return entry['result']
        if entry.get('tries', 0) >= TRIES and not self.slot.o.retry:
            return self.leave('failed', case, name, entry['failed'])
        if not self.slot.admits(0 if continues else min(limit or 0, 1.5 * entry.get('had', 0))):
            return self.leave('later', case, name)
        began, had = time.monotonic(), self.slot.left()
        try:
            entry = {'result': work(limit), 'seconds': round(time.monotonic() - began, 2)}
            entry['machine'] = self.slot.machine.line()
        except OutOfTime:
            self.leave('later', case, name, 'cut, it goes on' if continues else 'cut, it starts again')
            print(f'{self.number}. {case}: {name}: cut', flush=True)
            entry['had'] = max(entry.get('had', 0), min(had, time.monotonic() - began))
        except Missing as e:
            return self.leave('missing', case, name, str(e))
        except Failed as e:
            self.leave('failed', case, name, str(e))
            entry.update(tries=entry.get('tries', 0) + 1, failed=str(e), machine=self.slot.machine.line())
        runs[name] = entry
        self.new += 1
        self.save()
        if 'result' in entry:
            print(f"{self.number}. {case}: {name}: {entry['seconds']:.1f} s", flush=True)
        return entry.get('result')


def grouped(pending):
    """Lines of what was not done; what is missing or left for the same reason stands in one."""
    groups = {}
    for state, name, why in pending:
        groups.setdefault((state, why if state != 'failed' else f'{name}: {why}'), []).append(name)
    for (state, why), names in groups.items():
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        named = f" ({'; '.join(names[:3])}{more})" if state != 'failed' else ''
        yield f"{state}{': ' + why if why else ''}{named}"


# ---- tables


def median(values):
    return statistics.median(values) if values else None


def number(value, form='{:.0f}'):
    return '-' if value is None else form.format(value)


def table(heads, rows):
    lines = [heads, ['---'] + ['---:'] * (len(heads) - 1)] + rows
    return ''.join('| ' + ' | '.join(str(c) for c in line) + ' |\n' for line in lines)


def machines(measurement):
    """Where the runs were made, a line each."""
    runs = [r for case in measurement.cases().values() for r in case['runs'].values()]
    lines = dict.fromkeys(r['machine'] for r in runs if 'result' in r)
    return ''.join(f'Measured on: {line}.\n' for line in lines)
