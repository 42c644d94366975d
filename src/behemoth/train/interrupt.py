"""Leaving politely: the first Ctrl-C or SIGTERM is a wish, the second is an order.

    with leaving("go on with: ..."):
        prepare()
        with Interrupt() as interrupt:
            for step in train(...):
                if interrupt.requested:
                    save(); sys.exit(interrupt.exit_code)

In the training loop the flag is read after every step and before each member is evaluated or sampled; a request
skips those and saves. So leaving takes at most a step, one member's evaluation or samples, and a save: seconds at
the sizes that a single machine trains, against the 30 s that schedulers commonly allow between SIGTERM and
SIGKILL. Outside the loop there is nothing to save, and `leaving` ends the work there and then. Python runs a
handler when the operation in hand returns; one that hangs (or trains a tokenizer) delays both signals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from behemoth.base.logs import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nsaving, then leaving; press again to leave at once\n"


class Interrupt:
    """Catches SIGINT and SIGTERM while entered (in the main thread); the old handlers are back afterwards.

    `requested` turns true at the first signal. A second one ends the process there and then, with 130 or 143.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What shells report for the signal that came: 130 for Ctrl-C, 143 for SIGTERM; 0 if none did."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.signal = number
        with suppress(OSError):  # the terminal may be gone
            os.write(2, NOTICE)  # not print: the signal may have come in the middle of one


@contextmanager
def leaving(how_to_go_on: str) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM leave with 130 or 143 and without a traceback, after saying how to go on.

    What is half done is tidied up on the way out, as after any exception.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    except SystemExit as end:
        if end.code in [128 + number for number in SIGNALS]:
            say(how_to_go_on)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
