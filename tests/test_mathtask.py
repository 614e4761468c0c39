"Grading: what is in the box, what is the same answer, and what a hostile one can do."
import json, os, random, signal, subprocess, sys, tarfile, threading, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from interlat.maths.answers import is_exact, normalize_answer, read_answer
from interlat.maths.boxed import extract_boxed
from interlat.core.basics import InterlatError

pytest.importorskip('math_verify')
import interlat.maths.grade as mathtask
from interlat.maths.grade import MAX_CHARS, Grader, grade_counts, is_equiv

ARCHIVE = Path(__file__).resolve().parents[2]/'shared'/'data'/'MATH.tar.xz'


@pytest.fixture(scope='module')
def grader():
    with Grader(workers=2, limit=5.) as g: yield g


@pytest.fixture(scope='module')
def hasty():
    "A grader with little patience."
    with Grader(workers=1, limit=0.7) as g:
        g.grade([('x', 'x+0')])
        yield g


BOXES = [(r'$\boxed{5}$ then \boxed{6}', '6'), (r'\fbox{7}', '7'), (r'\boxed 5', '5'), (r'$x = \boxed 9$.', '9'), (r'\boxed\frac12', r'\frac12'), (r'$\boxed{\{x : x > \frac{1}{2}\}}$', r'\{x : x > \frac{1}{2}\}'),
         (r'\boxed{\left\{1,2\right\}}', r'\left\{1,2\right\}'), (r'\boxedfoo{3}', None), (r'\boxed{3} \boxed{4', '3'), (r'\boxed{\boxed{4}}', '4'), (r'\boxed{}', ''), ('', None), (None, None), ('5', None),
         (r'\boxed{ 5 }', '5'), ('\\boxed\n{5}', '5'), (r'\fbox{$\frac{1}{2}$}', r'\frac{1}{2}'), (r'\boxed{a\\b}', r'a\\b'), (r'\boxed{\text{a } b}', r'\text{a } b'), (r'\[\boxed 12\]', '12'), (r'is \boxed 12, as $x$', '12'),
         (r'} } \boxed{1}', '1'), (r'{{{ \boxed{1}', '1'), (r'\boxed{1}}}}', '1'), (r'$\boxed 3 \sqrt{2}$', r'3 \sqrt{2}')]

@pytest.mark.parametrize('text, held', BOXES)
def test_boxes(text, held): assert extract_boxed(text) == held


EQUAL = [(r'\frac{1}{2}', '0.5'), (r'\frac{1}{2}', '.5'), (r'\frac{1}{2}', r'\frac12'), (r'\frac{1}{2}', '1/2'), (r'\frac{1}{2}', r'\frac{2}{4}'), (r'2\sqrt{3}', r'\sqrt{12}'), ('x+1', '1+x'), (r'\frac{\sqrt3}{3}', r'\frac1{\sqrt3}'),
         ('(2x+1)(x-1)', '2x^2-x-1'), (r'\{1,2\}', r'\{2,1\}'), ('1,2', '2, 1'), (r'90^\circ', '90'), (r'10\text{ cm}', '10'), ('x=5', '5'), (r'(0,1)\cup(1,2)', r'(1,2)\cup(0,1)'), (r'1{,}000', '1000'), ('1,000', '1000'),
         (r'\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}'), (r'\text{(C)}', '(C)'), (r'\text{(C)}', 'C'), (r'\text{Evelyn}', 'evelyn'), (r'\$5.00', '5'), (r'20\%', '20'), (r'6\frac16', r'\frac{37}{6}'),
         (r'1\pm\sqrt{2}', r'1+\sqrt2, 1-\sqrt2'), (r'\frac{-1}{2}', r'-\frac12'), ('y = 2x + 3', '2x - y + 3 = 0'), ('x > 1', '1 < x'), (r'x \in [0,1]', '[0,1]'), (r'(-\infty, 3]', r'\left(-\infty,3\right]'), ('2i+1', '1+2i'), (r'\pi/4', r'\frac{\pi}{4}'),
         (r'\text{A, B}', 'B,A'), (r'1061_{9}', '1061_9'), ('12:30', '12:30'), (r'8\!:\!34 \text{ p.m.}', '8:34 PM'), (r'4\text{ and }5', '5, 4'), (r'\mbox{four}', '4'), (r'3\cdot 10^5', '300,000'), (r'e^{2\ln 3}', '9'), ('5!', '120'),
         (r'\binom{5}{2}', '10'), (r'\sin^2 x + \cos^2 x', '1'), ('0.333', r'\frac{333}{1000}'), (r'0.\overline{3}', r'\frac13'), ('-(-3)', '3'), (r'x=1, x=-1', '-1, 1'), ('(2)(3)', '6'), ('10^{-3}', '0.001'), ('x^{1/2}', r'\sqrt{x}'), ('$5$', '5.'), (r'\log_2 8', '3'), (r'x \ge 0', r'[0,\infty)'), ('2 < x < 3', '(2,3)'), (r'\mathbb{R}', r'(-\infty,\infty)'), (r'\emptyset', r'\{\}'), (r'\text{13 cm}', '13'), (r'3\binom{4}{2}', '18'), ('10^-3', '0.001')]
