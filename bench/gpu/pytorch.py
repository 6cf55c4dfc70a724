"""3 and 6. Our training steps beside PyTorch's, eager and compiled, on the same card in the same slot."""

from pathlib import Path
import steps
from results import Missing, machines, number, table

EAGER, COMPILED = 'Beside PyTorch, eager', 'Beside PyTorch, compiled'
AIMS = {  # images/s on an H100
    ('resnet8x4', 64): 100e3,
    ('resnet20', 64): 110e3,
    ('resnet8x4', 256): 175e3,
    ('resnet20', 256): 250e3,
}
NOTE = '''
Images/s of training steps with KD, one run after the other. Ours gathers, augments and normalises uint8 images and takes
the teacher's rows from the host in every step; PyTorch's steps find one float batch ready in device memory. `blocks`
waits once a block of steps (bench/gpu/torch_step.py), `each step` every step (the peer script); the ratio is against the
faster of the two.

'''


def torch_step(slot, arch, batch, *more, precision=None, **how):
    """bench/gpu/torch_step.py: one wait a block of steps, fused SGD."""
    size = ['--steps', 2, '--blocks', 2, '--warmup', 1] if slot.tiny else []
    script = slot.o.root / 'bench/gpu/torch_step.py'
    options = ['--device', slot.o.device, '--precision', precision or slot.precision, '--arch', arch, '--batch', batch]
    return slot.json([slot.torch(), script, *options, *size, *more], ours=False, **how)


def torch_train(slot, arch, batch, *more, precision=None, **how):
    """The peer script, which waits for every step."""
    script = Path(slot.o.shared) / 'peers' / 'torch_train.py'
    if not script.is_file():
        raise Missing(f'{script} is not here (CMKD_SHARED)')
    size = ['--steps', 3, '--warmup', 1] if slot.tiny else ['--steps', 200, '--warmup', 30]
    amp = ['--amp'] if (precision or slot.precision) in ('bf16', 'fp16') else []
    options = ['--device', slot.o.device, '--layout', 'nhwc', '--loss', 'kd', *amp, '--arch', arch, '--batch', batch]
    return slot.json([slot.torch(), script, *options, *size, *more], ours=False, **how)


def eager(slot, m, case, arch, batch):
    m.run(case, 'ours', lambda limit: steps.step(slot, arch, batch, '--loss', 'kd', limit=limit))
    m.run(case, 'eager, blocks', lambda limit: torch_step(slot, arch, batch, limit=limit))
    m.run(case, 'eager, each step', lambda limit: torch_train(slot, arch, batch, limit=limit))


def run_eager(slot, m):
    for arch, batch in steps.plan(slot):
        eager(slot, m, slot.machine.on(f'{arch} batch {batch}'), arch, batch)


def run_compiled(slot, m):
    """With ours and eager once more, in the same slot."""
    if not slot.cuda:
        return
    # inductor keeps what it has compiled: compiling that is cut goes on there
    how, cut = {'limits': 4, 'continues': True}, {'continues': True}
    for arch, batch in steps.plan(slot):
        case = slot.machine.on(f'{arch} batch {batch}')
        eager(slot, m, case, arch, batch)
        compiled = lambda script: lambda limit: script(slot, arch, batch, '--compile', limit=limit, **cut)
        m.run(case, 'compiled, blocks', compiled(torch_step), **how)
        m.run(case, 'compiled, each step', compiled(torch_train), **how)


def make_table(slot, m):
    rows = []
    for case, value in m.cases().items():
        ours = m.result(case, 'ours')
        for which in ('eager', 'compiled'):
            found = [m.result(case, f'{which}, {who}') for who in ('blocks', 'each step')]
            if ours and (any(found) or which == 'eager'):
                rate, (blocks, each) = ours['img_per_s'], (r and r['img_per_s'] for r in found)
                best = max(filter(None, (blocks, each)), default=None)
                aim = AIMS.get((ours['arch'], ours['batch'])) if slot.cuda else None
                numbers = [number(rate), number(blocks), number(each), number(best and rate / best, '{:.2f}'), number(aim)]
                rows.append([case, ours['precision'], which, *numbers])
    heads = ['network', 'precision', 'PyTorch', 'ours', 'PyTorch, blocks', 'PyTorch, each step', 'x', 'aim']
    return machines(m) + NOTE + table(heads, rows)
