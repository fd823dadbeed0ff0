"""Signals: what is saved, what is aborted, and the exit status at any moment of a process."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omcda_jax.system import Interrupted, Interruption

ROOT = Path(__file__).parent.parent


def test_a_signal_breaks_off_one_stretch_only():
    with Interruption() as interruption:
        done = []

        def work():
            done.append("before")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("after")

        with interruption.deferring():
            assert interruption.breaking_off(lambda: 3) == 3 and interruption.deferred
            assert interruption.breaking_off(work) is None
            assert done == ["before"] and interruption.requested and interruption.deferred
        assert not interruption.deferred


def test_a_signal_that_comes_out_as_another_error_is_still_one():
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted as error:
            raise RuntimeError("INTERNAL: callback failed") from error

    with pytest.raises(Interrupted, match="SIGTERM"), Interruption():
        work()
    with pytest.raises(RuntimeError, match="disk"), Interruption() as interruption, interruption.deferring():
        assert interruption.breaking_off(work) is None and interruption.deferred
        raise RuntimeError("disk")
    with pytest.raises(ZeroDivisionError), Interruption() as interruption:
        interruption.breaking_off(lambda: 1 / 0)


def test_signals_taken_by_another_are_taken_back():
    with Interruption() as interruption, interruption.deferring():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interruption.renew()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested


def test_signals_are_deferred_or_raised_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption, interruption.deferring():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        assert signal.getsignal(signal.SIGTERM) == before, "a second one acts as usual"
    for number in (signal.SIGINT, signal.SIGHUP):
        with pytest.raises(Interrupted, match=signal.Signals(number).name), Interruption():
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hangup_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("start", [["experiments/run.py"], ["-c", "from omcda_jax.runner.main import main; main()"]])
def test_a_signal_while_jax_is_imported_ends_in_one_line(tmp_path, start, number):
    (tmp_path / "jax.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n")
    surroundings = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = [sys.executable, *start, "run", "--config=list"]
    ended = subprocess.run(words, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert ended.returncode == 75
    assert ended.stderr == f"stopped by {number.name}; the same command starts or resumes\n"


def test_a_terminal_that_closes_does_not_keep_a_run_from_saving():
    """As a run does: prints, polls, saves, prints once more and ends with 75."""
    script = """if True:
        import fcntl, os, sys, termios, time
        from omcda_jax.system import Interruption
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        with Interruption() as interruption, interruption.deferring():
            print("ready", flush=True)
            while not interruption.requested:
                time.sleep(0.01)
            print("saved", flush=True)
            print("saved", file=sys.stderr, flush=True)
            os._exit(75)
    """
    terminal, inside = pty.openpty()
    ends = {"stdin": inside, "stdout": inside, "stderr": inside}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True, **ends)
    os.close(inside)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(60) == 75
