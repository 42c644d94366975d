"""Cheats, escapes and hogs: none is rewarded, none survives, none touches the host, and the parent stays small."""

# ruff: noqa: E501 a program is a line

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from behemoth.base.errors import InputError
from behemoth.tasks import sandbox
from behemoth.tasks.sandbox import Limits, filter_program, run

isolated = pytest.mark.skipif(bool(sandbox.refusal()), reason=f"no sandbox here: {sandbox.refusal()}")
QUICK = Limits(seconds=5, cpu_seconds=1)
SECRET = "b7d1-the-tests"
TEST = f'marker = "{SECRET}"\nfor n in (3, 7, 12):\n    assert f(n) == n * n + 1\n'
OUT = f'marker = "{SECRET}"\nassert f(0) == "out"\n'

# To pass TEST without computing anything.
CHEATS = {
    "nothing": "pass",
    "os._exit(0) at once": "import os\nos._exit(0)",
    "os._exit(0) when asked": "import os\ndef f(n): os._exit(0)",
    "sys.exit(0) at once": "import sys\nsys.exit(0)",
    "sys.exit(0) when asked": "import sys\ndef f(n): sys.exit(0)",
    "SystemExit": "def f(n): raise SystemExit",
    "KeyboardInterrupt": "def f(n): raise KeyboardInterrupt",
    "GeneratorExit": "def f(n): raise GeneratorExit",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): raise ValueError",
    "always equal": "class A:\n    def __eq__(self, o): return True\ndef f(n): return A()",
    "always equal int": "class A(int):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(n): return A(1)",
    "always equal str": "class A(str):\n    __eq__ = lambda s, o: True\ndef f(n): return A('x')",
    "always equal list": "class A(list):\n    __eq__ = lambda s, o: True\ndef f(n): return A()",
    "reflected": "class A:\n    __ne__ = lambda s, o: False\n    __req__ = __eq__ = lambda s, o: 1\ndef f(n): return [A()]",
    "lying __class__": "class A:\n    __class__ = property(lambda s: int)\n    __eq__ = lambda s, o: True\ndef f(n): return A()",
    "metaclass": "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = type.__hash__\nclass A(metaclass=M): pass\n"
    "def f(n): return A",
    "mock": "from unittest.mock import ANY\ndef f(n): return ANY",
    "lying __format__": "class A(int):\n    __format__ = lambda s, x: hex(s * s + 1)[2:]\ndef f(n): return A(n)",
    "patched assert": "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\ndef f(n): assert 0",
    "patched builtins": "import builtins\nfor k in ('print', 'abs', 'all', 'any', 'isinstance', 'issubclass'):\n"
    "    setattr(builtins, k, lambda *a, **k: True)\ndef f(n): return 1",
    "patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(n): return 1",
    "patched operator": "import operator\noperator.eq = lambda a, b: True\ndef f(n): return 1",
    "patched json": "import json\njson.dumps = lambda *a, **k: '\"passed\"'\ndef f(n): return 1",
    "patched json.loads": "import json\njson.loads = lambda *a, **k: ['f', ['tuple', [1]], ['dict', []]]\ndef f(n): return 1",
    "patched encode": "import sys\nsys.modules['__main__'].encode = lambda v, d=0: ['passed']\ndef f(n): return 1",
    "patched main": "import sys\nm = sys.modules['__main__']\nm.check = m.serve = m.decode = lambda *a: True\n"
    "def f(n): return 1",
    "a new tests module": "import sys, types\nsys.modules['tests'] = types.ModuleType('tests')\ndef f(n): return 1",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(n): return 1",
    "frames": "import sys\ndef f(n):\n    g = sys._getframe()\n    while g:\n        for k, v in {**g.f_globals, **g.f_locals}.items():\n"
    "            if 'nonce' in k or 'the-te' + 'sts' in repr(v)[:9999]: print(k, v)\n        g = g.f_back\n    return 1",
    "gc": "import gc\ndef f(n):\n    for o in gc.get_objects():\n        if type(o) is dict and ('nonce' in o or 'test' in o): print(o)\n"
    "    return 1",
    "setup": "import sys\nprint(sys.argv[1:], vars(sys.modules['__main__']).keys())\n"
    "print(sys._getframe(1).f_locals.get('setup'))\ndef f(n): return 1",
    "standard input": "import os\nos.lseek(0, 0, 0)\nprint(os.read(0, 99999))\ndef f(n): return 1",
    "every descriptor read": "import os\ndef f(n):\n    for d in range(64):\n        try:\n"
    "            os.set_blocking(d, False); print(os.read(d, 99999))\n        except OSError: pass\n    return 1",
    "every descriptor written": 'import os\nfor d in range(64):\n    try: os.write(d, b\'["", "passed", ""]\\n\' * 3)\n'
    "    except OSError: pass\ndef f(n): return 1",
    "passed, on the answers": 'import os\nfor d in range(3, 64):\n    try: os.write(d, b\'"ready"\\n["passed"]\\n"passed"\\n\')\n'
    "    except OSError: pass\ndef f(n): return 1",
    "a verdict printed": "print('[\"' + '0' * 64 + '\", \"passed\", \"\"]')\ndef f(n): return 1",
    "no form": "import os\nfor d in range(3, 64):\n    try: os.write(d, b'[' * 100000 + b'\\n')\n    except OSError: pass\n"
    "def f(n): return 1",
    "a kind that is none": "import sys\nsys.modules['__main__'].encode = lambda v, d=0: ['module', 'os']\ndef f(n): return 1",
    "an endless answer": "import sys\nsys.modules['__main__'].encode = lambda v, d=0: 'x' * 9_000_000\ndef f(n): return 1",
    "guessing": "import itertools\ncount = itertools.count()\ndef f(n): return next(count)",
    "a function": "def f(n): return lambda: n",
    "a generator": "def f(n): yield n * n + 1",
    "an infinite generator": "import itertools\ndef f(n): return itertools.count()",
    "a list in itself": "def f(n):\n    a = []\n    a.append(a)\n    return a",
    "a deep list": "def f(n):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "a deep pickle": "import pickle\nclass A:\n    def __reduce__(self): return (print, ('out',))\n"
    "def f(n): return pickle.dumps([A()] * 3)",
    "a huge integer": "def f(n): return 10 ** 1_000_000",
    "an exception as an answer": "def f(n): return AssertionError()",
    "an exception that lies": "class E(Exception):\n    __str__ = lambda s: 1 / 0\ndef f(n): raise E",
    "StopIteration": "def f(n): raise StopIteration(n * n + 1)",
    "changes its mind": "class A(int):\n    def __index__(self): return 10\ndef f(n): return A(2)",
    "changes the arguments": "def f(n):\n    n.__class__ = int\n    return n",
    "changes constants": "import ctypes\nctypes.memset(id(10) + 24, 1, 1)\ndef f(n): return 1",
    "not a number": "def f(n): return float('nan')",
    "a name that is no function": "f = 10",
}

