"Kinds of answers beside their false friends: each pair both ways."
import time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from interlat.maths.boxed import extract_boxed

pytest.importorskip('math_verify')
from interlat.maths.grade import VERDICTS, Grader

M = r'\begin{pmatrix}1&2\\3&4\end{pmatrix}'
EQUAL = {
 'regions': [(r'm \geq \sqrt{2}', r'm \in [\sqrt{2}, +\infty)'), ('x<3', r'x \in (-\infty,3)'), ('t > 2/3', r'\left(\frac23, \infty\right)'), (r'-1 \le x < 4', r'x\in[-1,4)'), ('0<f(x)<1', '(0,1)'), (r'-a \ge -1', r'a \le 1'), ('3x > 6', 'x > 2'), ('5 >= y', r'y \le 5'),
             (r'x \neq 3', 'x != 3'), (r'x \ne 3', r'(-\infty,3)\cup(3,\infty)'), (r'x\ne 3', r'\mathbb{R} \setminus \{3\}'), (r'x\in\mathbb{R}\setminus\{3\}', 'x != 3'), (r'\{x \mid x \ge 2\}', r'[2,\infty)'), (r'\{x : -1 < x < 1\}', '(-1,1)'), ('|x| < 3', '-3 < x < 3'),
             ('x < 1 or x > 3', r'(-\infty,1)\cup(3,\infty)'), (r'x < 1 \text{ or } x \ge 3', r'(-\infty,1) \text{ or } [3,\infty)'), (r'(-\infty,1)\cup[3,\infty)', r'[3,\infty), (-\infty,1)'), ('x > 1 and x < 3', '(1,3)'), (r'(-\infty, 0) U (1, \infty)', r'x<0\text{ or }x>1'),
             (r'2\pi<x', r'x>2\pi'), (r'2\pi<x<3\pi', r'(2\pi, 3\pi)'), ('x = 1 or x > 5', r'\{1\}\cup(5,\infty)'), (r'x\in\{1,2\}', '1, 2'), (r'\text{all real numbers}', r'(-\infty,\infty)'), (r'\text{no solution}', r'\emptyset'), (r'\theta \in (0, \pi)', r'0 < \theta < \pi')],
 'programs': [(r'e^{16}-1', '-1 + exp(16)'), ('1024', '2**10'), (r'\sqrt{2}/2', 'sqrt(2)/2'), (r'\frac{\sqrt{2}}{2}', 'sqrt(2)/2'), (r'2\pi', '2*pi'), (r'[1, \infty)', '[1, oo)'), ('1000', '1e3'), ('300000000', '3.0e8'), (r'\frac{1}{1000}', '1e-3'),
              ('x^{3}+1', 'x**3 + 1'), (r'\ln 2', 'log(2)'), (r'\log_2 3', 'log(3, 2)'), ('2e', '2*E'), ('1+2i', '1 + 2*I'), (r'\frac{x^2}{2}', 'x**2/2'), (r'\frac{1}{3}', 'Rational(1, 3)'), (r'|x-1|', 'Abs(x - 1)'), (M, 'Matrix([[1, 2], [3, 4]])'), ('(0,1]', 'Interval.Lopen(0, 1)'), (r'\{1,2\}', 'FiniteSet(1, 2)'),
              (r'\binom{5}{2}', 'binomial(5, 2)'), (r'\frac{1}{12}', '0.08333333333333333'), (r'\sqrt{17}', '4.123105625617661'), (r'2\cos x', '2*cos(x)'), (r'\arctan 2', 'atan(2)'), ('x^10', 'x**10'), ('2.74', '2,74')],
 'percent': [(r'28\%', w) for w in ('28 pct', '28 percent', '28 per cent', '28 percentage', r'28\text{ pct}', '28%', '28', '0.28', r'28\text{ per cent}', '$28$ %')],
 'matrices': [(M, m) for m in (r'\left[\begin{array}{cc}1&2\\3&4\end{array}\right]', r'\left(\begin{array}{rr} 1 & 2 \\ 3 & 4 \end{array}\right)', r'\begin{bmatrix}1&2\\3&4\end{bmatrix}', r'\left(\begin{matrix}1&2\\3&4\end{matrix}\right)', '[[1, 2], [3, 4]]', r'\begin{pmatrix}1&2\\[4pt]3&4\\\end{pmatrix}', r'\frac12\begin{pmatrix}2&4\\6&8\end{pmatrix}')]
             + [('-2', r'\begin{vmatrix}1&2\\3&4\end{vmatrix}'), ('-2', r'\left|\begin{array}{cc}1&2\\3&4\end{array}\right|')],
 'names': [('3,-2', 'x_1=3, x_2=-2'), ('4, 5', 'AB=4, CD=5'), ('7:32', 'S_1:S_2=7:32'), ('11', 'x = 5+5+1 = 11'), ('x=11', 'x = 5+5+1 = 11'), ('11', '5 + 6 = 11'), (r'\frac13', r'x = \frac13 \approx 0.33'), ('0.33', r'\frac13 \approx 0.33'), ('12', r'x \approx 12'), ('1', '|AB|=1'), ('0.2', 'P(X > 3) = 0.2'),
           (r'\frac{1}{\sqrt6}', r'\frac{NO}{BO} = \frac{1}{\sqrt6}'), ('5', r'\angle ABC = 5'), ('(3,2)', '(p,q)=(3,2)'), ('(3,2)', 'p=3, q=2'), ('(3,2)', 'q=2, p=3'), ('(5,2),(7,2)', 'p=5,q=2;p=7,q=2'), ('(5,2),(7,2)', 'p=5,q=2 or p=7,q=2'), ('12', r'\text{Area} = 12'), ('a_3=2, a_{37}=19', 'a_{37}=19, a_3=2'),
           ('2x', "f'(x)=2x"), (r'x=1,\quad y=2', r'\begin{cases}x=1\\y=2\end{cases}')],
 'lists': [('1,2,3', '3 and 1 and 2'), ('1,2,3', '1; 2; 3'), ('1, 2', '1 or 2'), ('(1,2),(3,4)', '(3,4) and (1,2)'), ('(1,2),(3,4)', '(1,2)or(3,4)'), ('(1,2)', '(1;2)'), ('x=1 or x=-1', r'\pm 1'), ('19, 46, and 82', r'82, 19 \text{ and } 46'), ('3x+2y-1', '2y - 1 + 3x'), ('2ab+c', 'c + 2ba'), ('1,-2', r'\{-2, 1\}')],
 'choices': [('B', a) for a in (r'\text{(B) } 42', 'B)', '(B)', 'B.', '**B**', r'\textbf{(B)}\ 42', 'B) 42', '(B) 42', 'B: 42', r'\text{(B)}', 'Option B', r'\mathrm{(B)}')] + [('(C) 42', '42')],
 'twice escaped': [(r'\frac{1}{2}', r'\\frac{1}{2}'), (r'-2 \le x \le 7', r'-2 \\le x \\le 7')]}
