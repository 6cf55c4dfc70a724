"""9. The published result: every loss, seed after seed, 240 epochs from one cache; then CMKD from 1, 4 and 16 views."""

import shutil, statistics
from experiment import Experiment
from results import Failed, machines, number, table

TITLE = 'Accuracies on CIFAR-100'
# name, --loss, key in the recipe's published numbers
LOSSES = (
    ('CE', 'ce', 'student'),
    ('KD', 'kd', 'kd'),
    ('DKD', 'dkd', 'dkd'),
    ('CMKD, easy-spearman', 'cmkd:gate=easy-spearman', 'cmkd'),
    ('CMKD, hard-spearman', 'cmkd:gate=hard-spearman', 'cmkd'),
    ('DKD+CMKD', 'dkd+cmkd', 'dkd+cmkd'),
)
VIEWS = (1, 4, 16)
KEPT = ('log.jsonl', 'config.json')


def queue(slot):
    """(case, run, loss, views or None, seed), in the order of work."""
    seeds = range(1, slot.o.seeds + 1)
    losses, some = (LOSSES[:2], VIEWS[:1]) if slot.emulated else (LOSSES, VIEWS)
    runs = [(name, f'seed {seed}', loss, None, seed) for seed in seeds for name, loss, _ in losses]
    few = lambda views, seed: (f'CMKD from {views} views', f'seed {seed}', 'cmkd:gate=easy-spearman', views, seed)
    return runs + [few(views, seed) for seed in seeds for views in some]


def cache_of(slot, e, views):
    whole = e.cached()
    if views is None:
        return whole
    path = slot.work / f'views-{views}.h5'
    if not path.exists():
        which = '0' if views == 1 else f'0-{views - 1}'
        slot.run([slot.program('cmkd-cache'), 'subset', whole, path, '--views', which, '--quiet'])
    return path


def folder(slot, case, name):
    return slot.out / 'runs' / ''.join(c if c.isalnum() else '-' for c in f'{case}, {name}'.lower())


def train(slot, e, out, loss, views, seed):
    cache, test_cache = cache_of(slot, e, views), str(e.cache).replace('.h5', '.test.h5')
    command = ['--cache', cache, '--test-cache', test_cache, '--loss', loss, '--epochs', e.epochs, '--seed', seed]
    try:
        result = e.train(*command, out=out, continues=True)
    except Failed as error:
        if 'cache_sha256' not in str(error):
            raise
        # begun on another kind of card, whose teacher's last bits differ
        shutil.rmtree(out)
        print(f'    starts over: {error}', flush=True)
        result = e.train(*command, out=out, continues=True)
    last, best = result['last'], result['best']
    settings = {'loss': loss, 'views': views or 'all', 'seed': seed, 'batch': e.batch, 'epochs': result['epochs']}
    numbers = {'last': last['top1'], 'best': best['top1'], 'best_epoch': best['epoch'], 'seconds': result['seconds']}
    return settings | numbers | {'sha256': result.get('last_sha256')}


def run(slot, m):
    e = Experiment(slot)
    for case, name, loss, views, seed in queue(slot):
        out = folder(slot, case, name)
        work = lambda limit: train(slot, e, out, loss, views, seed)
        done = m.run(case, name, work, limits=0, continues=True)
        for path in out.iterdir() if done and out.exists() else ():
            if path.name not in KEPT:
                path.unlink()  # results travel; weights can be made again


def spread(values):
    if len(values) < 2:
        return f'{values[0]:.2f}' if values else '-'
    return f'{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}'


def row(m, case, name, published):
    done = m.results(case, 'seed')
    seconds = statistics.mean(r['seconds'] for r in done) if done else None
    accuracies = [spread([r[which] for r in done]) for which in ('last', 'best')]
    return [name, len(done), *accuracies, number(published, '{:.2f}'), number(seconds)]


def make_table(slot, m):
    e = Experiment(slot)
    published = e.published()
    heads = ['', 'seeds', 'last top-1', 'best top-1', 'published', 'seconds a run']
    epochs = sorted({r['epochs'] for case in m.cases() for r in m.results(case, 'seed')})
    trained = ', '.join(map(str, epochs)) or e.epochs
    text = machines(m) + f'''
{e.student_arch} from {e.teacher_arch}, {slot.precision}, batch {e.batch}, {trained} epochs, all views; mean and sample
deviation over seeds, `published` is the literature's best epoch. Seconds are the trainer's own, tests included.

'''
    text += table(heads, [row(m, name, name, published.get(key)) for name, _, key in LOSSES])
    text += '\nHow many views does one need? CMKD, easy-spearman:\n\n'
    rows = [row(m, f'CMKD from {v} views', f'{v}', None) for v in VIEWS] + [row(m, 'CMKD, easy-spearman', 'all', None)]
    return text + table(['views'] + heads[1:], rows)