TRY = "import ctypes, os, signal, socket, sys, time\nLIBC = ctypes.CDLL(None, use_errno=True)\n"
TRY += "def f(_):\n    try:\n        return 'out' if attempt() else 'in'\n    except (OSError, RuntimeError, ValueError): return 'in'\n"
# To do what must not be possible; true if it was.
ESCAPES = {
    "tcp": "s = socket.create_connection(('127.0.0.1', 22), 1); return s",
    "udp": "return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
    "unix socket": "s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); return s",
    "abstract socket": "s = socket.socket(socket.AF_UNIX); s.bind('\\0s'); return s",
    "netlink": "return socket.socket(16, 3, 0)",
    "names": "return socket.getaddrinfo('example.com', 80)",
    "socketpair": "return socket.socketpair()",
    "fork": "return os.fork() + 1",
    "vfork": "return LIBC.vfork() >= 0",
    "daemon": "\n        if os.fork() == 0:\n            os.setsid()\n            os.fork(); time.sleep(60)\n        return True",
    "subprocess": "import subprocess; return subprocess.run(['/usr/bin/env']).returncode == 0",
    "posix_spawn": "return os.posix_spawn('/usr/bin/env', ['env'], {})",
    "thread": "import threading; threading.Thread(target=print).start(); return True",
    "clone3": "return LIBC.syscall(435, ctypes.create_string_buffer(88), 88) >= 0",
    "fork by 32-bit numbers": "return LIBC.syscall(0x40000000 + 57) >= 0",
    "signal to every process": "os.kill(-1, 9); return os.getppid() == 0",
    "signal to the first process": "os.kill(1, 9); time.sleep(0.2); return False",
    "ptrace": "return LIBC.ptrace(16, 1, 0, 0) == 0",
    "memory of another": "return LIBC.process_vm_readv(1, None, 0, None, 0, 0) >= 0",
    "/proc/self/mem": "return open('/proc/self/mem', 'rb')",
    "/proc/1/environ": "return open('/proc/1/environ').read()",
    "/proc/self/fd": "return os.listdir('/proc/self/fd')",
    "proc mounted": "os.mkdir('/tmp/p'); return LIBC.mount(b'proc', b'/tmp/p', b'proc', 0, None) == 0",
    "tmpfs mounted": "return LIBC.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
    "root mounted writable": "return LIBC.mount(None, b'/', None, 32, None) == 0",
    "unmount": "return LIBC.umount2(b'/tmp', 2) == 0",
    "chroot": "os.mkdir('/tmp/r'); os.chroot('/tmp/r'); return True",
    "pivot_root": "return LIBC.syscall(155, b'/tmp', b'/tmp') == 0",
    "new user namespace": "return LIBC.unshare(0x10000000) == 0",
    "setuid": "os.setuid(0); return True",
    "setgroups": "os.setgroups([0]); return True",
    "am I root": "return os.getuid() == 0 or os.geteuid() == 0",
    "sudo": "return os.execv('/usr/bin/su', ['su', '-c', 'id'])",
    "higher priority": "os.nice(-5); return True",
    "higher limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); return True",
    "later end": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99)); return True",
    "host name": "socket.sethostname('x'); return True",
    "clock": "time.clock_settime(0, 0); return True",
    "memory without a name": "return os.memfd_create('x')",
    "shared memory": "return LIBC.shmget(0, 1 << 20, 0o1600) >= 0",
    "/dev/shm": "return open('/dev/shm/x', 'w')",
    "message queue": "return LIBC.msgget(0, 0o1600) >= 0",
    "bpf": "return LIBC.syscall(321, 0, None, 0) >= 0",
    "io_uring": "return LIBC.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0",
    "userfaultfd": "return LIBC.syscall(323, 0) >= 0",
    "keyring": "return LIBC.syscall(250, 0, -3, 1) >= 0",
    "kernel module": "return LIBC.syscall(313, 0, b'', 0) == 0",
    "device": "os.mknod('/tmp/d', 0o60600, os.makedev(8, 0)); return True",
    "disk": "return [d for d in os.listdir('/dev') if d not in ('null', 'zero', 'random', 'urandom')]",
    "terminal": "return open('/dev/tty')",
    "canary read": "return open(CANARY).read()",
    "canary written": "open(CANARY, 'w').write('x'); return True",
    "canary by link": "os.symlink(CANARY, '/tmp/l'); open('/tmp/l', 'w').write('x'); return True",
    "canary by hard link": "os.link(CANARY, '/tmp/h'); return True",
    "canary by dots": "return open('/tmp/' + '../' * 20 + CANARY).read()",
    "canary removed": "os.unlink(CANARY); return True",
    "passwords": "return open('/etc/passwd').read() or open('/etc/shadow').read()",
    "home": "return os.listdir('/home')",
    "secrets of root": "return set(os.listdir('/root')) - set(sys.base_prefix.split('/'))",
    "the project": "return os.listdir(PROJECT)",
    "written into /": "return open('/x', 'w')",
    "written into /usr": "return open('/usr/x', 'w')",
    "written into Python": "return open(os.__file__, 'a')",
    "sitecustomize": "return open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w')",
    "usercustomize": "p = os.path.expanduser('~/.local/lib/python3/site-packages'); os.makedirs(p); return not p.startswith('/tmp')",
    "planted .pyc": "return open(os.path.dirname(os.__file__) + '/__pycache__/x.pyc', 'w')",
    "a module beside": "open('/tmp/json.py', 'w').write('1 / 0'); return '' in sys.path or '/tmp' in sys.path",
    "LD_PRELOAD": "os.environ['LD_PRELOAD'] = '/tmp/x.so'; return os.posix_spawn('/usr/bin/env', ['env'], os.environ)",
    "environment": "return set(os.environ) - {'HOME', 'LANG', 'PATH', 'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}",
    "descriptors": "n = [d for d in range(3, 64) if not LIBC.fcntl(d, 1) < 0]; print(n); return len(n) > 2",
    "third party packages": "\n        try: import psutil\n        except ImportError: return False\n        return True",
}