UNEQUAL = {
 'regions': [('x<3', r'x \in (-\infty,3]'), ('x<3', 'x>3'), ('x<3', r'x\le 3'), ('x<3', 'y<3'), (r'm \geq 2', r'm\in(2,\infty)'), (r'-x \ge -1', r'x \ge 1'), (r'x\ne 3', 'x=3'), (r'x \ne 3', r'(-\infty,3)'), ('x < 1 or x > 3', '(1,3)'), ('x>1 or x<3', '(1,3)'), (r'(-\infty,1)\cup(3,\infty)', r'(-\infty,1]\cup[3,\infty)'), ('(-3,3)', 'x^2<9'),
             ('|x|<3', '(0,3)'), (r'\{x \mid x > 2\}', r'[2,\infty)'), (r'\mathbb{R}\setminus\{3\}', r'\{3\}'), ('x>2', '2'), (r'x\ge 2', 'x=2'), (r'[-\infty,3]', r'(-\infty,3]'), (r'(1,2)\cup(2,3)', '(1,3)'), ('0<x<1', r'0\le x\le 1'), ('x>2', 'x>2, x<5')],
 'programs': [('1024', '2*10'), ('e^{16}', 'exp(17)'), ('3.0e8', '3.0e7'), ('E', 'e'), ('2e-3', '0.002'), (r'\log 2', r'\ln 2'), ('E', '2.718281828'), ('0.333', r'\frac13'), ('0.33333333333', r'\frac13'), ('0.08333333333345', r'\frac{1}{12}'), ('120', '5 != 120'), ('A*E', 'A*e'), ('[0,1]', 'Interval.open(0, 1)')],
 'percent': [('0.28', '28'), (r'28\%', '2.8'), (r'28\%', '28.5 pct'), (r'\frac{28}{100}', '28'), (r'28\%', r'\$28')],
 'matrices': [(M, r'\begin{vmatrix}1&2\\3&4\end{vmatrix}'), (M, r'\left|\begin{array}{cc}1&2\\3&4\end{array}\right|'), (M, r'\begin{pmatrix}1&3\\2&4\end{pmatrix}'), (M, r'2\begin{pmatrix}1&2\\3&4\end{pmatrix}'), (M, '1,2,3,4'), (M, '-2'), (r'\begin{pmatrix}1\\2\end{pmatrix}', '[[1, 2]]')],
 'names': [('3,-2', 'x_1=3, x_2=2'), ('3,-2', 'x_1=-2, x_2=3'), ('4,5', 'AB=5, CD=4'), ('7:32', 'S_1:S_2=32:7'), ('11', 'x = 11 = 12'), ('x=5', 'y=5'), ('11a+c', '7 = 11a+c'), ('1', '2x+z = 1'), ('0', 'a^2+b = 0'), ('(3,2)', 'p=2, q=3'), ('6', '2x=6'), ('0', 'x=y=0'), ('x=0', 'x=y=0'), ('(1,2),(3,4)', 'p=1,q=2;p=4,q=3'), ('AB=4', 'CD=4')],
 'lists': [('(1,2)', '2,1'), ('(1,2)', '(2,1)'), ('(1,2)', '1,2'), ('1,2,3', '1 and 2'), ('(1,2),(3,4)', '(2,1),(3,4)'), ('1,1,2', '1,2,2'), (r'\pm1', '1'), ('3:4', '4:3')],
 'choices': [('B', a) for a in (r'\text{(C) } 42', 'C)', '(A)', 'b', 'B+1', 'AB', 'A, B', '42')] + [('(B) 42', '(C) 42'), ('(B) 42', '43'), ('B', r'\text{(C) } B')]}


