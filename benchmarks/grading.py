r"""The grader on the MATH problems: every box, every answer against itself, and thousands of pairs that must not be equal, and that must.

    python benchmarks/grading.py --data_path FOLDER_OR_TAR [--n 2000] [--workers 2] [--limit 5] [--out FILE]

FOLDER_OR_TAR holds the problems as they were published: `MATH/{train,test}/<subject>/<number>.json`. The steps:

boxes      `extract_boxed(solution)` of all problems: how many have no box, or nothing in it
itself     each right answer against itself; and of the different ones, how many math-verify by itself reads and finds equal to themselves
different  --n pairs of two problems' answers whose values differ: their spellings do, and their numbers too where both are numbers
hard       right answers against their own wrong neighbours: plus one, sign, digits in another order, other brackets, other letters
same       right answers against other ways to write them: \dfrac, spaces, decimals, sums and lists in another order

Pairs that were judged wrongly are printed (with --show); the file of --out holds numbers only, no MATH text."""
import argparse, json, random, re, tarfile, time
from collections import Counter
from decimal import Decimal
from pathlib import Path

from interlat.maths.answers import normalize_answer, read_answer
from interlat.maths.boxed import extract_boxed
from interlat.core.basics import InterlatError, check_file, cli, write_atomic
from interlat.core.crew import Crew
from interlat.maths.grade import MEMORY, Grader, grade_counts, warm
from interlat.runs.provenance import machine
from interlat.maths.latex import take_apart
from interlat.maths.values import math_verify_alone, plain_number


def problems(path):
    "(name, problem) of each JSON file in a folder or tar file."
    path = check_file(path, 'MATH problems', 'give the folder or tar file that holds MATH/train and MATH/test')
    if path.is_dir(): found = [(str(f.relative_to(path)), f.read_bytes()) for f in sorted(path.rglob('*.json'))]
    else:
        with tarfile.open(path) as tar: found = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile() and m.name.endswith('.json')]
    if not found: raise InterlatError(f'no JSON files in {path}')
    return [(name, json.loads(text)) for name, text in found]


def different(golds, n, rng):
    "`n` pairs of answers that differ: in spelling, and in value where both are numbers."
    out = []
    while len(out) < n:
        a, b = rng.sample(golds, 2)
        x, y = plain_number(read_answer(a)), plain_number(read_answer(b))
        if normalize_answer(a) != normalize_answer(b) and (x is None or x != y): out.append((a, b))
    return out


def wrong_neighbours(gold, rng):
    "(kind, answer) pairs that are close to the right answer and not it."
    plain, value = normalize_answer(gold), plain_number(read_answer(gold))
    formula = not read_answer(gold).words and take_apart(plain).kind == 'value' and not re.search(r'\\text|_|infty', plain)
    if formula:
        yield 'plus one', f'{plain}+1'
        if value != 0: yield 'sign', f'-({plain})'
    digits = re.findall(r'\d', plain)
    if value is not None and len({*digits}) > 1:
        turned = re.sub(r'\d', lambda m, it=iter(digits[::-1]): next(it), plain)
        other = plain_number(read_answer(turned))
        if other is not None and other != value: yield 'digits turned', turned
    part = take_apart(plain)
    if part.kind == 'tuple' and plain[0] in '([':
        yield 'brackets', ('[' if plain[0] == '(' else '(') + plain[1:]
        yield 'brackets', rf'\{{{plain[1:-1]}\}}'
        if len(part.parts) == 2 and part.parts[0] != part.parts[1] and ',' in plain: yield 'swapped', plain[0] + ','.join(reversed(plain[1:-1].split(',', 1))) + plain[-1]
    if part.kind == 'list': yield 'one more', plain + ',1234'
    if letters := sorted({c for c in re.sub(r'\\[a-zA-Z]+', ' ', plain) if c.isalpha()} - {'i', 'e', 'd'}):
        if formula: yield 'letter', re.sub(rf'(?<![a-zA-Z\\]){letters[0]}(?![a-zA-Z])', 'q', plain)


def same_written_otherwise(gold, rng):
    "(kind, answer) pairs that come to the right answer."
    answer = read_answer(gold)
    if '!' not in gold: yield 'spaces', re.sub(r'([-+=])', r' \1 ', gold)
    yield 'dollars', f'${gold}$'
    if r'\frac' in gold: yield 'dfrac', gold.replace(r'\frac', r'\dfrac')
    if '(' in gold and r'\left' not in gold and gold.count('(') == gold.count(')'): yield 'left and right', gold.replace('(', r'\left(').replace(')', r'\right)')
    value, plain = plain_number(answer), answer.core
    if value is not None and value.denominator > 1:
        d = value.denominator
        while d % 2 == 0: d //= 2
        while d % 5 == 0: d //= 5
        if d == 1: yield 'decimal', str(Decimal(value.numerator)/Decimal(value.denominator))
        yield 'slash', f'{value.numerator}/{value.denominator}'
        yield 'not reduced', rf'\frac{{{3*value.numerator}}}{{{3*value.denominator}}}'
    part = take_apart(plain)
    if part.kind == 'value' and not answer.words and not re.search(r'infty|\\text|_', plain):
        yield 'sum', f'({plain}) + 0'
        yield 'half and half', rf'\frac{{2({plain})}}{{2}}'
        if (m := re.fullmatch(r'([^-+()]+)([-+])([^-+()]+)', plain)) and m[1].count('{') == m[1].count('}'): yield 'terms turned', ('-' if m[2] == '-' else '') + m[3] + '+' + m[1]
    if part.kind == 'list' and not answer.words and all(p.kind == 'value' for p in part.parts): yield 'list turned', ', '.join(p.mark for p in reversed(part.parts))
    if part.kind == 'tuple' and all(p.kind == 'value' for p in part.parts): yield 'in parts', plain[0] + ', '.join(f'{p.mark}+0' if 'infty' not in p.mark else p.mark for p in part.parts) + plain[-1]
    if not answer.name and part.kind == 'value': yield 'named', f'x = {plain}' if 'x' not in plain else f'y = {plain}'