# Too much of something, with the outcomes that may be seen.
HOGS = {
    "fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=input).start()", "failed"),
    "endless loop": ("while True: pass", "timeout"),
    "endless loop when asked": ("def f(n):\n    while True: pass", "timeout"),
    "endless, and deaf": (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "timeout",
    ),
    "sleep": ("import time\ntime.sleep(100)", "timeout"),
    "stopped": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "10 GB of memory": ("x = bytearray(10 << 30)", "memory"),
    "10 GB, bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    "10 GB when asked": ("def f(n): return [0] * (10 << 30)", "memory"),
    "10 GB mapped": ("import mmap\ntry: mmap.mmap(-1, 10 << 30)\nexcept OSError: raise MemoryError", "memory"),
    "10 GB of output": ("while True: print('x' * 100_000)", "output"),
    "10 GB of errors": ("import os\nwhile True: os.write(2, b'x' * 100_000)", "output"),
    "10 GB of an answer": ("import os\nfor d in range(3, 64):\n    try:\n        while True: os.write(d, b'x' * 60_000)\n"
                           "    except OSError: pass", "failed"),
    "10 GB of files": ("i = 0\nwhile True:\n    i += 1\n    open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))", "failed"),
    "a file of 10 GB": ("with open('/tmp/x', 'wb') as x:\n    while True: x.write(bytes(1 << 20))", "failed"),
    "every descriptor": ("import os\nx = []\nwhile True: x.append(os.open('/dev/null', 0))", "failed"),
    "recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef g(): g()\ng()", "crashed memory timeout"),
    "recursion in C": ("import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(s): return repr(s)\nrepr(A())", "crashed memory"),
    "a bomb of lists": ("def f(n):\n    a = [0]\n    for _ in range(90): a = [a, a]\n    return a", "timeout memory"),
    "segmentation fault": ("import ctypes\nctypes.string_at(1)", "crashed"),
    "abort": ("import os\nos.abort()", "crashed"),
    "regular expression": ("import re\nre.match('(a+)+$', 'a' * 50 + 'b')", "timeout"),
    "power": ("def f(n): return 9 ** 9 ** 9", "timeout memory"),
}  # fmt: skip


