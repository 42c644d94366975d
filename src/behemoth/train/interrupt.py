"""Leaving politely: the first Ctrl-C or SIGTERM is a wish, the second is an order.

    with Interrupt() as interrupt:
        for step in train(...):
            if interrupt.requested:
                save(); sys.exit(interrupt.exit_code)

The flag is read between steps, and by anything that takes longer than a few seconds (an evaluation, a
calibration), so that a save is on disk well inside the 30 s that schedulers allow between SIGTERM and
SIGKILL. Python runs a handler when the tensor operation in hand returns; one that hangs delays both signals.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

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
