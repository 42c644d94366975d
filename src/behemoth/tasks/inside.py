"""What runs inside the sandbox: a program that answers calls, or a checker that makes them. See `sandbox.py`.

Started by its text (`python -c`), alone, with the standard library only. Two of them talk through two pipes, a line
of JSON each way. The one that serves runs the program and holds no secret; the other holds the tests and the nonce,
and gets nothing from it but plain values, of Python's own types. So a `__eq__` that is always true, a patched
`assert` or a program that reads every object of its process change nothing: they live in the wrong process.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import resource
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

WHY = 300  # characters of an explanation
DEPTH = 100  # of a value inside values


class NotPlainError(Exception):
    """A value that is no plain data."""


class OverError(BaseException):
    """The program under test is of no use any more. A test that catches this does not pass for it."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.why = outcome, why


# --- plain values over a pipe --------------------------------------------------------------------------------


def encode(value: Any, depth: int = 0) -> Any:
    """As JSON keeps it apart from all others; a subclass is sent as the plain type below it."""
    if value is None or value is True or value is False:
        return value
    below = next((kind for kind in type(value).__mro__ if kind in PLAIN), None)
    if below is None or depth > DEPTH:
        raise NotPlainError(f"a value of type {type(value).__name__!r} is not plain data")
    if below is str:
        return str.__str__(value)
    if below is dict:
        pairs = list(dict.items(value))
        return ["dict", [[encode(key, depth + 1), encode(inner, depth + 1)] for key, inner in pairs]]
    if below in (list, tuple, set, frozenset):
        return [below.__name__, [encode(inner, depth + 1) for inner in below.__iter__(value)]]
    return [below.__name__, PLAIN[below](value)]


PLAIN: dict[type, Callable[[Any], Any]] = {
    int: lambda value: int.__format__(value, "x"),  # in hexadecimal: linear, and no limit of digits
    float: float.hex,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    bytes: bytes.hex,
    **dict.fromkeys((str, dict, list, tuple, set, frozenset), type),  # told apart above
}


def decode(sent: Any) -> Any:
    """The plain value; anything malformed raises."""
    if sent is None or isinstance(sent, (bool, str)):
        return sent
    kind, inner = sent
    match kind:
        case "int":
            return int(inner, 16)
        case "float":
            return float.fromhex(inner)
        case "complex":
            return complex(*map(float.fromhex, inner))
        case "bytes":
            return bytes.fromhex(inner)
        case "list":
            return [decode(one) for one in inner]
        case "tuple":
            return tuple(decode(one) for one in inner)
        case "set":
            return {decode(one) for one in inner}
        case "frozenset":
            return frozenset(decode(one) for one in inner)
        case "dict":
            return {decode(key): decode(one) for key, one in inner}
    raise NotPlainError(f"no kind of value: {kind!r}")


# --- the program ---------------------------------------------------------------------------------------------


def serve(setup: dict[str, Any], asked_fd: int, answer_fd: int) -> None:
    """Run the program, then answer calls of its functions until there are no more."""
    # Lines are read unbuffered by a file of our own, whatever becomes of sys.stdin.
    asked = os.fdopen(asked_fd, "rb")

    def say(what: Any) -> None:
        left = memoryview(json.dumps(what).encode() + b"\n")
        while left:
            left = left[os.write(answer_fd, left) :]

    say("started")
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(setup["code"], "program", "exec"), module.__dict__)  # allowed: this is the sandbox
    except BaseException as error:
        say(["raised", type(error).__name__, _short(error)])
        return
    say("ready")
    for line in asked:
        name, arguments, named = json.loads(line)
        try:
            function = module.__dict__[name]
            value = function(*decode(arguments), **decode(named))
            reply = ["value", encode(value)]
        except NotPlainError as error:
            reply = ["odd", str(error)]
        except BaseException as error:
            reply = ["raised", type(error).__name__, _short(error)]
        say(reply)


# --- the checker ---------------------------------------------------------------------------------------------


