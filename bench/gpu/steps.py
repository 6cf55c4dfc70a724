"""2. Our training steps: images/s with our own convolutions and with cuDNN's, what a step is made of, and the losses
alone."""

import json
from results import Failed, Missing, machines, number, table

TITLE = 'Training steps'
PROFILE_ENV = 'CMKD_CUDA_PROFILE'
ENGINES = ('own', 'cudnn')


def plan(slot):
    """(network, batch), the most important first."""
    if slot.tiny:
        return [('resnet8', 4 if slot.emulated else 8)]
    return [(arch, batch) for batch in (64, 256) for arch in ('resnet8x4', 'resnet20')]


def engines(slot):
    return [e for e in ENGINES if e == 'own' or (slot.cuda and slot.o.cudnn != 'off')]


def step(slot, arch, batch, *more, engine='cudnn', blocks=None, precision=None, **how):
    """bench/gpu/step's JSON. cuDNN that was meant and is not there is a failure."""
    size = ['--steps', 64]
    if slot.emulated:
        size = ['--steps', 1, '--side', 8, '--images', 16]
    elif slot.tiny:
        size = ['--steps', 3, '--side', 16, '--images', 64, '--threads', 1]
    options = ['--device', slot.o.device, '--precision', precision or slot.precision, '--arch', arch, '--batch', batch]
    options += ['--blocks', blocks or (3 if slot.tiny else 31), *size, *more]
    result = slot.json([slot.program('bench/gpu/step'), *options], engine=engine, **how)
    meant = slot.cuda and engine == 'cudnn' and slot.o.cudnn != 'off'
    if meant and 'cuDNN' not in result['backend'].replace('no cuDNN', ''):
        raise Failed(f"step: meant for cuDNN, ran on {result['backend']}")
    return result


def profile(slot, arch, batch, engine, limit):
    """What the backend itself says a step is made of: a run of its own, since watching costs time."""
    path = slot.out / 'log' / 'profile.json'
    path.unlink(missing_ok=True)
    env = {PROFILE_ENV: str(path.resolve())}
    step(slot, arch, batch, '--loss', 'cmkd', engine=engine, blocks=1, limit=limit, env=env)
    if not path.exists():
        raise Missing(f'{slot.o.device} writes no profile')
    return json.loads(path.read_text())


def plans(slot):
    """{device and library: (passes of layers that cuDNN won, all)} of the plans that were measured and remembered."""
    try:
        devices = json.loads((slot.out / 'plans.json').read_text())['devices']
    except (OSError, ValueError, KeyError):
        return {}
    won = lambda chosen: sum(name.startswith('cudnn') for name in chosen.values())
    return {device: (won(chosen), len(chosen)) for device, chosen in devices.items()}


def losses(slot, limit):
    """bench/gpu/loss: the losses alone, one launch."""
    lines = slot.run([slot.program('bench/gpu/loss')], limit=limit).splitlines()
    rows = [json.loads(line) for line in lines if line.startswith('{')]
    if not rows:
        raise Missing(lines[-1] if lines else 'bench/gpu/loss printed nothing')
    return rows


def run(slot, m):
    for arch, batch in plan(slot):
        case = slot.machine.on(f'{arch} batch {batch}')
        for engine in engines(slot):
            for loss in ('kd', 'cmkd'):
                work = lambda limit: step(slot, arch, batch, '--loss', loss, engine=engine, limit=limit)
                m.run(case, f'{loss}, {engine}', work)
            if slot.cuda:
                m.run(case, f'profile, {engine}', lambda limit: profile(slot, arch, batch, engine, limit))
    if slot.cuda and not slot.tiny:
        m.run(slot.machine.on('losses'), 'loss', lambda limit: losses(slot, limit))


def row(slot, m, case, engine, one):
    hbm, tflops, _ = slot.machine.bounds(slot.precision)
    kd, profiled = m.result(case, f'kd, {engine}'), m.result(case, f'profile, {engine}')
    share = lambda top, per_image: number(top and one['img_per_s'] * per_image / (top * 1e10), '{:.1f} %')
    rates = [number(kd and kd['img_per_s']), number(one['img_per_s']), number(one['step_us'])]
    bounds = [share(hbm, one['bytes_per_image']), share(tflops, one['flop_per_image'])]
    return [case, engine, one['precision'], *rates, number(profiled and profiled['kernels_per_step']), *bounds]


def make_table(slot, m):
    rows, notes = [], ''
    hbm, tflops, where = slot.machine.bounds(slot.precision)
    for case in m.cases():
        for engine in ENGINES:
            one, profiled = m.result(case, f'cmkd, {engine}'), m.result(case, f'profile, {engine}')
            if one:
                rows.append(row(slot, m, case, engine, one))
                notes += f"- {case}, {engine}: {one['backend']}"
                if profiled:
                    parts = sorted(profiled['ms'].items(), key=lambda part: -part[1])
                    us = lambda ms: 1000 * ms / max(1, profiled['steps'])
                    notes += '; us a step, profiled: ' + ', '.join(f'{name} {us(ms):.0f}' for name, ms in parts)
                notes += '\n'
    for device, (won, passes) in plans(slot).items():
        notes += f'- plans of {device}: cuDNN won {won} of {passes} passes of layers\n'
    text = f'''
Images/s, median of blocks of 64 steps. Every step gathers, augments and normalises uint8 images; the teacher's rows come
from the host. The HBM bound ({number(hbm, '{:g}')} TB/s, {where or 'not known'}) counts every activation once per pass that needs it
(bench/gpu/step.c); FLOP: 6 per multiply-add, of {number(tflops, '{:g}')} TFLOP/s.

'''
    heads = ['network', 'convolutions', 'precision', 'KD', 'CMKD', 'us a step', 'nodes', 'of HBM', 'of tensor cores']
    text = machines(m) + text + table(heads, rows) + '\n' + notes
    for case in m.cases():
        us = lambda r: [f"{r['us']:.2f}", f"{r['bytes_us']:.2f}", number(r['cub_two_sorts_us'] or None, '{:.2f}')]
        alone = [[r['case'], r['batch'], r['classes'], *us(r)] for r in m.result(case, 'loss') or ()]
        if alone:
            text += '\n' + table([f'loss alone, us ({case})', 'B', 'C', 'us', 'bytes alone', 'two CUB sorts'], alone)
    return text
