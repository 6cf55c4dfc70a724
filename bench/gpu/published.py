"""5. The published result: every loss, seed after seed, 240 epochs from one cache; then CMKD from 1, 4 and 16 views."""
import statistics
from experiment import Experiment, from_item
from slot import machines, number
import slot as s

TITLE = 'Accuracies on CIFAR-100'
# name, --loss, key in the recipe's published numbers
LOSSES = (('CE', 'ce', 'student'), ('KD', 'kd', 'kd'), ('DKD', 'dkd', 'dkd'), ('CMKD, easy-spearman', 'cmkd:gate=easy-spearman', 'cmkd'), ('CMKD, hard-spearman', 'cmkd:gate=hard-spearman', 'cmkd'), ('DKD+CMKD', 'dkd+cmkd', 'dkd+cmkd'))
VIEWS = (1, 4, 16)


def queue(slot):
    """(case, loss, views or None, seed), in the order of work."""
    seeds = range(1, slot.o.seeds + 1)
    runs = [(f'{name}, seed {seed}', loss, None, seed) for seed in seeds for name, loss, _ in LOSSES]
    return runs + [(f'CMKD from {views} views, seed {seed}', 'cmkd:gate=easy-spearman', views, seed) for seed in seeds for views in VIEWS]


def subset(slot, e, views):
    if views is None:
        return e.cache
    path = slot.out / f'views-{views}.h5'
    if not path.exists():
        slot.run([slot.program('cmkd-cache'), 'subset', e.cache, path, '--views', '0' if views == 1 else f'0-{views - 1}', '--quiet'])
    return path


def train(slot, e, case, key, loss, views, seed):
    e.check()
    from_item(slot, 3, 'cache', 'build')
    cache = subset(slot, e, views)
    case['loss'], case['views'], case['seed'], case['batch'] = loss, views or 'all', seed, e.batch
    case.setdefault('slots', []).append(slot.machine['card'])
    out = slot.out / 'runs' / ''.join(c if c.isalnum() else '-' for c in key.lower())
    case['run'] = str(out.relative_to(slot.out))
    result = e.train('--cache', cache, '--data', e.data, '--test-cache', str(e.cache).replace('.h5', '.test.h5'), '--loss', loss, '--epochs', e.epochs, '--seed', seed, out=out, cut=True)
    case.update(last=result['last']['top1'], best=result['best']['top1'], best_epoch=result['best']['epoch'], seconds=result['seconds'], epochs=result['epochs'], sha256=result.get('last_sha256'))


def run(slot, item):
    e = Experiment(slot)
    for key, loss, views, seed in queue(slot):
        item.do(key, 0, lambda case: train(slot, e, case, key, loss, views, seed))


def spread(values):
    return '-' if not values else f'{values[0]:.2f}' if len(values) == 1 else f'{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}'


def row(cases, name, published):
    done = [c for c in cases if c.get('done')]
    return [name, len(done), spread([c['last'] for c in done]), spread([c['best'] for c in done]), number(published, '{:.2f}'), number(statistics.mean(c['seconds'] for c in done) if done else None)]


def table(slot, item):
    cases, e = item.data['cases'], Experiment(slot)
    published = e.published()
    heads = ['', 'seeds', 'last top-1', 'best top-1', 'published', 'seconds a run']
    of = lambda stem: [c for key, c in cases.items() if key.startswith(stem + ', seed')]
    epochs = sorted({c['epochs'] for c in cases.values() if c.get('done')})
    text = machines(c for c in cases.values() if c.get('done')) + f'''
{e.student_arch} from {e.teacher_arch}, {slot.precision}, batch {e.batch}, {', '.join(map(str, epochs)) or e.epochs} epochs, all views; mean and sample deviation over seeds, `published` is the literature's best epoch. Seconds are
the trainer's own, tests included.

'''
    text += s.table(heads, [row(of(name), name, published.get(key)) for name, _, key in LOSSES])
    text += '\nHow many views does one need? CMKD, easy-spearman:\n\n'
    rows = [row(of(f'CMKD from {v} views'), f'{v}', None) for v in VIEWS] + [row(of('CMKD, easy-spearman'), 'all', None)]
    return text + s.table(['views'] + heads[1:], rows)