UNEQUAL = [('(1,2)', '[1,2]'), ('(1,2)', r'\{1,2\}'), ('[1,2]', r'\{1,2\}'), ('(1,2)', '(2,1)'), ('(1,2)', '1,2'), ('1000_2', '1000'), ('1000_2', '1000_3'), ('-5', '5'), ('10', '1,0'), ('3.14', r'\pi'), ('0.333', r'\frac13'), ('0.3333333333', r'\frac13'),
           ('east', 'seat'), (r'\text{east}', r'\text{seat}'), ('x=5', 'y=5'), ('5\\%', '\\$5'), ('C', 'D'), ('C', 'c'), ('N', 'n'), ('2t', '2h'), ('2m', '2'), ('(2)(3)', '5'), ('3 4', '7'), ('12:30', r'\frac{2}{5}'), ('1', '1.0000001'), ('10^{-20}', '2\\cdot 10^{-20}'),
           ('100000000000000000001', '100000000000000000000'), ('x > 1', 'x < 1'), ('x > 1', r'x \ge 1'), ('-x<2', 'x<2'), ('1,1,2', '1,2,2'), ('1,2', '1,2,3'), (r'\begin{pmatrix}1\\2\end{pmatrix}', r'\begin{pmatrix}2\\1\end{pmatrix}'), ('x+y', 'x-y'), ('x', 'y'),
           ('2^3', '3^2'), (r'\sqrt{2}', '1.41421356'), ('(-1,1)', '(-1,1]'), (r'(0,1)\cup(1,2)', '(0,2)'), ('AB', 'BA C'), (r'\text{odd}', r'\text{even}'), ('8:34 a.m.', '8:34 p.m.'), ('10\\text{ cm}', '10\\text{ in}'), ('5', r'5\text{ million}'), ('0=1', '0=2'),
           ('.3', '3'), ('10,100', '10, 100'), ('1', ''), ('1', 'x'), ('f(x)', 'f(y)'), ('5', '{'), ('1/2', '2/1'), ('12', '21'), (r'\infty', r'-\infty'), ('3+4i', '3-4i'), (r'\log_2 8', r'\log_{28}'), (r'x \ge 0', r'(0,\infty)'), ('2E', '2e'), (r'3\binom{4}{2}', '9')]

@pytest.mark.parametrize('wanted, table', [(True, EQUAL), (False, UNEQUAL)], ids=['equal', 'unequal'])
def test_pairs_both_ways(grader, wanted, table):
    both = table + [(b, a) for a, b in table if a.strip()]
    assert [p for p, g in zip(both, grader.grade(both)) if g.equivalent != wanted] == []


def test_exact_implies_equivalent_and_spelling_alone_is_not_enough(grader):
    grades = grader.grade([(r'\frac12', '1/2'), (r'\frac12', '0.5'), ('x+1', '1+x'), ('x+1', 'x + 1')])
    assert [(g.exact, g.equivalent) for g in grades] == [(True, True), (False, True), (False, True), (True, True)]


