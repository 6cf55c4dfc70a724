"""8. Epochs of the student from the cache against epochs with the teacher live, alternating; then arithmetic for whole
experiments."""

import json, shutil
import steps
from experiment import Experiment, finished
from pytorch import torch_step
from results import machines, median, table

TITLE = 'Offline against online'
ROUNDS, EPOCHS = 3, 4


def epochs(slot, e, name, limit, *source):
    """Seconds of each epoch but the first, tests included, of a short run."""
    out = slot.work / 'live' / name
    shutil.rmtree(out, ignore_errors=True)
    e.train(*source, '--loss', 'cmkd', '--epochs', 2 if slot.tiny else EPOCHS, out=out, limit=limit)
    return [json.loads(line)['seconds'] for line in (out / 'log.jsonl').read_text().splitlines()][1:]


def run(slot, m):
    e = Experiment(slot)
    case = slot.machine.on('epochs')
    views = ('--views', e.views, '--cache-seed', 0, '--teacher-batch', e.teacher_batch)
    sources = {'offline': lambda: ('--cache', e.cached()), 'online': lambda: ('--teacher', e.teacher, *views)}
    for i in range(1 if slot.tiny else ROUNDS):
        for name, source in sources.items():
            work = lambda limit: epochs(slot, e, name, limit, *source())
            m.run(case, f'{name} {i + 1}' if i else name, work)
    student = (slot, e.student_arch, e.batch)
    m.run(case, 'ours, steps', lambda limit: steps.step(*student, '--loss', 'kd', limit=limit))
    for name, more in (('PyTorch, logits at hand', ()), ('PyTorch, teacher live', ('--teacher', e.teacher_arch))):
        m.run(case, name, lambda limit: torch_step(*student, *more, limit=limit))


def make_table(slot, m):
    text, n = machines(m), 240
    caches = finished(slot, 'cache').items()
    built = {case: runs['all views']['seconds'] for case, runs in caches if 'all views' in runs}
    for case in m.cases():
        off, on = (median([s for r in m.results(case, name) for s in r]) for name in ('offline', 'online'))
        if off is None or on is None:
            continue
        rounds = len(m.results(case, 'offline'))
        text += f'''
{case}: **measured**, alternating, medians of {rounds} runs of each, first epochs left out, test after every epoch
included:

'''
        rows = [['from the cache', f'{off:.3f}', '1.00'], ['teacher live', f'{on:.3f}', f'{on / off:.2f}']]
        text += table(['epoch of the student', 'seconds', 'x'], rows)
        for name, entry in m.cases()[case]['runs'].items():
            if 'img_per_s' in (entry.get('result') or {}):
                text += f"\n{name}: {entry['result']['img_per_s']:.0f} images/s of training, steps alone.\n"
        build = built.get(case.replace('epochs', 'build'))
        if build:
            text += f'''
**Arithmetic** from these and the cache of measurement 7, which took {build:.1f} s (measured): {n} epochs a student.

'''
            cost = lambda k: (build + k * n * off, k * n * on)
            rows = [[k, *(f'{s:.0f}' for s in cost(k)), f'{cost(k)[1] / cost(k)[0]:.2f}'] for k in (1, 10)]
            text += table(['experiments', 'cache + offline, s', 'online, s', 'x'], rows)
    return text
