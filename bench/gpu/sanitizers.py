"""4. compute-sanitizer over the device tests: reads and writes where they may not be (memcheck), races in shared memory
(racecheck)."""

import re
from device_tests import bad, test_program
from results import Failed, Missing, OutOfTime, machines, table

TITLE = 'compute-sanitizer'
# each is cut where time is up, and goes on with the tests that are left
ORDER = (('memcheck', 'conv'), ('racecheck', 'loss'), ('memcheck', 'ops'), ('memcheck', 'kernels'), ('memcheck', 'loss'))
ORDER += (('racecheck', 'ops'), ('racecheck', 'conv'), ('synccheck', 'loss'), ('initcheck', 'ops'))
SUMMARY = re.compile(r'(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)')
REPORT = re.compile(r'^=========(?! COMPUTE-SANITIZER| (?:ERROR|RACECHECK) SUMMARY| *$).*$', re.M)


def check(slot, m, tool, program, limit):
    sanitizer = slot.machine.sanitizer()
    if not sanitizer:
        raise Missing('compute-sanitizer is not here')
    case = m.case(tool)
    if m.ended(tool, program):  # a second try, of all tests: reports do not say whose they are
        case['found'].pop(program, None)
        case['tests'].pop(program, None)
    found = case.setdefault('found', {}).setdefault(program, {'errors': 0, 'report': []})
    command = [sanitizer, '--tool', tool, '--print-limit', '20']
    for ended in test_program(slot, m, tool, program, tool=command, limit=limit):
        report = [line.strip('= ') for line in REPORT.findall(ended.text + ended.errors)]
        errors = [int(a or b) for a, b in SUMMARY.findall(ended.text + ended.errors)]
        found['errors'] += max(errors, default=len(report))
        found['report'] = (found['report'] + report)[:60]
        if ended.cut == 'slot':
            raise OutOfTime
        if not errors and not ended.cut:
            raise Failed(f'{tool}: no summary: {(report or [ended.why()])[-1]}')
    tests = case['tests'][program]
    if found['errors'] or bad(tests):
        failed = ', '.join(bad(tests)) or 'no test failed'
        raise Failed(f"{found['errors']} errors; {failed}; {(found['report'] or ['no report'])[0]}")
    return {'errors': 0, 'tests': len(tests)}


def run(slot, m):
    if not slot.cuda or slot.tiny:
        return
    for tool, name in ORDER:
        program = f'test_device_{name}'
        m.run(tool, program, lambda limit: check(slot, m, tool, program, limit), continues=True)


def make_table(slot, m):
    rows, words = [], ''
    for tool, case in m.cases().items():
        for program, found in case.get('found', {}).items():
            tests = case.get('tests', {}).get(program, {})
            whole = 'yes' if m.ended(tool, program) else 'no'
            rows.append([f'{tool} {program}', len(tests), whole, found['errors'], ', '.join(bad(tests)) or '-'])
            words += ''.join(f'    {line}\n' for line in found['report'])
    text = 'Only on a GPU, not in a dry run.\n\n' if not slot.cuda or slot.tiny else machines(m) + '\n'
    heads = ['tool and program', 'tests', 'to its end', 'errors', 'tests that failed']
    return text + table(heads, rows) + (f'\n{words}' if words else '')