def test_verdicts_and_counts(grader):
    grades = grader.outputs(['5']*7, [r'\boxed{5}', r'\boxed{2+3}', r'\boxed{6}', 'five', r'\boxed{}', r'\boxed{x+}', r'\boxed{' + '5'*(MAX_CHARS + 1) + '}'])
    assert [g.verdict for g in grades] == ['graded', 'graded', 'graded', 'unanswered', 'unanswered', 'unparsable', 'unparsable']
    assert grade_counts(grades) == dict(n=7, exact=1, equivalent=2, graded=3, unanswered=2, unparsable=2, timeout=0, crashed=0)
    assert all(g.verdict == 'graded' or not g.equivalent for g in grades)


HOSTILE = ['9^{9^{9^{9}}}', '10^{10^{10}}!', r'\binom{10^9}{5\cdot 10^8}', r'\int_0^1 e^{x^{x^x}} \sin(x^{10}) dx', r'\prod_{n=1}^{100000000} n', r'\lim_{x\to 0}\frac{\sin(\tan x)-\tan(\sin x)}{x^7}', '((((5!)!)!)!)!', r'\sin('*100 + '1' + ')'*100]

def test_hostile_answers_cost_their_limit(hasty):
    for answer in HOSTILE:
        start = time.perf_counter()
        (grade,) = hasty.grade([(r'\sqrt{2}', answer)])
        assert not grade.equivalent and time.perf_counter() - start < 0.7 + 6 # and the start of a new worker
    assert hasty.grade([('x+1', '1+x')])[0].equivalent


def test_deep_and_long_answers_are_wrong_at_once(hasty):
    start = time.perf_counter()
    for unit, end in ((r'\frac{', ''), (r'\sqrt{', ''), ('{', '}'), ('(', ')'), (r'\boxed{', '}'), (r'\text{', '}'), ('1,', ''), ('\x00', ''), ('\ud800', ''), (r'\begin{pmatrix}', '')):
        for n in (10, 10_000): assert not hasty.grade([('x', unit*n + '1' + end*n)])[0].equivalent
        assert isinstance(extract_boxed(r'\boxed{1}' + unit*10_000), str)
    assert time.perf_counter() - start < 30


FRAGMENTS = [r'\frac', r'\sqrt', r'\boxed', r'\fbox', r'\text', r'\left', r'\right', r'\pm', r'\cup', r'\begin{pmatrix}', r'\end{pmatrix}', r'\\', '&', '{', '}', '(', ')', '[', ']', r'\{', r'\}', ',', ';', '=', '<', r'\le', '^', '_', '!', '|', '+', '-', '/', '*', '.', ' ', '$',
             '1', '2', '10', 'x', 'y', 'i', 'e', r'\pi', r'\infty', r'\sin', r'\log', r'\int', r'\sum', 'and', 'or', '\n', '\x00', '\ud800', 'é', '∞', '%', r'\%', r'\circ', ':', 'cm', r'\overline', "'", '~', '#', '\\']

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(''.join), st.sampled_from(['5', r'\frac{x}{2}', '(1,2)', '1,2', 'x>1']))
def test_garbage(hasty, answer, gold):
    start = time.perf_counter()
    (grade,) = hasty.grade([(gold, answer)])
    assert grade.verdict in mathtask.VERDICTS and (grade.verdict == 'graded' or not grade.equivalent)
    assert time.perf_counter() - start < 0.7 + 6


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(''.join), st.integers(1, 2000))
def test_garbage_is_read_in_time(answer, times):
    start = time.perf_counter()
    text = (answer*times)[:100_000]
    assert isinstance(normalize_answer(text), str)
    assert isinstance(extract_boxed(rf'\boxed{{7}} {text}'), str)
    assert is_exact(answer, answer)
    assert time.perf_counter() - start < 10


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(''.join))
def test_garbage_is_itself_with_space_around_it(answer):
    assume(not answer.endswith('\\')) # it would take the space with it
    assert is_exact(answer, f' {answer} ')