@pytest.fixture
def known_nonce(monkeypatch):
    monkeypatch.setattr(sandbox.secrets, "token_hex", lambda _: "5ec2e7" * 10)
    return "5ec2e7" * 10


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    path = tmp_path_factory.mktemp("host") / "canary"
    path.write_text("untouched")
    yield path
    assert path.read_text() == "untouched" and os.listdir(path.parent) == ["canary"]
    assert not left_over()


def left_over() -> list[int]:
    """Processes that run what runs inside, wherever they went, and what is left of bubblewrap's."""
    mark = sandbox.INSIDE.read_text()[:60]
    found = []
    for process in psutil.process_iter(["cmdline", "name", "ppid"]):
        inside = any(word.startswith(mark) for word in process.info["cmdline"] or ())
        if inside or (process.info["ppid"] == os.getpid() and process.info["name"] == "bwrap"):
            found.append(process.pid)
    return found


def gone() -> bool:
    until = time.monotonic() + 2
    while left_over() and time.monotonic() < until:
        time.sleep(0.02)
    return not left_over()


@isolated
def test_the_honest_pass():
    assert run("def f(n): return n * n + 1", TEST, {"f": "f"}).outcome == "passed"
    assert run(TRY + "def attempt(): return True", OUT, {"f": "f"}).outcome == "passed"
    wrong = run("def f(n): return n * n - 1", TEST, {"f": "f"})
    assert (wrong.outcome, wrong.why) == ("failed", "assert f(n) == n * n + 1")


