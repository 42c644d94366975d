"""Programs that a model wrote, run where they can do no harm and cannot grade themselves.

A program and its tests run in two sandboxes. The program's side answers calls; the tests' side makes them, compares
plain values, and writes the verdict with a nonce on a descriptor of its own (`inside.py`). Neither sees the other's
process, memory or files, so the tests can be neither read nor patched; an exit code decides nothing.

Each sandbox is bubblewrap's (github.com/containers/bubblewrap): new user, mount, process, network, IPC and UTS
namespaces; a root of its own that is read-only and holds Python and the system's libraries; a small tmpfs as working
directory; neither /proc nor /home; no capabilities; an environment of four variables; limits on memory, processor
time, files; a system call filter under which there are no further processes or threads, no sockets, no memory outside
the limit, and none of the calls that kernels have been broken by. What is printed is read as it comes and cut off; at
the end, or when time is up, the sandbox is killed whole.

Without bubblewrap, or where the system forbids namespaces, `run` refuses; `unsafe=True` runs the same two processes
with the limits only, which is no protection. Left out: cgroups, so the limit on memory is on address space; third
party packages; a defence against faults of the kernel beyond the filter.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from behemoth.base.errors import InputError

Outcome = Literal["passed", "failed", "timeout", "memory", "output", "crashed"]
INSIDE = Path(__file__).with_name("inside.py")
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
PYTHON = (
    "-s",
    "-S",
    "-P",
    "-B",
    "-u",
    "-c",
)  # no site-packages, no sitecustomize, nothing from the working directory
VERDICT_BYTES = 16_384
GRACE_SECONDS = 5.0  # for killed processes to be gone


@dataclass(frozen=True)
class Limits:
    """Of a run. There is one process on each side, always."""

    seconds: float = 10.0  # on the clock, for all of it
    cpu_seconds: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16  # of the working directory, which lies in memory
    output_bytes: int = 65_536  # of standard output and error together
    answer_bytes: int = 4_194_304  # of one value that a function returns


@dataclass(frozen=True)
class Ran:
    outcome: Outcome
    why: str
    stdout: str  # standard output and error of the program, as they came
    seconds: float


DEFAULT = Limits()


def run(
    code: str, test: str, calls: Mapping[str, str], *, limits: Limits = DEFAULT, unsafe: bool = False
) -> Ran:
    """Run the program `code` under `test`, another program, whose names `calls` stand for functions of the first.

    What such a function is given and gives back is copied: numbers, text, bytes, None, and lists, tuples, sets and
    dictionaries of them. Anything else fails. A fault of the sandbox itself is an OSError, never an outcome.
    """
    if not unsafe and (problem := refusal()):
        raise InputError(problem)
    nonce = secrets.token_hex(32)
    with ExitStack() as stack, ExitStack() as theirs:
        # Each end is closed exactly once: a number that is closed again may be another thread's by then.
        asked, ask = _pipe(theirs, theirs)
        answer, answered = _pipe(theirs, theirs)
        verdict, told = _pipe(stack, theirs)
        output, printed = _pipe(stack, theirs)
        started = time.monotonic()
        checker = {"role": "check", "nonce": nonce, "test": test, "calls": dict(calls)}
        program = {"role": "serve", "code": code}
        checking = stack.enter_context(_started(checker, (ask, answer, told), None, limits, unsafe))
        serving = stack.enter_context(_started(program, (asked, answered), printed, limits, unsafe))
        theirs.close()  # what they hold is theirs alone now, so that the end of one is seen by the other
        outcome, why, text = _watched(verdict, output, nonce, limits, started + limits.seconds)
        ended = serving.poll() if outcome == "crashed" else None
        if outcome == "crashed" and ended is None:
            ended = _waited(serving, 0.2)
        for child in (serving, checking):
            _kill(child, unsafe)
        text += _rest(output, limits.output_bytes - len(text))
    if outcome == "crashed" and ended in _CPU:
        outcome, why = "timeout", f"more than {limits.cpu_seconds:g} seconds of processor time"
    return Ran(outcome, why, text.decode("utf-8", "replace"), time.monotonic() - started)


_CPU = {code for number in (signal.SIGXCPU, signal.SIGKILL) for code in (128 + number, -number)}


@functools.cache
def refusal() -> str:
    """Why no program can be run in isolation here; "" where it can."""
    ways = "Install bubblewrap (apt-get install bubblewrap) and allow user namespaces, or accept that programs a model "
    ways += "wrote run unprotected, with BEHEMOTH_UNSAFE_CODE=1"
    if not shutil.which("bwrap"):
        return f"programs are run in isolation by bubblewrap, and there is no bwrap on this machine. {ways}"
    if platform.machine() not in FILTERS:
        known = " and ".join(FILTERS)
        return f"the sandbox knows the system calls of {known}, not of {platform.machine()}. {ways}"
    with _filter() as filter_fd:
        tried = subprocess.run(
            [*_walls(DEFAULT, filter_fd), _interpreter(), *PYTHON, "print('in')"],
            pass_fds=[filter_fd],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if tried.returncode or tried.stdout != "in\n":
        said = tried.stderr.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"
        return f"bubblewrap cannot isolate a program here ({said}). {ways}"
    return ""


# --- starting and ending -------------------------------------------------------------------------------------


@contextmanager
def _started(
    setup: dict[str, Any], fds: tuple[int, ...], printed: int | None, limits: Limits, unsafe: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """One side, with its setup as standard input; killed when the block ends."""
    setup |= {
        "memory_bytes": limits.memory_mb << 20,
        "disk_bytes": limits.disk_mb << 20,
        "cpu_seconds": limits.cpu_seconds,
        "answer_bytes": limits.answer_bytes,
        "alone": not unsafe,
    }
    inner = [*PYTHON, INSIDE.read_text(), *map(str, fds)]
    out = subprocess.DEVNULL if printed is None else printed
    with ExitStack() as stack:
        given = stack.enter_context(_readable(json.dumps(setup).encode()))
        if unsafe:
            command, passed = [_interpreter(), *inner], list(fds)
            folder: str | None = stack.enter_context(tempfile.TemporaryDirectory())
        else:
            filter_fd = stack.enter_context(_filter())
            command, passed = [*_walls(limits, filter_fd), _interpreter(), *inner], [*fds, filter_fd]
            folder = None
        child = subprocess.Popen(
            command,
            stdin=given,
            stdout=out,
            stderr=out,
            pass_fds=passed,
            env=ENVIRONMENT,
            cwd=folder,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            _kill(child, unsafe)


@contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """A descriptor that reads `content` and cannot write, of a file that no longer has a name."""
    path_fd, path = tempfile.mkstemp()
    with os.fdopen(path_fd, "wb") as file:
        file.write(content)
    fd = os.open(path, os.O_RDONLY)
    os.unlink(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _kill(child: subprocess.Popen[bytes], unsafe: bool) -> None:
    """With the first process of a namespace goes the rest; unprotected, what stayed in its session."""
    if unsafe:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def _waited(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """Both ends of a pipe, each closed with its stack."""
    read, write = os.pipe()
    reads.callback(os.close, read)
    writes.callback(os.close, write)
    return read, write


# --- watching ------------------------------------------------------------------------------------------------


def _watched(
    verdict: int, output: int, nonce: str, limits: Limits, until: float
) -> tuple[Outcome, str, bytes]:
    """Until there is a verdict, or time or room for output is used up."""
    text, told = bytearray(), bytearray()
    with closing(selectors.DefaultSelector()) as both:
        both.register(verdict, selectors.EVENT_READ)
        both.register(output, selectors.EVENT_READ)
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return "timeout", f"more than {limits.seconds:g} seconds", bytes(text)
            for key, _ in both.select(left):
                read = os.read(key.fd, 65_536)
                if key.fd == output:
                    text += read[: limits.output_bytes + 1 - len(text)]
                    if len(text) > limits.output_bytes:
                        why = f"more than {limits.output_bytes:,} bytes of output"
                        return "output", why, bytes(text[:-1])
                    if not read:
                        both.unregister(output)
                    continue
                told += read
                if not read or len(told) > VERDICT_BYTES:
                    return *_verdict(bytes(told), nonce), bytes(text)
                if told.count(b"\n") >= 2:
                    return *_verdict(bytes(told), nonce), bytes(text)


def _verdict(told: bytes, nonce: str) -> tuple[Outcome, str]:
    """What the checker wrote: that it started, and how it ended."""
    lines = []
    for line in told.splitlines():
        try:
            said, outcome, why = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(said, str) and secrets.compare_digest(said.encode(), nonce.encode()):
            lines.append((outcome, str(why)))
    if not lines or lines[0][0] != "started" or lines[-1][0] == "fault":
        raise OSError(f"the sandbox could not be started: {lines[-1][1] if lines else 'no checker'}")
    if len(lines) == 1:
        return "crashed", "the tests ended without a verdict"
    return lines[1]


def _rest(output: int, room: int) -> bytes:
    """What was printed before the end. Its end is the end of every process that could write there."""
    text = b""
    until = time.monotonic() + GRACE_SECONDS
    with closing(selectors.DefaultSelector()) as one:
        one.register(output, selectors.EVENT_READ)
        while one.select(max(0.0, until - time.monotonic())):
            if not (read := os.read(output, 65_536)):
                return text
            text += read[: max(0, room - len(text))]
    raise OSError(f"a sandbox was still alive {GRACE_SECONDS:g} seconds after it was killed")


# --- the walls -----------------------------------------------------------------------------------------------


def _interpreter() -> str:
    """Python itself, not the name that a virtual environment gives it."""
    return str(Path(sys.executable).resolve())


def _walls(limits: Limits, filter_fd: int) -> list[str]:
    """bubblewrap's command line, up to the command that it runs."""
    shown = [path for path in map(Path, ("/usr", "/lib", "/lib32", "/lib64")) if path.exists()]
    python = Path(sys.base_prefix).resolve()
    if not python.is_relative_to("/usr"):
        shown.append(python)
    devices = [f"/dev/{name}" for name in ("null", "zero", "urandom", "random")]
    return [
        *(
            "bwrap",
            "--unshare-all",
            "--unshare-user",
            "--disable-userns",
            "--die-with-parent",
            "--new-session",
        ),
        *("--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
        *(word for path in shown for word in ("--ro-bind", str(path), str(path))),
        *(word for path in devices for word in ("--dev-bind", path, path)),
        *("--size", str(limits.disk_mb << 20), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"),
        *("--seccomp", str(filter_fd), "--clearenv"),
        *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
    ]


# What a single process that computes has no use for, by number: further processes and threads, sockets, memory
# that no limit counts (memfd, shared segments, queues), looking into others, and the doors that kernels were
# entered by. From the kernel's tables (unistd.h); numbers from 424 are the same everywhere.
_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 440, 442, 447)
# io_uring_setup, _enter, _register; open_tree, move_mount, fsopen, fsconfig, fsmount, fspick; pidfd_open; clone3;
# pidfd_getfd, process_madvise, mount_setattr, memfd_secret
FILTERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(56, 57, 58),  # clone, fork, vfork
            *(41, 53),  # socket, socketpair
            *(319, 29, 64, 68, 240),  # memfd_create, shmget, semget, msgget, mq_open
            *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(
                165,
                166,
                155,
                161,
                272,
                308,
                304,
            ),  # mount, umount2, pivot_root, chroot, unshare, setns, by_handle
            *(
                321,
                298,
                323,
                248,
                249,
                250,
            ),  # bpf, perf_event_open, userfaultfd, add_key, request_key, keyctl
            *(
                175,
                176,
                313,
                246,
                320,
                169,
            ),  # init_module, delete_module, finit_module, kexec_load, _file_load, reboot
            *(103, 135, 154, 172, 173, 279),  # syslog, personality, modify_ldt, iopl, ioperm, move_pages
            *(
                163,
                164,
                227,
                167,
                168,
                170,
                171,
                179,
            ),  # acct, setting clocks, swap and names, quotactl
            *_EVERYWHERE,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            220,
            *(198, 199),
            *(279, 194, 190, 186, 180),
            *(117, 270, 271, 272),
            *(40, 39, 41, 51, 97, 268, 265),
            *(280, 241, 282, 217, 218, 219),
            *(105, 106, 273, 104, 294, 142),
            *(116, 92, 239),
            *(89, 170, 112, 224, 225, 161, 162, 60),
            *_EVERYWHERE,
        ),
    ),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # the process; with EPERM; the call


def filter_program(machine: str) -> bytes:
    """The filter, in the kernel's classic BPF: eight bytes an instruction."""
    architecture, calls = FILTERS[machine]

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    steps = [
        step(_LOAD, 4),  # the architecture of the call
        step(_EQUAL, architecture, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),  # its number
        step(_AT_LEAST, 0x40000000, 0, 1),  # x32: the same calls under other numbers
        step(_RETURN, _KILL),
        *(step(_EQUAL, number, len(calls) - place, 0) for place, number in enumerate(calls)),
        step(_RETURN, _ALLOW),
        step(_RETURN, _REFUSE),
    ]
    return b"".join(steps)


@contextmanager
def _filter() -> Iterator[int]:
    with _readable(filter_program(platform.machine())) as fd:
        yield fd