def alone(golds, workers, limit):
    "How many answers math-verify by itself reads, and finds equal to themselves."
    crew = Crew(workers, memory=MEMORY, warm=warm)
    try: said = [a for _, a in crew.each([(None, math_verify_alone, (g,)) for g in golds], limit) if isinstance(a, tuple)]
    finally: crew.close()
    return dict(n=len(golds), read=sum(r for r, _ in said), equal=sum(e for _, e in said))


def judged(grader, triples, wanted, show):
    "How many of the (kind, gold, answer) triples were judged as `wanted`: totals, and the wrong ones of each kind."
    grades = grader.grade([(gold, answer) for _, gold, answer in triples])
    off = [(kind, gold, answer, g.verdict) for (kind, gold, answer), g in zip(triples, grades) if g.equivalent != wanted]
    for row in off[:show]: print('   ', *map(repr, row))
    kinds = {k: [sum(kind == k for kind, *_ in off), n] for k, n in Counter(kind for kind, *_ in triples).items()}
    return dict(n=len(triples), off=len(off), rate=round(len(off)/max(1, len(triples)), 5), kinds=kinds, verdicts=grade_counts(grades))


def benchmark(data_path, n=2000, seed=0, workers=2, limit=5., show=20):
    "All of it: prints as it goes, returns what it found."
    rng, start = random.Random(seed), time.perf_counter()
    boxes = [extract_boxed(p['solution']) for _, p in problems(data_path)]
    out = dict(machine=machine(), n=n, seed=seed, workers=workers, limit=limit, problems=len(boxes), boxes=dict(none=sum(b is None for b in boxes), empty=sum(b == '' for b in boxes)))
    print(f"{len(boxes)} problems: {out['boxes']['none']} without a box, {out['boxes']['empty']} with nothing in it")
    golds = [b for b in boxes if b]
    unique = sorted({*golds})
    with Grader(workers, limit) as grader:
        itself = grader.grade([(g, g) for g in golds])
        out['itself'] = dict(n=len(golds), exact=sum(g.exact for g in itself), equivalent=sum(g.equivalent for g in itself))
        print('each against itself: {exact} exact and {equivalent} equivalent of {n}'.format(**out['itself']))
        out['alone'] = alone(unique, workers, limit)
        print('math-verify by itself reads {read} of {n} different ones and finds {equal} equal to themselves'.format(**out['alone']))
        few = rng.sample(unique, min(n, len(unique)))
        steps = dict(different=([('other', a, b) for a, b in different(golds, n, rng)], False),
                     hard=([(kind, g, w) for g in few for kind, w in wrong_neighbours(g, rng) if w != normalize_answer(g)], False),
                     same=([(kind, g, w) for g in few for kind, w in same_written_otherwise(g, rng)], True))
        for name, (triples, wanted) in steps.items():
            began = time.perf_counter()
            out[name] = dict(judged(grader, triples, wanted, show), seconds=round(time.perf_counter() - began, 1))
            print('{0}: {off} of {n} judged {1} ({rate:.3%}), {seconds} s; {verdicts}'.format(name, 'unequal' if wanted else 'equal', **out[name]), *(f'    {k}: {a} of {b}' for k, (a, b) in out[name]['kinds'].items()), sep='\n')
    out['seconds'] = round(time.perf_counter() - start, 1)
    print(f"{out['seconds']} s in all")
    return out


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data_path', required=True, help='folder or tar file of the MATH problems')
    parser.add_argument('--n', type=int, default=2000, help='pairs of different problems, and right answers to vary')
    parser.add_argument('--seed', type=int, default=0, help='of the choice')
    parser.add_argument('--workers', type=int, default=2, help='processes to grade in')
    parser.add_argument('--limit', type=float, default=5., help='seconds a pair')
    parser.add_argument('--show', type=int, default=20, help='wrongly judged pairs to print for each step')
    parser.add_argument('--out', default='', help='JSON file for the numbers')
    a = parser.parse_args(args)
    result = benchmark(a.data_path, a.n, a.seed, a.workers, a.limit, a.show)
    if a.out: write_atomic(a.out, json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': raise SystemExit(cli(main))
