"""Processes that the trainer starts."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.conftest import handled_as, tiny_experiment_config
from trainers.run import launch as module
from trainers.run.launch import check_launch, launch
from trainers.run.signals import STOPPED


def worker(directory, code):
    """A command that notes its environment, and then runs `code` with its number as `index`."""
    program = f"""
import json, os, signal, sys, time
task = json.loads(os.environ["TF_CONFIG"])
index = task["task"]["index"]
with open({str(directory)!r} + f"/{{index}}", "w") as file:
    json.dump([task["cluster"]["worker"], os.environ["CUDA_VISIBLE_DEVICES"]], file)
{code}
"""
    return [sys.executable, "-c", program]


def noted(directory):
    return [json.loads((directory / name).read_text()) for name in sorted(os.listdir(directory))]


def test_each_worker_has_an_address_and_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch(3, worker(tmp_path, "")) == 0
    addresses, gpus = zip(*noted(tmp_path))
    assert len(set(addresses[0])) == 3 and addresses[0] == addresses[1] == addresses[2]
    assert gpus == ("0", "1", "2")


def test_gpus_that_the_user_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert launch(2, worker(tmp_path, "")) == 0
    assert [gpu for _, gpu in noted(tmp_path)] == ["4", "6"]


def test_gpus_that_the_user_hid(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch(2, worker(tmp_path, "")) == 0
    assert [gpu for _, gpu in noted(tmp_path)] == ["", ""]


def test_a_signal_before_all_have_started_leaves_none(tmp_path, monkeypatch):
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)  # while nobody but this knows of the process

    monkeypatch.setattr(module.subprocess, "Popen", Slow)
    with pytest.raises(SystemExit) as ended:
        launch(2, worker(tmp_path, "time.sleep(60)"))
    assert ended.value.code == 128 + signal.SIGTERM
    assert [process.wait(timeout=10) for process in started] == [-signal.SIGKILL]


def test_when_one_fails_the_others_are_stopped(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    code = "sys.exit('Error: no disk') if index == 1 else time.sleep(60)"
    assert launch(3, worker(tmp_path, code)) == 1
    assert capfd.readouterr().err == "Error: no disk\n"
    code = "sys.exit('Error: no disk') if index == 1 else None"
    assert launch(3, worker(tmp_path, code)) == 1
    assert capfd.readouterr().err == "Error: no disk\n"


def test_workers_that_were_stopped_have_not_failed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    # The first saves its state for longer than a failure would leave it time.
    code = f"""
print("TensorFlow's own", file=sys.stderr) if index else time.sleep(2)
open({str(tmp_path)!r} + f"/done{{index}}", "w").close()
sys.exit({STOPPED})
"""
    assert launch(2, worker(tmp_path, code)) == STOPPED == 75
    assert (tmp_path / "done0").exists()
    assert capfd.readouterr().err == ""


def test_an_error_of_all_is_shown_once(tmp_path, capfd):
    assert launch(3, worker(tmp_path, "sys.exit('Error: no such data set')")) == 1
    assert capfd.readouterr().err == "Error: no such data set\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_all_workers(tmp_path, number):
    code = f"""
os.chdir({str(tmp_path)!r})
def stop(*_):
    os.rename(f"ready{{index}}", f"stop{{index}}")
    sys.exit()
signal.signal({number:d}, stop)
os.rename(str(index), f"ready{{index}}")
time.sleep(60)
"""

    def stop_when_ready():
        while len([name for name in os.listdir(tmp_path) if name.startswith("ready")]) < 2:
            pass
        os.kill(os.getpid(), number)

    with handled_as(number, signal.SIG_DFL):
        threading.Thread(target=stop_when_ready).start()
        assert launch(2, worker(tmp_path, code)) == 0
        assert sorted(os.listdir(tmp_path)) == ["stop0", "stop1"]
        assert signal.getsignal(number) == signal.SIG_DFL


def test_a_worker_that_a_signal_ended_has_the_shells_code(tmp_path):
    assert launch(2, worker(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")) == 137


def test_wrong_usage(monkeypatch):
    config = tiny_experiment_config()
    check_launch(2, config)
    with pytest.raises(ValueError, match="multiple of the 3 replicas times the 1 accumulation"):
        check_launch(3, config)
    with pytest.raises(ValueError, match="needs train.strategy auto, received mirrored"):
        check_launch(2, config.override({"train.strategy": "mirrored"}))
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="one of several workers already"):
        check_launch(2, config)
