"""2. Images/s of training steps: ours, PyTorch eager and PyTorch compiled, on the same card in the same case."""
import json
from slot import Failed, Missing, PROFILE_ENV, machines, median, number
import slot as s

TITLE = 'Training throughput beside PyTorch'
AIMS = {('resnet8x4', 64): (100e3, 3, 1.5), ('resnet20', 64): (110e3, None, None), ('resnet20', 256): (250e3, None, None)}  # images/s, x eager, x compiled: on an H100
ROUNDS = 3


def plan(slot):
    return [('resnet8', 8)] if slot.tiny else [(a, b) for a in ('resnet8x4', 'resnet20') for b in (64, 256)]


def ours(slot, arch, batch, **how):
    size = ['--steps', 3, '--side', 16, '--images', 64, '--threads', 1] if slot.tiny else ['--steps', 64]
    return slot.json([slot.program('bench/gpu/step'), '--device', slot.o.device, '--precision', slot.precision, '--arch', arch, '--batch', batch, '--blocks', how.pop('blocks', 3 if slot.tiny else 31), *size,
                      *how.pop('more', [])], **how)


def torch_step(slot, arch, batch, *more, limit=240):
    size = ['--steps', 2, '--blocks', 2, '--warmup', 1] if slot.tiny else []
    return slot.json([slot.torch(), slot.o.root / 'bench/gpu/torch_step.py', '--device', slot.o.device, '--precision', slot.precision, '--arch', arch, '--batch', batch, *size, *more],
                     ours=False, limit=limit, env={'TORCHINDUCTOR_CACHE_DIR': str(slot.out.resolve() / 'inductor')})


def torch_train(slot, arch, batch, *more, limit=240):
    steps = ['--steps', 3, '--warmup', 1] if slot.tiny else ['--steps', 200, '--warmup', 30]
    amp = ['--amp'] if slot.precision in ('bf16', 'fp16') else []
    return slot.json([slot.torch(), slot.peer(), '--device', slot.o.device, '--layout', 'nhwc', '--loss', 'kd', *amp, '--arch', arch, '--batch', batch, *steps, *more], ours=False, limit=limit)


def kernels(slot, arch, batch):
    """What the backend itself says a step is made of: a run of its own, since watching costs time."""
    path = slot.out / 'log' / 'profile.json'
    path.unlink(missing_ok=True)
    ours(slot, arch, batch, blocks=1, env={PROFILE_ENV: str(path.resolve())})
    return json.loads(path.read_text()) if path.exists() else None


def measure(slot, case, arch, batch):
    runs = {'ours': [], 'eager': [], 'eager_peer': [], 'compiled': [], 'compiled_peer': []}
    case['batch'], case['runs'] = batch, runs

    def peer(name, call):
        try:
            runs[name].append(call())
        except (Missing, Failed) as e:
            case.setdefault('left_out', {})[name] = str(e)

    for i in range(1 if slot.tiny else ROUNDS):
        runs['ours'].append(ours(slot, arch, batch, more=['--loss', 'kd']))
        peer('eager', lambda: torch_step(slot, arch, batch))
        peer('eager_peer', lambda: torch_train(slot, arch, batch))
        if slot.cuda and i == 0:
            peer('compiled', lambda: torch_step(slot, arch, batch, '--compile', limit=400))
            peer('compiled_peer', lambda: torch_train(slot, arch, batch, '--compile', limit=400))
    case['cmkd_loss'] = ours(slot, arch, batch, more=['--loss', 'cmkd'])
    case['kernels'] = kernels(slot, arch, batch)
    hbm, tflops, where = slot.bounds(slot.precision)
    case['bounds'] = {'hbm_tb_s': hbm, 'tflops': tflops, 'from': where}


def run(slot, item):
    for arch, batch in plan(slot):
        item.do(f'{arch} batch {batch}', 420, lambda case: measure(slot, case, arch, batch))


def rate(case, who):
    return median([r['img_per_s'] for r in case['runs'][who]])


def table(slot, item):
    rows, parts = [], []
    for key, case in item.data['cases'].items():
        if not case.get('done'):
            continue
        one, us = case['runs']['ours'][0], rate(case, 'ours')
        eager, compiled = (max(filter(None, (rate(case, w), rate(case, w + '_peer'))), default=None) for w in ('eager', 'compiled'))
        bounds = case['bounds']
        of = lambda top, per_image: '-' if not top else f'{100 * us * per_image / (top * 1e12):.1f} %'
        aim = AIMS.get((one['arch'], case['batch']), (None,) * 3) if slot.cuda else (None,) * 3
        rows.append([one['arch'], case['batch'], case['precision'], number(us), number(rate(case, 'eager')), number(rate(case, 'eager_peer')), number(rate(case, 'compiled')), number(rate(case, 'compiled_peer')),
                     '-' if not eager else f'{us / eager:.2f}', '-' if not compiled else f'{us / compiled:.2f}', number(aim[0]), of(bounds['hbm_tb_s'], one['bytes_per_image']), of(bounds['tflops'], one['flop_per_image']),
                     number(case['cmkd_loss']['img_per_s'])])
        k = case.get('kernels')
        line = f"- {key}: {one['step_us']:.0f} us a step, {one['steps_per_run']} steps a call, {one['backend']}"
        if k:
            line += f"; {k['kernels_per_step']} kernels a step; ms a step: " + ', '.join(f'{name} {ms / max(1, k["steps"]):.4f}' for name, ms in sorted(k['ms'].items(), key=lambda x: -x[1]))
        for name, why in case.get('left_out', {}).items():
            line += f'; {name} left out: {why}'
        b = case['bounds']
        parts.append(line + (f"; bounds {b['hbm_tb_s']} TB/s, {b['tflops']} TFLOP/s ({b['from']})" if b['from'] else ''))
    text = machines(item.data['cases'].values()) + f'''
Images/s with KD, medians of {ROUNDS} alternating rounds (compiled: one). Ours gathers, augments and normalises uint8 images and takes the teacher's rows
from the host in every step; PyTorch's steps find one float batch ready in device memory. `blocks`: bench/gpu/torch_step.py, one wait per
block of steps, fused SGD; `each step`: the peer script, which waits for every step. Ratios are against the faster of the two. The HBM bound counts
every activation once per pass that needs it (bench/gpu/step.c), also what stays in L2; FLOP: 6 per multiply-add.

'''
    return text + s.table(['network', 'batch', 'precision', 'ours', 'eager, blocks', 'eager, each step', 'compiled, blocks', 'compiled, each step', 'x eager', 'x compiled', 'aim', 'of HBM', 'of tensor cores', 'ours, CMKD'], rows) \
        + '\n' + '\n'.join(parts) + '\n'