def test_workers_killed_at_work(grader):
    pairs = [('x+1', f'{k}+x') for k in range(40)]
    done, stop = [], threading.Event()
    def kill():
        while not stop.is_set():
            for pid in grader._crew.pids()[:1]: os.kill(pid, signal.SIGKILL)
            stop.wait(1.5)
    thread = threading.Thread(target=kill)
    thread.start()
    try: done = grader.grade(pairs)
    finally: stop.set(); thread.join()
    assert len(done) == 40 and all(g.equivalent == (k == 1) or g.verdict == 'crashed' for k, g in enumerate(done))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits on address space are a matter of the system')
def test_a_worker_without_memory_is_a_crash_and_no_exception(monkeypatch, capfd):
    monkeypatch.setattr(mathtask, 'MEMORY', 48*2**20) # too little to import SymPy
    with Grader(workers=1) as g: assert [x.verdict for x in g.grade([('x', 'y+1'), ('x', 'x')])] == ['crashed', 'graded']
    capfd.readouterr()


def test_threads_share_the_one_grader():
    out = {}
    def ask(k): out[k] = [is_equiv(f'x+{k}', f'{k}+x'), is_equiv(f'x+{k}', f'{k+1}+x')]
    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == {k: [True, False] for k in range(6)} and len(mathtask._shared) == 1


def test_identical_pairs_are_graded_once(grader, monkeypatch):
    asked, each = [], grader._crew.each
    monkeypatch.setattr(grader._crew, 'each', lambda jobs, limit: asked.extend(jobs) or each(jobs, limit))
    assert [g.equivalent for g in grader.grade([('x+1', '1+x')]*5 + [('x+1', 'x+2')])] == [True]*5 + [False] and len(asked) == 2


def test_a_script_on_standard_input_needs_no_guard():
    script = "from interlat.maths.grade import is_equiv\nprint('once', is_equiv('x+1', '1+x'), is_equiv('1', '2'))\n"
    run = subprocess.run([sys.executable, '-'], input=script, text=True, capture_output=True, timeout=60)
    assert run.stdout == 'once True False\n' and run.stderr == ''


def test_refusals(grader, monkeypatch):
    for pair in ((None, '5'), ('5', 5), (5, '5')):
        with pytest.raises(InterlatError, match='answers to grade must be text'): grader.grade([pair])
    with pytest.raises(InterlatError, match='limit must be more than 0'): Grader(limit=0)
    import interlat.maths.values
    monkeypatch.setattr(interlat.maths.values, 'find_spec', lambda name: None)
    with pytest.raises(InterlatError, match=r"needs math-verify: pip install 'interlat\[math\]'"): Grader()


def test_nothing_heavy_is_imported():
    code = "import sys, interlat.mathtask; print([m for m in ('torch', 'sympy', 'math_verify', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, check=True).stdout == '[]\n'


@pytest.fixture(scope='module')
def solutions():
    if not ARCHIVE.exists(): pytest.skip(f'needs {ARCHIVE.name}')
    with tarfile.open(ARCHIVE) as tar: return [json.load(tar.extractfile(m))['solution'] for m in tar if m.isfile() and m.name.endswith('.json')]


def test_every_shared_problem_has_an_answer_that_is_itself(solutions):
    golds = [extract_boxed(s) for s in solutions]
    assert len(golds) == 8498 and None not in golds
    assert sum(not g for g in golds) == 2 and sum(r'\boxed{}' in s for s in solutions) == 2 # two that were published with nothing in their box
    assert [g for g in golds if not is_exact(g, f' ${g}$. ' if g else g)] == []


def test_a_sample_is_read_and_another_problems_answer_is_another(solutions, grader):
    golds = sorted({g for g in map(extract_boxed, solutions) if g})
    some = random.Random(0).sample(golds, 200)
    grades = grader.grade(list(zip(some, some[1:])))
    alike = [p for p, g in zip(zip(some, some[1:]), grades) if g.equivalent and normalize_answer(p[0]) != normalize_answer(p[1])]
    assert alike == [] and grade_counts(grades)['timeout'] == grade_counts(grades)['crashed'] == 0
    assert grade_counts(grades)['unparsable'] <= 2
