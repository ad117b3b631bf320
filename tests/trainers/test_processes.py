"""Training as processes: several workers, SIGTERM, and kills at any moment."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import nvae_tf
from nvae_tf.runs.workdir import Workdir
from trainers.run.launch import free_ports
from trainers.run.signals import STOPPED

pytestmark = pytest.mark.slow


def start(workdir, *overrides, code=None, **environment):
    """`trainers.train` on the quickstart preset with 12 steps and a checkpoint every second one.

    An override is `field=value` or a flag of the program. `code` is Python to run before it.
    """
    options = ["train.steps=12", "train.checkpoint_every=2", "train.image_every=6"]
    program = (
        ["-c", f"{code}\nfrom trainers.train import run; run()"]
        if code
        else ["-m", "trainers.train"]
    )
    command = [sys.executable, *program, "--preset=quickstart"]
    command += [f"--workdir={workdir}", "--config.train.log_every=1"]
    command += [f"--config.{option}" for option in options]
    command += [o if o.startswith("--") else f"--config.{o}" for o in overrides]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, returncode=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == returncode, output
    return output


def wait_for_checkpoint(workdir, step):
    """Until there is one of that step or a later one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        latest = Workdir(workdir).latest_checkpoint()
        if latest and int(re.search(r"\d+$", latest)[0]) >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"no checkpoint of step {step} in {workdir}")


def weights(workdir):
    return {v.path: v.numpy() for v in nvae_tf.load_model(workdir).variables}


def assert_same_weights(ours, theirs):
    expected = weights(theirs)
    for path, value in weights(ours).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def losses(workdir):
    logs = EventAccumulator(Workdir(workdir).tensorboard + "/train", size_guidance={"tensors": 0})
    logs.Reload()
    return [float(tf.make_ndarray(e.tensor_proto)) for e in logs.Tensors("loss/total")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(workdir))
    return workdir


def start_workers(workdir, *overrides, code=None):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [
        start(
            workdir,
            *overrides,
            code=code,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]


def test_two_workers_walk_the_path_of_one(uninterrupted, tmp_path):
    processes = start_workers(tmp_path / "run")
    outputs = [finish(process) for process in processes]
    assert "2 replica(s)" in outputs[0] and "parameters" not in outputs[1]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), rtol=1e-5)


def test_workers_go_back_together_when_the_chief_finds_the_run_diverged(tmp_path):
    code = """
from trainers.run.progress import Progress
from trainers.run.trainer import DivergedError
validate, steps = Progress.validate, []
def diverged_once(self, step, stop):
    steps.append(step)
    if len(steps) == 1:
        raise DivergedError(f"The -ELBO of held-out images was not finite after step {step}")
    return validate(self, step, stop)
Progress.validate = diverged_once
"""
    chief, worker = start_workers(tmp_path / "run", code=code)
    outputs = [finish(process) for process in (chief, worker)]
    assert "not finite after step 6" in outputs[0]
    assert "Back to step 4, with 0.5 times the learning rate" in outputs[0]
    assert "Finished" in outputs[0]
    # Both took the same steps: the chief's next validation was that of the same step.
    assert outputs[0].count("validation -ELBO") == 1 and "step 6: validation" in outputs[0]


def test_processes_that_the_program_starts_walk_the_path_of_one(uninterrupted, tmp_path):
    process = start(tmp_path / "run", "--processes=2", "train.checkpoint_every=100")
    output = ""
    with process.stdout:
        for line in process.stdout:
            output += line
            if "Step traced" in line:
                process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == STOPPED
    assert "2 replica(s)" in output and output.count("parameters in") == 1
    assert re.search(r"Stopped after step \d+", output)
    finish(start(tmp_path / "run", "--processes=2", "train.checkpoint_every=100"))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), rtol=1e-5)


def test_a_run_whose_worker_was_killed_goes_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for process in start_workers(whole):
        finish(process)
    chief, worker = start_workers(killed)
    wait_for_checkpoint(killed, 4)
    worker.kill()
    worker.communicate()
    chief.communicate(timeout=300)  # sees that the worker is gone, and ends by itself
    assert chief.returncode != 0
    outputs = [finish(process) for process in start_workers(killed)]
    assert re.search(r"Resuming after step \d+ of 12", outputs[0])
    assert_same_weights(killed, whole)


def test_sigterm_ends_after_the_step(uninterrupted, tmp_path):
    process = start(tmp_path / "run", "train.checkpoint_every=100")
    while "Step traced in" not in (line := process.stdout.readline()):
        assert line, "it ended without a step"
    process.send_signal(signal.SIGTERM)
    output = finish(process, STOPPED)
    step = int(re.search(r"Stopped after step (\d+)", output)[1])
    assert Workdir(tmp_path / "run").latest_checkpoint().endswith(f"-{step}")
    finish(start(tmp_path / "run", "train.checkpoint_every=100"))
    assert_same_weights(tmp_path / "run", uninterrupted)


def test_twenty_kills_change_nothing(tmp_path):
    moments = random.Random(0)
    options = ("train.steps=80", "train.image_every=20")
    finish(start(tmp_path / "whole", *options))
    kills = 0
    while True:
        process = start(tmp_path / "killed", *options)
        try:
            process.communicate(timeout=moments.uniform(5, 16) if kills < 20 else 900)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process.returncode == 0
    print(f"{kills} kills")
    assert kills >= 5
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
