"""3. The cache of all views of CIFAR-100's training images, built in as many slots as it takes, beside PyTorch's inference of the same network."""
import time
from experiment import Experiment
from slot import Failed, Missing, machines, median, number
from throughput import ours, torch_step, torch_train
import slot as s

TITLE = 'Building the --views all cache'
BATCHES = (128, 512)


def passes(slot, e, case, batch):
    """Inference alone, ours and theirs, without data: ours moves and normalises the images and brings the logits home."""
    case['batch'], case['runs'] = batch, []

    def add(who, call, *args, **how):
        try:
            case['runs'].append({'who': who, 'img_per_s': call(slot, e.teacher_arch, batch, *args, **how)['img_per_s']})
        except (Missing, Failed) as error:
            case.setdefault('left_out', {})[who] = str(error)

    kept = slot.precision
    try:
        for precision in dict.fromkeys((kept, 'fp32')):
            slot.precision = precision
            add(f'ours, {precision}', ours, more=['--list', 'infer'])
            add(f'PyTorch eager {precision}, blocks', torch_step, '--eval')
            add(f'PyTorch eager {precision}, each step', torch_train, '--eval')
            if slot.cuda:
                add(f'PyTorch compiled {precision}, blocks', torch_step, '--eval', '--compile', limit=300)
    finally:
        slot.precision = kept


def build(slot, item, e, case):
    e.check()
    program = slot.program('cmkd-cache')
    command = [program, 'build', '--teacher', e.teacher, '--data', e.data, '--views', 'all', '--augment', 'crop+flip', '--teacher-batch', e.teacher_batch, *e.device(), '--out', e.cache, '--quiet', '--json']
    if '--precision' in slot.run([program, 'build', '--help']):
        command += ['--precision', slot.precision]
    part = {'seconds': 0, 'machine': slot.machine}
    case.setdefault('parts', []).append(part)
    saved = [time.monotonic()]

    def tick(seconds):
        part['seconds'] = seconds
        if time.monotonic() - saved[0] > 5:  # a slot that is killed loses no more of the count than this
            saved[0] = time.monotonic()
            item.save()

    case['build'] = slot.json(command, cut=True, tick=tick)
    info = slot.json([program, 'info', '--json', e.cache])
    case['seconds'] = sum(p['seconds'] for p in case['parts'])
    case['bytes'], case['info'] = info.get('bytes'), info
    case['teacher_batch'] = e.teacher_batch


def run(slot, item):
    e = Experiment(slot)
    for batch in (16,) if slot.tiny else BATCHES:
        item.do(f'{e.teacher_arch} inference, batch {batch}', 240, lambda case: passes(slot, e, case, batch))
    item.do('build', 0, lambda case: build(slot, item, e, case))


def table(slot, item):
    cases = item.data['cases']
    rows = [[r['who'], case['batch'], number(r['img_per_s'])] for key, case in cases.items() if case.get('done') and 'runs' in case for r in case['runs']]
    text = machines(cases.values()) + '\n' + s.table(['inference of the teacher', 'batch', 'images/s'], rows)
    for case in cases.values():
        text += ''.join(f'\n{who} left out: {why}\n' for who, why in case.get('left_out', {}).items())
    case = cases.get('build', {})
    if not case.get('done'):
        return text + '\nThe cache is not finished.\n'
    b, n = case['build'], case['build']['samples'] * case['build']['views']
    return text + f'''
Cache: {b['samples']} images x {b['views']} views = {n} teacher passes at batch {case['teacher_batch']} in {case['seconds']:.1f} s of {len(case['parts'])} slot(s), program start, the test split
and hashing included: {n / max(1e-9, case['seconds']):.0f} images/s. {number(case['bytes'])} bytes, {(case['bytes'] or 0) / n:.1f} a row. In the last slot the teacher alone ran at
{b['teacher_images_per_s']:.0f} images/s and the build as a whole at {b['images_per_s']:.0f} ({b['rows_built']} rows; {b['rows_reused']} were there).
'''
