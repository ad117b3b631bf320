"""Which signals ask a run to stop, and what becomes of the others."""

import os
import signal
import threading

import pytest

from tests.conftest import handled_as
from trainers.run.signals import Stopped, StopRequest, handled


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_noted_and_its_handler_comes_back(number):
    with handled_as(number, signal.SIG_DFL):
        with StopRequest() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            assert stop.name == number.name
            with pytest.raises(Stopped, match=number.name):
                stop.check()
        assert signal.getsignal(number) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored():
    with handled_as(signal.SIGHUP, signal.SIG_IGN), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.name is None


def test_an_ignored_ctrl_c_stays_ignored_after_another_signal():
    with handled_as(signal.SIGINT, signal.SIG_IGN), handled_as(signal.SIGTERM, signal.SIG_DFL):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name == "SIGTERM"
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_second_ctrl_c_ends_the_process_at_once():
    with handled_as(signal.SIGINT, signal.default_int_handler), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_in_another_thread_leaves_signals_alone():
    found = []

    def run():
        with StopRequest() as stop:
            found.append((handled(), stop.name))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [([], None)]
