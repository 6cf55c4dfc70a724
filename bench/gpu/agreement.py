"""1. Whole steps and training curves of the device beside the CPU backend's (per operation: the tests test_device_*)."""
from slot import machines, number
import slot as s

TITLE = 'Agreement with the CPU backend'
ARCHS = ('resnet8x4', 'resnet20', 'wrn-16-2', 'mobilenetv2_cifar', 'shufflenetv2_cifar')
PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16')


def plan(slot):
    return (('resnet8',), ('fp32',), 8, 8, ['--side', 16, '--threads', 1]) if slot.tiny else (ARCHS, PRECISIONS, 32, 200, [])


def run(slot, item):
    archs, precisions, rows, steps, more = plan(slot)
    base = lambda arch, *rest: [slot.program('bench/gpu/agree'), '--arch', arch, *more, *rest]
    other = 'cpu' if slot.cuda else 'ref'

    def step(case, arch):
        case['device'] = slot.json(base(arch, '--mode', 'step', '--device', slot.o.device, '--against', other, '--batch', rows))
        # how far two right answers may lie apart: float32 on the CPU beside the double reference
        case['cpu_from_reference'] = slot.json(base(arch, '--mode', 'step', '--device', 'cpu', '--against', 'ref', '--batch', rows))

    for arch in archs:
        item.do(f'step {arch} fp32', 120, lambda case: step(case, arch))
    for arch in archs:
        for precision in precisions:
            item.do(f'curve {arch} {precision}', 120, lambda case: case.update(device=slot.json(
                base(arch, '--mode', 'curve', '--device', slot.o.device, '--against', other, '--precision', precision, '--batch', 64 if slot.cuda else rows, '--steps', steps))))


def worst(result):
    """The step's largest relative difference among those that must agree, and where."""
    found = [(v['largest'], f"{k} of {v['in']}, {one['rows']} rows") for one in result['steps'] for k, v in one.items()
             if isinstance(v, dict) and (one['weights'] == 'away_from_kinks' or k == 'statistics_after')]
    return max(found)


def table(slot, item):
    steps, curves = [], []
    for key, case in item.data['cases'].items():
        if not case.get('done'):
            continue
        d = case['device']
        if d['mode'] == 'step':
            far, where = worst(d)
            plain = next(o for o in d['steps'] if o['weights'] == 'as_initialised')
            steps.append([d['arch'], d['precision'], d['batch'], number(max(o['loss_relative'] for o in d['steps']), '{:.1e}'), f'{far:.1e} ({where})', f"{worst(case['cpu_from_reference'])[0]:.1e}",
                          f"{plain['gradients']['l2']:.1e}", 'yes' if d['within'] else '**no**'])
        else:
            curves.append([d['arch'], d['precision'], d['batch'], number(d['curve'][0], '{:.3f}') if d['curve'] else '-', number(d['curve'][-1], '{:.3f}'), number(d['curve_there'][-1], '{:.3f}'), number(d['apart'], '{:.4f}'),
                           number(d['yardstick'], '{:.4f}'), 'yes' if d['within'] else '**no**'])
    limit = 'One training step; every gradient, momentum, weight and statistic after it, relative to the largest entry (bench/gpu/agree.c); limit 1e-4.\n\n'
    text = machines(item.data['cases'].values()) + '\n' + limit
    text += s.table(['network', 'precision', 'batch', 'loss', 'largest', 'CPU from double', 'gradients as initialised (l2)', 'within'], steps)
    text += '\nLoss curves, means of 20 steps: how far apart, beside how far the CPU moves when its first weights are moved by the precision\'s rounding.\n\n'
    return text + s.table(['network', 'precision', 'batch', 'first', 'last', 'CPU last', 'apart', 'yardstick', 'within'], curves)
