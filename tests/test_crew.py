"Jobs in processes of their own: whoever dies, hangs or eats memory is replaced, and takes nothing along."
import os, signal, sys, threading, time
from pathlib import Path

import pytest

import interlat.core.crew
from interlat.core.basics import InterlatError
from interlat.core.crew import Crew, TimedOut, WorkerDied


def die(state, code): os._exit(code)
def nap(state, seconds): time.sleep(seconds); return seconds
def eat(state, megabytes): return len(bytearray(megabytes*2**20))
def where(state): return os.getpid()
def refuse(state): raise InterlatError('refused')
def warm(state): state['warm'] = True
def warm_slowly(state): time.sleep(1.5)
def warm_for_ever(state): time.sleep(600)
def look(state, key): return state.get(key)


@pytest.fixture
def me(monkeypatch):
    "This module, by the name under which a worker finds it."
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import test_crew
    return test_crew


@pytest.fixture
def crew(request):
    made = []
    def make(*args, **kw): made.append(Crew(*args, **kw)); return made[-1]
    yield make
    for c in made: c.close()


def test_a_job_without_end_is_killed_in_time_and_not_tried_again(me, crew):
    c = crew(2)
    list(c.each([(None, me.nap, (0,))]*2))
    before = set(c.pids())
    start = time.perf_counter()
    answers = dict(c.each([(None, me.nap, (600,)), *[(None, me.nap, (0.01,))]*5], limit=0.5))
    assert 0.5 <= time.perf_counter() - start < 3
    assert isinstance(answers.pop(0), TimedOut) and answers == dict.fromkeys(range(1, 6), 0.01)
    assert len(before & set(c.pids())) == 1
    assert dict(c.each([(None, me.nap, (0,))], limit=5)) == {0: 0}


def test_every_job_may_run_out_of_time(me, crew):
    answers = dict(crew(2).each([(None, me.nap, (600,))]*4, limit=0.2))
    assert sorted(answers) == [0, 1, 2, 3] and {str(a) for a in answers.values()} == {'killed: it took longer than 0.2 s'}


def test_starting_and_warming_up_is_not_the_jobs_time(me, crew):
    assert dict(crew(1, warm=me.warm_slowly).each([(None, me.nap, (0,))], limit=0.3)) == {0: 0}


def test_a_worker_that_never_gets_ready_is_given_up(me, crew, monkeypatch):
    monkeypatch.setattr(interlat.core.crew, 'START', 1.)
    (_, answer), = crew(1, warm=me.warm_for_ever).each([(None, me.nap, (0,))], limit=5)
    assert isinstance(answer, TimedOut) and str(answer) == 'killed: it did not begin within 1 s'


def test_warm_is_called_in_each_new_worker(me, crew):
    c = crew(1, warm=me.warm)
    assert dict(c.each([(0, me.look, ('warm',))])) == {0: True}
    os.kill(c.pids()[0], signal.SIGKILL)
    assert dict(c.each([(0, me.look, ('warm',))])) == {0: True}


def test_jobs_for_anybody_go_around_a_busy_worker(me, crew):
    c = crew(2)
    answers = list(c.each([(None, me.nap, (1.5,)), *[(None, me.where, ())]*20], limit=30))
    assert answers[-1] == (0, 1.5) and len({pid for j, pid in answers[:-1]}) == 1
    assert len(list(c.each([(1, me.where, ()), (None, me.where, ()), (1, me.where, ())]))) == 3


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits on address space are a matter of the system')
def test_memory_is_limited(me, crew, capfd):
    c = crew(1, memory=2**30)
    answers = dict(c.each([(None, me.eat, (4096,)), (None, me.eat, (1,))]))
    assert isinstance(answers[0], WorkerDied) and answers[1] == 2**20
    capfd.readouterr()


def test_death_refusal_and_timeout_side_by_side(me, crew):
    answers = dict(crew(2).each([(None, me.die, (3,)), (None, me.refuse, ()), (None, me.nap, (600,)), (0, me.nap, (0,)), (1, me.nap, (0,))], limit=0.5))
    assert [type(answers[j]) for j in range(3)] == [WorkerDied, InterlatError, TimedOut] and answers[3] == answers[4] == 0
    assert 'exit code 3' in str(answers[0])


def test_a_stopped_worker_is_killed_too(me, crew):
    c = crew(1)
    list(c.each([(0, me.where, ())]))
    timer = threading.Timer(0.2, lambda: os.kill(c.pids()[0], signal.SIGSTOP))
    timer.start()
    (_, answer), = c.each([(0, me.nap, (1,))], limit=1.5)
    assert isinstance(answer, TimedOut) and dict(c.each([(0, me.nap, (0,))], limit=5)) == {0: 0}


def test_stopping_early_kills_who_is_busy(me, crew):
    c = crew(2)
    for _ in c.each([(0, me.nap, (0,)), (1, me.nap, (600,))], limit=60): break
    assert len(c.pids()) <= 1
    assert dict(c.each([(1, me.nap, (0,))], limit=5)) == {0: 0}


def test_two_threads_that_start_workers_keep_the_main_module(me, crew):
    main, out = sys.modules['__main__'], []
    threads = [threading.Thread(target=lambda c=crew(2): out.append(len(list(c.each([(None, me.where, ())]*4))))) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert out == [4]*4 and sys.modules['__main__'] is main