@pytest.fixture(scope='module')
def grader():
    with Grader(workers=2, limit=5.) as g: yield g


@pytest.mark.parametrize('wanted, table', [(True, EQUAL), (False, UNEQUAL)], ids=['equal', 'unequal'])
def test_kinds_both_ways(grader, wanted, table):
    both = [p for pairs in table.values() for a, b in pairs for p in ((a, b), (b, a))]
    grades = grader.grade(both)
    assert [p for p, g in zip(both, grades) if g.equivalent != wanted] == [] and {g.verdict for g in grades} <= {'graded', 'unparsable'}


def test_boxes_of_one_answer_and_of_a_correction(grader):
    texts = [r'\boxed{3}, \boxed{5}, \boxed{7}', r'$\boxed{7}$ and $\boxed{5}$ and $\boxed{3}$', r'\boxed{3,5,7}', r'\boxed{5}. Wait: \boxed{7}', r'\boxed{42}. I marked it with \boxed.', 'Final Answer: the largest n is 34.', r'$x = 30 + 4 = 34$']
    assert [g.equivalent for g in grader.grade([('B', 'The answer is (B).'), ('B', 'The answer is (C).'), ('x<3', 'Therefore $x < 3$ holds.'), ('5', r'so \\boxed{5}')])] == [True, False, True, True]
    golds = ['3,5,7', '3,5,7', '3,5,7', '7', '42', '34', '34']
    assert all(g.equivalent for g in grader.outputs(golds, texts)) and not any(g.equivalent for g in grader.outputs(['3,5', '7,5', '3', '5', '43', '3', '4'], texts))


