"""7. The cache of all views of CIFAR-100's training images, built in as many slots as it takes, beside PyTorch's
inference of the same network."""

import time
import steps
from experiment import Experiment
from pytorch import torch_step, torch_train
from results import machines, number, table

TITLE = 'Building the --views all cache'


def inference(slot, m, e):
    """Inference alone, ours and theirs, without data: ours moves and normalises images and brings the logits home."""
    compiled = {'limits': 4, 'continues': True}
    for batch in (16,) if slot.tiny else (128, 512):
        case = slot.machine.on(f'{e.teacher_arch} inference, batch {batch}')
        for precision in dict.fromkeys((slot.precision, 'fp32')):
            at = (slot, e.teacher_arch, batch)
            how = lambda limit: {'precision': precision, 'limit': limit}
            m.run(case, f'ours, {precision}', lambda limit: steps.step(*at, '--list', 'infer', **how(limit)))
            for name, script in (('blocks', torch_step), ('each step', torch_train)):
                m.run(case, f'PyTorch {precision}, {name}', lambda limit: script(*at, '--eval', **how(limit)))
            if slot.cuda and not slot.tiny:
                work = lambda limit: torch_step(*at, '--eval', '--compile', continues=True, **how(limit))
                m.run(case, f'PyTorch compiled {precision}, blocks', work, **compiled)


def build(slot, m, key, e):
    case = m.case(key)
    if not e.cache.exists() and not list(slot.work.glob('teacher.*')):
        case['parts'] = []  # what another machine had begun did not come along
    part = {'seconds': 0}
    case.setdefault('parts', []).append(part)
    saved = [time.monotonic()]

    def tick(seconds):
        part['seconds'] = seconds
        if time.monotonic() - saved[0] > 5:  # a slot that is killed loses no more of the count than this
            saved[0] = time.monotonic()
            m.save(pack=False)

    summary = e.build(tick=tick)
    info = slot.json([slot.program('cmkd-cache'), 'info', '--json', e.cache])
    seconds, parts = sum(p['seconds'] for p in case['parts']), len(case['parts'])
    facts = {'bytes': info.get('bytes'), 'info': info, 'teacher_batch': e.teacher_batch}
    return {'build': summary, 'seconds': seconds, 'parts': parts} | facts


def run(slot, m):
    e = Experiment(slot)
    key = slot.machine.on('build')
    m.run(key, 'all views', lambda limit: build(slot, m, key, e), limits=0, continues=True)
    inference(slot, m, e)


def make_table(slot, m):
    rows, text = [], ''
    for case, value in m.cases().items():
        for name, entry in value['runs'].items():
            if 'img_per_s' in entry.get('result', {}):
                rows.append([case, name, number(entry['result']['img_per_s'])])
        done = m.result(case, 'all views')
        if done:
            b, size = done['build'], done['bytes'] or 0
            n = b['samples'] * b['views']
            text += f'''
Cache ({case}): {b['samples']} images x {b['views']} views = {n} teacher passes at batch {done['teacher_batch']} in
{done['seconds']:.1f} s of {done['parts']} slot(s), program start, the test split and hashing included:
{n / max(1e-9, done['seconds']):.0f} images/s. {size} bytes, {size / n:.1f} a row. In the last slot the teacher alone
ran at {b['teacher_images_per_s']:.0f} images/s, the build as a whole at {b['images_per_s']:.0f} ({b['rows_built']} rows;
{b['rows_reused']} were there).
'''
    heads = ['inference of the teacher', 'who', 'images/s']
    return machines(m) + '\n' + table(heads, rows) + (text or '\nThe cache is not finished.\n')
