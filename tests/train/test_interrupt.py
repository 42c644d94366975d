"""Real signals, sent to a real process."""

import signal
import subprocess
import sys
import time

import pytest

from behemoth.train.interrupt import Interrupt, leaving

PROGRAM = """
import sys, time
from behemoth.train.interrupt import Interrupt

with Interrupt() as interrupt:
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
sys.exit(interrupt.exit_code)
"""


def start(saving_seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(saving_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_work_be_saved(number, code):
    process = start(saving_seconds=0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == "saving\nsaved\n"
    assert "press again to leave at once" in err
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_it_at_once(number, code):
    process = start(saving_seconds=60)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    begin = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    assert time.monotonic() - begin < 5
    assert "saved" not in process.stdout.read()
    process.stdout.close()
    process.stderr.close()


def test_the_old_handlers_come_back(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        assert interrupt.exit_code == 0
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested
        assert interrupt.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "saving, then leaving" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_nothing_is_to_be_saved_a_signal_leaves_and_says_how_to_go_on(capfd, number, code):
    before, tidied = signal.getsignal(number), []

    def work():
        try:
            signal.raise_signal(number)
        finally:
            tidied.append(True)

    with pytest.raises(SystemExit) as end, leaving("go on with: that"):
        work()
    assert end.value.code == code
    assert tidied
    assert "go on with: that" in capfd.readouterr().err
    assert signal.getsignal(number) == before