numbers = st.one_of(st.integers(-9, 9).map(lambda n: (n, str(n))), st.tuples(st.integers(-9, 9), st.integers(2, 5)).map(lambda p: (p[0]/p[1], rf'\frac{{{p[0]}}}{{{p[1]}}}')))
signs = {'<': ('<', r'\lt ', '<'), '>': ('>', r'\gt ', '>'), '<=': (r'\le ', '<=', r'\leqslant '), '>=': (r'\ge ', '>=', r'\geq ')}
opposite = {'<': '>', '>': '<', '<=': '>=', '>=': '<='}

@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*signs]), numbers, st.sampled_from(['x', 'm', r'\theta', 'a_1']), st.integers(1, 5), st.integers(0, 2), st.sampled_from([*signs]))
def test_half_lines(grader, sign, number, name, factor, spelling, other):
    _, end = number
    inside = {'<': rf'(-\infty,{end})', '<=': rf'(-\infty,{end}]', '>': rf'({end},\infty)', '>=': rf'[{end},+\infty)'}
    plain = f'{name} {signs[sign][0]} {end}'
    same = [f'{name} {signs[sign][spelling]} {end}', f'{end} {signs[opposite[sign]][spelling]} {name}', rf'{name}\in {inside[sign]}', inside[sign], f'-{factor}{name} {signs[opposite[sign]][spelling]} -{factor}({end})', rf'\{{{name} \mid {plain}\}}']
    far = [f'{name} {signs[other][spelling]} {end}', inside[other], rf'{name}\in {inside[other]}'] if other != sign else [f'q {signs[sign][0]} {end}']
    grades = grader.grade([(plain, s) for s in same] + [(s, plain) for s in same] + [(plain, s) for s in far] + [(s, plain) for s in far])
    assert [g.equivalent for g in grades] == [True]*2*len(same) + [False]*2*len(far)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True), st.sampled_from([', ', '; ', ' and ', ' or ', r' \text{ or } ']), st.randoms(use_true_random=False))
def test_lists_in_any_order_and_names_in_theirs(grader, values, between, rng):
    gold, turned = ', '.join(map(str, values)), rng.sample(values, len(values))
    named = lambda vs: ', '.join(f'{n} = {v}' for n, v in zip(('AB', 'CD', 'EF', 'GH'), vs))
    wrong = [*values[:-1], 99]
    pairs = [(gold, between.join(map(str, turned)), True), (gold, between.join(f'x = {v}' for v in turned), True), (gold, named(values), True), (gold, named(turned), turned == values), (gold, between.join(map(str, wrong)), False), (f'({gold})', gold, False)]
    assert [g.equivalent for g in grader.grade([p[:2] for p in pairs])] == [w for *_, w in pairs]


PIECES = ['x', 'y', '1', '2', '-3', '0.5', '<', '>', r'\le', r'\ge', r'\ne', '!=', '>=', '=', r'\in', r'\cup', r'\setminus', 'or', 'and', ',', ';', '(', ')', '[', ']', r'\{', r'\}', r'\mid', '|', r'\infty', 'oo', r'\mathbb{R}', r'\approx', ':', 'B)', '(B)', '**', 'exp(', 'log(', 'Abs(', 'Matrix([[', ']])', 'Interval(', 'e', 'E', 'I', '1e3', '%', 'pct',
          r'\begin{pmatrix}', r'\end{pmatrix}', r'\begin{array}{cc}', r'\end{array}', r'\begin{cases}', r'\end{cases}', '&', r'\\', r'\text{or}', r'\boxed{', '}', '{', '$', 'answer is ', r'\frac{1}{', 'AB', 'x_1', '_', '^', '\\', '\n', ' ']

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=14).map(''.join), st.text(max_size=20) | st.lists(st.sampled_from(PIECES), max_size=10).map(''.join))
def test_any_two_texts_are_graded_in_time(grader, gold, answer):
    start = time.perf_counter()
    for grade in grader.grade([(gold, answer), (answer, gold)], limit=.7): assert grade.verdict in VERDICTS and grade.verdict != 'crashed' and (grade.verdict == 'graded' or not grade.equivalent)
    assert time.perf_counter() - start < 2*(.7 + 6)
