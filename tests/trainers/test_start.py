"""Console scripts: what they print, and where TensorFlow's own lines go."""

import glob
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap

import pytest

from nvae_tf import ExperimentConfig, presets


def script(function, *arguments, directory=None):
    """Runs an entry point of setup.py as its script does."""
    code = f"import sys; sys.argv[0] = 'nvae'; from trainers.start import {function}; {function}()"
    environment = os.environ | {"TMPDIR": str(directory or tempfile.gettempdir())}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("logs")
    output = directory / "x.png"
    return script(
        "sample",
        "--preset=mnist_small",
        "--num_samples=4",
        f"--output={output}",
        directory=directory,
    ), directory


def test_a_program_prints_its_own_lines(sampled):
    process, directory = sampled
    assert process.returncode == 0
    assert process.stdout == f"4 samples at temperature 1.0, seed 0: {directory / 'x.png'}\n"
    assert process.stderr == ""
    assert not glob.glob(f"{directory}/*.log")


def test_verbose_shows_the_log(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)  # 0 turns off what is logged
    process = script("train", "--verbose", "--list_presets")
    assert process.returncode == 0 and "oneDNN" in process.stderr


def start(program, *arguments, before="", **options):
    """Runs a program as a console script does.

    Args:
      program: The body of its `run`, Python in one line or more.
      *arguments: What it gets.
      before: Python that runs before it is started.
      **options: Those of `subprocess.run`.
    """
    code = (
        "import os, signal, sys, types\n"
        "import trainers.start\n"
        f"def run():\n{textwrap.indent(program, '  ')}\n"
        "sys.modules['program'] = types.SimpleNamespace(run=run, __name__='p', __doc__='d')\n"
        f"{before}\n"
        "trainers.start._start('program')"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, **options)


GRADIENT = """
import tensorflow as tf
inputs = tf.Variable(tf.ones((1, 8, 8, 4)))
with tf.GradientTape() as tape:
    outputs = tf.nn.conv2d(inputs, tf.ones((3, 3, 4, 4)), 1, 'SAME', dilations=2)
print(os.environ['TF_ENABLE_ONEDNN_OPTS'], tape.gradient(outputs, inputs).shape)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is for x86 CPUs")
def test_every_cpu_has_gradients_of_dilated_convolutions(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    process = start(GRADIENT)
    assert process.returncode == 0 and process.stdout.split()[0] == b"1", process.stderr
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    process = start("print(os.environ['TF_ENABLE_ONEDNN_OPTS'])")
    assert process.stdout == b"0\n"


@pytest.fixture
def unread():
    """A file to write to, of which nobody reads any more, as `head` does to a pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_reader_that_has_enough_gets_no_traceback(unread):
    process = subprocess.run(
        [sys.executable, "-c", "from trainers.start import sample; sample()", "--help"],
        stdout=unread,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (process.returncode, process.stderr) == (141, b"")


def test_what_nobody_reads_is_no_error_of_the_user(unread):
    process = start(
        "from nvae_tf.command_line import usage_errors\n"
        "with usage_errors():\n  print('x', flush=True)",
        stdout=unread,
    )
    assert (process.returncode, process.stderr) == (141, b"")


def test_without_standard_output_the_status_stays():
    # What Python has if it was closed.
    process = start("sys.exit(75)", before="sys.stdout = None")
    assert (process.returncode, process.stderr) == (75, b"")


def test_without_standard_error_a_program_runs(tmp_path):
    process = start(
        "print('own lines', file=sys.stderr); os.write(2, b'those of a library'); print('result')",
        before="os.close(2); sys.stderr = None",  # what Python has if it was closed
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert (process.returncode, process.stdout) == (0, b"result\n")
    assert not os.listdir(tmp_path)


def test_ctrl_c_needs_no_traceback():
    process = start("raise KeyboardInterrupt")
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signals_leave_nothing_half_written(tmp_path, number):
    process = start(
        "from nvae_tf.files import new_file\n"
        f"with new_file(sys.argv[1]):\n  os.kill(os.getpid(), {number:d})",
        tmp_path / "x.npy",
        before=f"signal.signal({number:d}, signal.SIG_DFL)",  # nohup may have started this test
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert (process.returncode, process.stdout, process.stderr) == (128 + number, b"", b"")
    assert not os.listdir(tmp_path)


def test_a_crash_of_a_library_is_seen():
    process = start("os.abort()")
    assert (
        process.returncode == -signal.SIGABRT and b"Fatal Python error: Aborted" in process.stderr
    )


def test_a_crash_names_the_log(tmp_path):
    process = start(  # which Python 3.13 prints, so the text is not in it as a whole
        "os.write(2, b'from ' + b'the library'); raise RuntimeError('unexpected')",
        env=os.environ | {"TMPDIR": str(tmp_path)},
        text=True,
        timeout=100,
    )
    (log,) = glob.glob(f"{tmp_path}/nvae-*.log")
    assert process.stderr.endswith(f"RuntimeError: unexpected\nTensorFlow's log: {log}\n")
    assert "from the library" not in process.stderr
    with open(log) as file:
        assert file.read() == "from the library"


def test_help_has_every_flag_and_every_field():
    text = " ".join(script("train", "--help").stdout.split())
    for flag in ("--preset:", "--workdir:", "--init_from:", "--processes:", "--[no]list_presets:"):
        assert flag in text
    for name, option in ExperimentConfig().options().items():
        assert f"--config.{name}: {option.meaning}" in text
        assert " ".join(option.values().split()) in text
    assert "!!python" not in text
    # A trained model has values of its own, so a default would be wrong.
    text = " ".join(script("evaluate", "--help").stdout.split())
    assert "--config.data.test_fraction: share held out" in text
    assert "(in (0, 1)) --config.data.split_seed" in text


def test_the_presets_are_listed():
    lines = script("train", "--list_presets").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.names())
    assert all(len(line.split()) > 5 for line in lines)


def test_train_needs_a_workdir():
    process = script("train", "--preset=quickstart")
    assert process.returncode == 1
    assert process.stderr == "Error: --workdir must say where the run goes, or is.\n"
