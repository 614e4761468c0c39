"""A Python that starts in no time: `[*warm(), '-c', code, …]` in the place of `[sys.executable, '-c', code, …]`.

A server has imported what is slow to import. For each program it forks a process, which gets the caller's arguments, environment,
folder and streams, and is the program from there on; this file, run as a script, is the little process in between that the caller
sees: it hands signals on, ends as the program ends, and takes the program with it when it is killed. `sys.executable` is such a
Python too, so what the program starts starts warm. Not for programs that ask how they were started (what is imported, their own
process id), or that set what libraries read when they are imported."""
import gc, json, os, signal, socket, sys
from functools import cache

PRELOAD = """numpy pandas scipy.stats statsmodels.stats.proportion torch torch.utils.data torch.distributed safetensors.torch tokenizers
    accelerate transformers transformers.trainer transformers.generation.utils transformers.models.auto.modeling_auto
    transformers.models.auto.tokenization_auto transformers.models.qwen2.modeling_qwen2 transformers.models.llama.modeling_llama
    sympy yaml pytest IPython ipykernel.kernelapp nbdev.test papermill nbconvert.preprocessors filelock plotly.graph_objects pyarrow.parquet
    interlat.all""".split()
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SERVERS = []


@cache
def warm():
    "The words that start such a Python. The first who asks starts the server, which ends with this process."
    import shlex, subprocess, tempfile
    place = os.path.join(tempfile.mkdtemp(), 'server')
    server = subprocess.Popen([sys.executable, __file__, '--serve', place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b'ready\n'
    SERVERS.append(server) # our end of its pipe stays open as long as this process lives
    words = sys.executable, '-IS', os.path.abspath(__file__), place
    with open(python_at(place), 'w', opener=lambda path, flags: os.open(path, flags, 0o755)) as f:
        f.write(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    return words


def python_at(place): return os.path.join(os.path.dirname(place), 'python') # the same as one file that can be run


def warm_python(): return python_at(warm()[-1]) # in the place of `sys.executable`


def call(place, words):
    "Have the server at `place` run a program, and end as it ends."
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(place)
        wanted = json.dumps(dict(words=words, env=dict(os.environ), cwd=os.getcwd(), parent=os.getppid())).encode()
        socket.send_fds(wire, [len(wanted).to_bytes(4, 'big')], [0, 1, 2])
        wire.sendall(wanted)
        for s in FORWARDED: signal.signal(s, lambda s, frame: wire.send(bytes([s])))
        status = wire.recv(4)
    if not status: sys.exit('the warm server has ended')
    code = os.waitstatus_to_exitcode(int.from_bytes(status, 'big'))
    if code < 0: die_of(-code)
    os._exit(code)


def die_of(s):
    "End as a process does that this signal ended."
    if s != signal.SIGKILL: signal.signal(s, signal.SIG_DFL)
    os.kill(os.getpid(), s)


def serve(place):
    "Import, then fork for whoever calls at the socket `place`, until the one who started this is gone."
    import shutil
    from importlib import import_module
    from importlib.util import find_spec
    from threading import Thread
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) # the package of this checkout
    for name in PRELOAD:
        if find_spec(name.split('.')[0]): import_module(name)
    gc.collect()
    gc.freeze() # what is imported stays: no collection in a fork looks through it again, or copies its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # nobody waits for the processes in between
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        print('ready', flush=True)
        def end():
            sys.stdin.read()
            shutil.rmtree(os.path.dirname(place))
            os._exit(0)
        Thread(target=end, daemon=True).start()
        while True:
            wire, _ = listener.accept()
            with wire:
                if not os.fork():
                    sys.executable = python_at(place)
                    stand_between(listener, wire)


def stand_between(listener, wire):
    "The program's parent: hands signals on, kills it when the caller is gone, tells how it ended."
    from contextlib import suppress
    from threading import Thread
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(wire, 4, 3)
    wanted = json.loads(wire.recv(int.from_bytes(size, 'big'), socket.MSG_WAITALL))
    if not (pid := os.fork()):
        wire.close()
        become(streams, **wanted)
    for stream in streams: os.close(stream)
    def forward():
        with suppress(ProcessLookupError): # it has just ended
            while said := wire.recv(1): os.kill(pid, said[0])
            os.kill(pid, signal.SIGKILL)
    Thread(target=forward, daemon=True).start()
    with suppress(BrokenPipeError): # the caller was killed
        wire.sendall(os.waitpid(pid, 0)[1].to_bytes(4, 'big'))
    os._exit(0)


def become(streams, words, env, cwd, parent):
    "Be `python` with these words, from here to its end."
    import atexit, threading, traceback
    for mine, theirs in enumerate(streams):
        os.dup2(theirs, mine)
        os.close(theirs)
    for s in FORWARDED: signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.getppid = lambda: parent if os.path.exists(f'/proc/{parent}') else 1 # who started the process in between
    at_once = words[0].startswith('-u') or 'PYTHONUNBUFFERED' in env
    sys.stdin, sys.stdout, sys.stderr = (open(i, 'rww'[i], closefd=False, buffering=1 if at_once or i == 2 else -1) for i in range(3))
    code = 0
    if words[0] == '-u': words = words[1:]
    elif words[0] == '-uc': words = ['-c', *words[1:]]
    try: run(words)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        die_of(signal.SIGINT)
    except BaseException: code = traceback.print_exc() or 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def run(words):
    "Run the program that the words name: `-c code`, `-m module` or a script, and what it is given."
    import runpy
    from types import ModuleType
    how, *given = words
    here = '' if how in ('-c', '-m') else os.path.dirname(how)
    sys.path[:0] = [here, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    main = sys.modules['__main__'] = ModuleType('__main__')
    if how == '-m':
        sys.argv = given
        if given[0] == 'ipykernel_launcher': # which read whose kernel it is when it was imported
            sys.argv.append(f"--IPKernelApp.parent_handle={os.environ.get('JPY_PARENT_PID', 0)}")
        runpy.run_module(given[0], run_name='__main__', alter_sys=True)
    elif how == '-c':
        sys.argv = ['-c', *given[1:]]
        exec(compile(given[0], '<string>', 'exec'), main.__dict__)
    else:
        sys.argv, main.__file__ = words, how
        with open(how, 'rb') as f: exec(compile(f.read(), how, 'exec'), main.__dict__)


if __name__ == '__main__':
    if sys.argv[1] == '--serve': serve(sys.argv[2])
    else: call(sys.argv[1], sys.argv[2:])