def check(setup: dict[str, Any], ask_fd: int, answer_fd: int, verdict_fd: int) -> None:
    """Run the tests against the program at the other end and write the verdict with the nonce."""

    def tell(outcome: str, why: str = "") -> None:
        text = json.dumps([setup["nonce"], outcome, why[:WHY]])
        os.write(verdict_fd, text.encode() + b"\n")

    tell("started")
    answers = os.fdopen(answer_fd, "rb")

    def answer() -> Any:
        line = answers.readline(setup["answer_bytes"] + 1)
        if not line.endswith(b"\n"):
            if len(line) > setup["answer_bytes"]:
                raise OverError("failed", f"an answer of more than {setup['answer_bytes']:,} bytes")
            raise OverError("crashed", "the program ended before it answered")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise OverError("failed", "the program answered in no form") from None

    over: list[OverError] = []

    def call(name: str, arguments: tuple, named: dict[str, Any]) -> Any:
        try:
            return asked(name, arguments, named)
        except OverError as error:
            over.append(error)
            raise

    def asked(name: str, arguments: tuple, named: dict[str, Any]) -> Any:
        request = json.dumps([name, encode(arguments), encode(named)]).encode() + b"\n"
        try:
            left = memoryview(request)
            while left:
                left = left[os.write(ask_fd, left) :]
        except BrokenPipeError:
            raise OverError("crashed", "the program ended before it was asked") from None
        match answer():
            case ["value", value]:
                try:
                    return decode(value)
                except (ValueError, TypeError, RecursionError, OverflowError, NotPlainError):
                    raise OverError("failed", "the program answered in no form") from None
            case ["odd", str(why)]:
                raise OverError("failed", why)
            case ["raised", str(kind), str(why)]:
                raise _raised(kind, why)
        raise OverError("failed", "the program answered in no form")

    def remote(name: str) -> Callable[..., Any]:
        return lambda *arguments, **named: call(name, arguments, named)

    try:
        try:
            first = answer()
        except OverError:
            return tell("fault", "the program was never started")
        if first != "started":
            return tell("fault", "the program was never started")
        match answer():
            case "ready":
                pass
            case ["raised", str(kind), str(why)]:
                return tell("memory" if kind == "MemoryError" else "failed", f"{kind}: {why}")
            case _:
                return tell("failed", "the program answered in no form")
        random.seed(0)  # for tests that draw their cases: the same ones each time
        module = types.ModuleType("tests")
        sys.modules["tests"] = module
        module.__dict__.update({here: remote(there) for here, there in setup["calls"].items()})
        exec(compile(setup["test"], "tests", "exec"), module.__dict__)  # allowed: this is the sandbox
        verdict = "passed", ""
    except MemoryError:
        verdict = "memory", "out of memory"
    except OverError as error:
        verdict = error.outcome, error.why
    except BaseException as error:
        verdict = "failed", _where(error, setup["test"])
    tell(*next(((error.outcome, error.why) for error in over), verdict))


def _raised(kind: str, why: str) -> BaseException:
    """An exception of the program, as a test may expect it; what is no plain exception here is a failure."""
    if kind == "MemoryError":
        return OverError("memory", "out of memory")
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, (ArithmeticError, LookupError, ValueError, TypeError)):
        try:
            return known(why)
        except TypeError:
            pass
    return OverError("failed", f"{kind}: {why}")


def _where(error: BaseException, test: str) -> str:
    """The line of the tests at which they stopped, with the reason if it has one."""
    numbers = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "tests"
    ]
    lines = test.splitlines()
    line = lines[numbers[-1] - 1].strip() if numbers and numbers[-1] and numbers[-1] <= len(lines) else ""
    said = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: {_short(error)}"
    return " at ".join(part for part in (said, line) if part) or type(error).__name__


def _short(error: BaseException) -> str:
    try:
        return str(error)[:WHY]
    except BaseException:  # its __str__ is the program's
        return ""


def limit(setup: dict[str, Any]) -> None:
    """Of this process, for good: memory, processor, files. More processes are not had at all."""
    cpu = max(1, round(setup["cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (setup["disk_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if setup["alone"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    setup = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    limit(setup)
    (serve if setup["role"] == "serve" else check)(setup, *map(int, sys.argv[1:]))


if __name__ == "__main__":
    main()
