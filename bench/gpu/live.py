"""4. Epochs of the student from the cache against epochs with the teacher live, alternating; then arithmetic for whole experiments."""
import json, shutil
from experiment import Experiment, from_item
from slot import Failed, Missing, machines, median, number
from throughput import torch_step
import slot as s

TITLE = 'Offline against online'


def epochs(slot, e, name, *source):
    """Seconds of each epoch but the first, tests included, of a short run."""
    out = slot.out / 'live' / name
    shutil.rmtree(out, ignore_errors=True)
    e.train(*source, '--loss', 'cmkd', '--epochs', 2 if slot.tiny else 5, out=out, limit=240)
    seconds = [json.loads(line)['seconds'] for line in (out / 'log.jsonl').read_text().splitlines()]
    shutil.rmtree(out)
    return seconds[1:]


def measure(slot, e, case):
    e.check()
    case['cache_seconds'] = from_item(slot, 3, 'cache', 'build')['seconds']
    case['batch'], case['teacher_batch'], case['offline'], case['online'] = e.batch, e.teacher_batch, [], []
    for _ in range(1 if slot.tiny else 3):
        case['offline'] += epochs(slot, e, 'offline', '--cache', e.cache, '--data', e.data)
        case['online'] += epochs(slot, e, 'online', '--teacher', e.teacher, '--data', e.data, '--views', 'all', '--cache-seed', 0, '--teacher-batch', e.teacher_batch)
    for name, more in (('torch_offline', ()), ('torch_online', ('--teacher', e.teacher_arch))):
        try:
            case[name] = torch_step(slot, e.student_arch, e.batch, *more)
        except (Missing, Failed) as error:
            case.setdefault('left_out', {})[name] = str(error)


def run(slot, item):
    e = Experiment(slot)
    item.do('epochs', 240, lambda case: measure(slot, e, case))


def table(slot, item):
    case = item.data['cases'].get('epochs', {})
    text = machines(item.data['cases'].values()) + '\n'
    if not case.get('done'):
        return text + 'Not measured yet.\n'
    off, on, build, n = median(case['offline']), median(case['online']), case['cache_seconds'], 240
    text += f"{case['precision']}, student batch {case['batch']}, teacher batch {case['teacher_batch']}. **Measured**, one after the other in one slot, medians over {len(case['offline'])} epochs each, test after every epoch included:\n\n"
    rows = [['from the cache', f'{off:.3f}', '1.00'], ['teacher live', f'{on:.3f}', f'{on / off:.2f}']]
    text += s.table(['epoch of the student', 'seconds', 'x'], rows)
    for name, what in (('torch_offline', 'logits at hand'), ('torch_online', 'teacher live')):
        if name in case:
            text += f"\nPyTorch eager, {what}: {case[name]['img_per_s']:.0f} images/s of training (steps alone)."
    text += f'\n\n**Arithmetic** from these and the cache of measurement 3, which took {build:.1f} s (measured): {n} epochs a student.\n\n'
    rows = [[k, f'{build + k * n * off:.0f}', f'{k * n * on:.0f}', f'{k * n * on / (build + k * n * off):.2f}'] for k in (1, 10)]
    return text + s.table(['experiments', 'cache + offline, s', 'online, s', 'speed-up'], rows)