@isolated
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_are_not_rewarded(name, canary, known_nonce):
    ran = run(CHEATS[name], TEST, {"f": "f"}, limits=QUICK)
    assert ran.outcome in ("failed", "crashed", "timeout", "memory"), ran
    assert SECRET not in ran.stdout and known_nonce not in ran.stdout
    assert "SyntaxError" not in ran.why


@isolated
@pytest.mark.parametrize("name", ESCAPES)
def test_escapes_lead_nowhere(name, canary, known_nonce):
    head = f"CANARY, PROJECT = {str(canary)!r}, {str(Path(__file__).parents[2])!r}\n{TRY}"
    ran = run(f"{head}def attempt():\n        {ESCAPES[name]}", OUT, {"f": "f"}, limits=QUICK)
    assert ran.outcome in ("failed", "crashed"), ran
    assert ran.outcome == "crashed" or ran.why == 'assert f(0) == "out"', ran
    assert SECRET not in ran.stdout and known_nonce not in ran.stdout
    assert canary.read_text() == "untouched"


LATER = {"endless, and deaf", "stopped", "recursion", "a bomb of lists", "regular expression", "power"}


@isolated
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LATER)) for name in HOGS]
)
def test_hogs_are_stopped(name, canary):
    code, outcomes = HOGS[name]
    seconds = 0.7 if "timeout" in outcomes else 5
    limits = Limits(seconds=seconds, cpu_seconds=5, memory_mb=256)
    ran = run(code, TEST, {"f": "f"}, limits=limits)
    assert ran.outcome in outcomes.split(), ran
    assert ran.seconds < limits.seconds + 1
    assert len(ran.stdout) <= limits.output_bytes
    assert gone()


@isolated
def test_processor_time_is_limited_of_its_own():
    ran = run("while True: pass", TEST, {"f": "f"}, limits=Limits(seconds=20, cpu_seconds=1))
    assert (ran.outcome, ran.why) == ("timeout", "more than 1 seconds of processor time")
    assert ran.seconds < 10


@isolated
def test_there_are_enough_of_them():
    assert len(CHEATS) + len(ESCAPES) + len(HOGS) >= 60


@isolated
def test_the_parent_stays_small():
    parent = psutil.Process()
    codes = [HOGS[name][0] for name in ("10 GB of output", "10 GB of an answer", "10 GB of memory")]
    run(codes[0], TEST, {"f": "f"})
    before, descriptors = parent.memory_info().rss, parent.num_fds()
    for code in codes * 3:
        run(code, TEST, {"f": "f"}, limits=QUICK)
    assert parent.memory_info().rss - before < 4 << 20
    assert parent.num_fds() == descriptors


@isolated
def test_many_at_once_do_not_disturb_each_other(canary):
    def one(n: int) -> str:
        code = f"def f(x):\n    print('I am {n}')\n    return {n}"
        ran = run(code, f"assert f(0) == {n - n % 3}", {"f": "f"})
        assert ran.stdout == f"I am {n}\n"
        return ran.outcome

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(one, range(48)))
    assert outcomes == ["passed", "failed", "failed"] * 16
    assert gone()


@isolated
def test_nothing_outlives_a_parent_that_is_killed():
    code = "from behemoth.tasks.sandbox import run; run('while True: pass', '', {})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 10
    while len(left_over()) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    assert left_over()
    parent.kill()
    parent.wait()
    assert gone()


VALUES = [
    None,
    True,
    0,
    -7,
    10**30,
    0.1,
    -0.0,
    float("inf"),
    1 + 2j,
    "é\ud800\n",
    b"\0\xff",
    [],
    (1, [2, {3}]),
]
VALUES += [{"a": {1: (2,)}, (1, 2): None}, frozenset({1, "x"}), {True: [False]}, "x" * 100_000]


@isolated
def test_values_come_back_as_they_were():
    test = f"inf = float('inf')\nfor value in {VALUES!r}:\n"
    test += "    back = f(value)\n    assert back == value and type(back) is type(value), value"
    ran = run("def f(x): return x", test, {"f": "f"})
    assert ran.outcome == "passed", ran


