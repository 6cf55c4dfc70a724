"""5. Whole steps and training curves of the device beside the double reference's and the CPU's, which were computed at
home (make gpu-reference)."""

from pathlib import Path
from results import Missing, machines, number, table

TITLE = 'Agreement with the double reference and the CPU'
ARCHS = ('resnet8x4', 'resnet20', 'wrn-16-2', 'mobilenetv2_cifar', 'shufflenetv2_cifar')
PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16')
SIZES = {'step': ['--batch', 32], 'curve': ['--batch', 64, '--steps', 200]}
TINY = {
    'step': ['--batch', 8, '--side', 16, '--threads', 1],
    'curve': ['--batch', 8, '--steps', 8, '--side', 16, '--threads', 1],
}
UNCHECKED = {'CMKD_CUDA_SELFCHECK': '0'}  # differences are what this measures


def agree(slot, mode, arch, *more):
    size = (TINY if slot.tiny else SIZES)[mode]
    return [slot.program('bench/gpu/agree'), '--mode', mode, '--arch', arch, *size, *more]


def reference(slot, mode, arch, limit):
    """The file with the other side of a comparison."""
    name = f'{mode}-{arch}.reference'
    folders = [slot.work / 'carried' / 'reference', slot.build / 'gpu-reference']
    if slot.tiny:
        path = slot.work / 'tiny' / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            slot.run(agree(slot, mode, arch, '--make', path), engine='own', limit=limit)
        return path
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise Missing(f'{name} is not here: make gpu-reference, and carry gpu-reference*.tar')


def compare(slot, mode, arch, precision, engine, limit):
    path = reference(slot, mode, arch, limit)
    sides = ['--device', slot.o.device, '--precision', precision, '--against', Path(path).resolve()]
    return slot.json(agree(slot, mode, arch, *sides), engine=engine, limit=limit, env=UNCHECKED)


def run(slot, m):
    archs, precisions = (('resnet8',), ('fp32',)) if slot.tiny else (ARCHS, PRECISIONS)
    engines = ('own', 'cudnn') if slot.cuda and slot.o.cudnn != 'off' else ('own',)
    runs = [('step', arch, 'fp32', engine) for arch in archs for engine in engines]
    runs += [('curve', arch, precision, engines[-1]) for arch in archs for precision in precisions]
    for mode, arch, precision, engine in runs:
        case, name = f'{mode} {arch}', f'{precision}, {engine}'
        found = m.run(case, name, lambda limit: compare(slot, mode, arch, precision, engine, limit))
        if found and not found['within']:
            m.leave('failed', case, name, 'not within its limit')


def worst(steps):
    """The largest relative difference among those that must agree, and where."""
    found = [
        (v['largest'], f"{k} of {v['in']}, {rows} rows")
        for weights, rows, one in steps
        for k, v in one.items()
        if isinstance(v, dict) and 'largest' in v and (weights == 'away_from_kinks' or k == 'statistics_after')
    ]
    return max(found, default=(None, '-'))


def make_table(slot, m):
    steps, curves = [], []
    for case in m.cases().values():
        for name, entry in case['runs'].items():
            d = entry.get('result')
            if not d:
                continue
            who, within = name, 'yes' if d['within'] else '**no**'
            if d['mode'] == 'step':
                far, where = worst([(o['weights'], o['rows'], o) for o in d['steps']])
                cpu, _ = worst([(o['weights'], o['rows'], o.get('cpu', {})) for o in d['steps']])
                steps.append(
                    [
                        d['arch'],
                        who,
                        d['batch'],
                        number(max(o['loss_relative'] for o in d['steps']), '{:.1e}'),
                        f'{far:.1e} ({where})',
                        number(cpu, '{:.1e}'),
                        within,
                    ]
                )
            else:
                shown = [number(x, '{:.3f}') for x in (d['curve'][0], d['curve'][-1], d['curve_there'][-1])] + [
                    number(d[k], '{:.4f}') for k in ('apart', 'yardstick')
                ]
                curves.append([d['arch'], who, d['batch'], *shown, within])
    text = machines(m) + '''
One training step; every gradient, momentum, weight and statistic after it against double, relative to the largest entry
(bench/gpu/agree.c); limit 1e-4.

'''
    text += table(
        ['network', 'precision, convolutions', 'batch', 'loss', 'largest', 'CPU (float32) likewise', 'within'], steps
    )
    text += '''
Loss curves, means of 20 steps: how far apart from the CPU's, beside how far that one moves when its first weights are
moved by the precision's rounding.

'''
    return text + table(
        ['network', 'precision, convolutions', 'batch', 'first', 'last', 'CPU last', 'apart', 'yardstick', 'within'],
        curves,
    )
