"""1. The device tests: every operation and the whole backend against the double reference, from what can fail least to
what can fail most."""

import re
from results import Failed, OutOfTime, machines, table

TITLE = 'Device tests'
UNCHECKED = {'CMKD_CUDA_SELFCHECK': '0'}  # these tests are the check
CHECKED = {'CMKD_CUDA_CHECK': '1'}  # waits after every operation and names the one that fails; no captures
BACKEND = ('backend', 'runs', 'failures', 'seam')
# case, engine, programs, environment. The third adds captures to the second, the fourth adds cuDNN.
CASES = (
    ('own kernels', 'own', ('kernels', 'ops', 'norm', 'conv', 'loss'), {}),
    ('backend, own convolutions, checked', 'own', BACKEND, CHECKED),
    ('backend, own convolutions', 'own', BACKEND, {}),
    ('backend, cuDNN', 'cudnn', BACKEND, {}),
)
ENDED = re.compile(r'^\[ +(OK|FAILED|SKIPPED) +\] (\w+)$', re.M)
GOOD = ('ok', 'skipped')
STARTED = re.compile(r'^\[ RUN +\] (\w+)$', re.M)


def outcomes(text):
    """{test: ok, failed or skipped} of a program's output up to the first failure: after one the device's context may
    be broken for all that follow. And the test that had begun and did not end, or None."""
    found = {}
    for state, test in ENDED.findall(text):
        found[test] = state.lower()
        if state == 'FAILED':
            return found, None
    begun = [test for test in STARTED.findall(text) if test not in found]
    return found, begun[-1] if begun else None


def why(text, test):
    """What a failed test said, without what the others did."""
    lines = text[text.find(f'] {test}\n') :].splitlines()[1:12]
    return ' | '.join(line.strip() for line in lines if line.strip() and not line.startswith('['))[:600]


def test_program(slot, measurement, key, program, engine='own', env=None, tool=(), limit=60):
    """Runs a test program until all its tests have an outcome: past a test that fails, crashes or hangs it goes on in
    a new process. Outcomes are kept in the case, so a program that was cut goes on with what is left."""
    case = measurement.case(key)
    known, said = case.setdefault('tests', {}).setdefault(program, {}), case.setdefault('said', {})
    command = [*tool, slot.program(f'tests/{program}')]
    if measurement.ended(key, program):  # a second try
        for test in [test for test, state in known.items() if state not in GOOD]:
            del known[test]
    plans, slow = {'CMKD_CUDA_PLANS': str(slot.out.resolve() / 'plans-of-tests.json')}, set()
    while True:
        full = {**UNCHECKED, **plans, **(env or {}), 'CMKD_TESTS_DONE': ','.join(known)}
        ended = slot.start(command, engine=engine, limit=limit, env=full)
        found, begun = outcomes(ended.text)
        if found and all(state == 'skipped' for state in found.values()) and 'note: on ' not in ended.text:
            reasons = [line[6:] for line in ended.text.splitlines() if line.startswith('SKIP: ')]
            raise Failed(f"every test was skipped: {reasons[0] if reasons else 'no reason given'}")
        if begun and ended.status != 0 and ended.cut is None:
            found[begun] = 'crashed'
        elif begun and ended.cut == 'limit' and not found:
            if engine == 'own' or begun in slow:
                found[begun] = f'over {limit:g} s'
            slow.add(begun)  # the plans of cuDNN's that it has timed are remembered: once more
        known.update(found)
        for test, state in found.items():
            if state not in GOOD:
                said[f'{program}/{test}'] = why(ended.text, test) or ended.why()
        measurement.save(pack=False)
        yield ended
        if ended.status == 0 or not (found or begun and ended.cut == 'limit'):
            return


def bad(tests):
    return [f'{test} ({state})' for test, state in tests.items() if state not in GOOD]


def run_program(slot, measurement, key, program, engine, env, limit):
    for ended in test_program(slot, measurement, key, program, engine, env, limit=limit):
        if ended.cut == 'slot':
            raise OutOfTime
    known = measurement.case(key)['tests'][program]
    if bad(known) or not known or ended.status != 0:
        raise Failed(', '.join(bad(known)) or ended.why())
    return {state: sum(s == state for s in known.values()) for state in dict.fromkeys(known.values())}


def plan(slot):
    """On a CPU there is nothing to test; in emulation one program stands for all."""
    if not slot.cuda:
        return ()
    return (('own kernels', 'own', ('kernels',), {}),) if slot.emulated else CASES


def run(slot, m):
    for key, engine, names, env in plan(slot):
        for program in [f'test_device_{name}' for name in names]:
            work = lambda limit: run_program(slot, m, key, program, engine, env, limit)
            m.run(key, program, work, continues=True)


def make_table(slot, m):
    rows, words = [], ''
    for key, case in m.cases().items():
        for program, tests in case.get('tests', {}).items():
            of = lambda wanted: sum(state == wanted for state in tests.values())
            whole = 'yes' if m.ended(key, program) else 'no'
            counts = [of('ok'), len(bad(tests)), of('skipped'), whole]
            rows.append([f'{key}: {program}', *counts, ', '.join(bad(tests)) or '-'])
        words += ''.join(f'- {key}: {test}: {said}\n' for test, said in case.get('said', {}).items())
    heads = ['program', 'ok', 'failed', 'skipped', 'to its end', 'which failed']
    return f'{machines(m)}\n{table(heads, rows)}' + (f'\n{words}' if words else '')