@isolated
def test_subclasses_of_plain_types_are_compared_as_these():
    code = "from collections import *\nP = namedtuple('P', 'x y')\n"
    code += "def f(n): return [Counter('aab'), OrderedDict(a=1), P(1, 2), defaultdict(list, {1: [2]})]"
    test = "assert f(0) == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), {1: [2]}]"
    assert run(code, test, {"f": "f"}).outcome == "passed"


@isolated
def test_tests_may_expect_exceptions_but_not_swallow_the_end():
    code = "import os\ndef f(n):\n    if n: os._exit(0)\n    raise ValueError('no')"
    expects = "try:\n    f({})\nexcept {}:\n    pass\nelse:\n    assert 0"
    assert run(code, expects.format(0, "ValueError"), {"f": "f"}).outcome == "passed"
    assert run(code, expects.format(0, "KeyError"), {"f": "f"}).outcome == "failed"
    assert run(code, expects.format(1, "BaseException"), {"f": "f"}).outcome == "crashed"


@isolated
def test_tests_are_not_trusted_with_the_host_either(canary):
    for test in (f"open({str(canary)!r}, 'w')", "import os; os.fork()", "import socket; socket.socket()"):
        assert run("", test, {}).outcome == "failed"
    assert run("", "import os; os._exit(0)", {}).outcome == "crashed"
    assert run("", "while True: pass", {}, limits=Limits(seconds=1)).outcome == "timeout"


@isolated
def test_the_same_run_ends_the_same():
    code = "import random\nprint(hash('a'), {'a', 'b', 'c'})\ndef f(n): return n"
    test = "import random\nassert f(random.random()) == 0"
    first, second = (run(code, test, {"f": "f"}) for _ in range(2))
    assert (first.outcome, first.why, first.stdout) == (second.outcome, second.why, second.stdout)


def test_without_isolation_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(InputError, match=r"no bwrap on this machine.*apt-get install bubblewrap"):
            run(f"open({str(tmp_path / 'x')!r}, 'w')", "", {})
        assert not (tmp_path / "x").exists()
        assert run("def f(n): return n * n + 1", TEST, {"f": "f"}, unsafe=True).outcome == "passed"
        assert run("def f(n): return n", TEST, {"f": "f"}, unsafe=True).outcome == "failed"
        endless = run("while True: pass", TEST, {}, unsafe=True, limits=Limits(seconds=1))
        assert endless.outcome == "timeout"
    finally:
        sandbox.refusal.cache_clear()


def test_where_namespaces_are_forbidden_it_says_so(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sandbox.refusal.cache_clear()
    try:
        with pytest.raises(InputError, match=r"cannot isolate a program here \(bwrap: No permissions"):
            run("", "", {})
    finally:
        sandbox.refusal.cache_clear()


@isolated
def test_a_fault_of_the_sandbox_is_no_outcome(monkeypatch):
    monkeypatch.setattr(sandbox, "refusal", lambda: "")
    monkeypatch.setattr(sandbox, "_interpreter", lambda: "/nowhere/python")
    with pytest.raises(OSError, match="could not be started"):
        run("def f(n): return n", TEST, {"f": "f"})


@pytest.mark.parametrize("machine", sandbox.FILTERS)
def test_the_filter_refuses_what_it_names(machine):
    """The program, stepped through as the kernel does."""
    architecture, calls = sandbox.FILTERS[machine]
    steps = [
        (int.from_bytes(s[:2], "little"), s[2], s[3], int.from_bytes(s[4:], "little"))
        for s in (filter_program(machine)[n : n + 8] for n in range(0, len(filter_program(machine)), 8))
    ]

    def verdict(number: int, of: int = architecture) -> int:
        place, loaded = 0, 0
        while True:
            code, true, false, value = steps[place]
            if code == 0x06:
                return value
            if code == 0x20:
                loaded = {0: number, 4: of}[value]
                place += 1
            else:
                holds = loaded == value if code == 0x15 else loaded >= value
                place += 1 + (true if holds else false)

    assert {n for n in range(1000) if verdict(n) == 0x00050001} == set(calls)
    assert {verdict(n) for n in range(1000)} == {0x00050001, 0x7FFF0000}
    assert verdict(0x40000000) == verdict(1, of=0x40000003) == 0x80000000
