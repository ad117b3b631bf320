"""The C program: TensorFlow's C API computes what Python computes from the same SavedModel."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests.export.exported import small_signatures, small_version

pytestmark = pytest.mark.slow  # TensorFlow starts in each process, and optimises its graphs

SOURCE = pathlib.Path(__file__).parents[2] / "examples/c/sample.c"
LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
SEEDS = [7, 8, 9]
TEMPERATURE = 0.75


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    directory = pathlib.Path(tf.sysconfig.get_lib())
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    if not all((directory / name).is_file() for name in LIBRARIES):
        pytest.skip("TensorFlow's package has no C libraries here")
    path = tmp_path_factory.mktemp("c") / "sample"
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", path]
    command += ["-fsanitize=undefined", "-fno-sanitize-recover"]
    command += [f"-I{tf.sysconfig.get_include()}", f"-Wl,-rpath,{directory}"]
    command += [directory / name for name in LIBRARIES]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return path


def run(program, *arguments):
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_pictures_and_likelihoods_are_those_of_python(program, tmp_path):
    ended = run(program, small_version(), SEEDS[0], len(SEEDS), TEMPERATURE, tmp_path, 2)
    assert ended.returncode == 0, ended.stderr
    seed = tf.constant(SEEDS, tf.int64)
    temperature = tf.fill([len(SEEDS)], TEMPERATURE)
    signatures = small_signatures()
    images = signatures["sample"](seed=seed, temperature=temperature)["image"].numpy()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.png" for n in SEEDS]
    contents = [(tmp_path / f"{n}.png").read_bytes() for n in SEEDS]
    written = np.stack([tf.io.decode_png(picture) for picture in contents])
    assert written.shape == images.shape and images.std() > 5
    assert np.abs(written - np.float32(images)).max() <= 1
    bound = signatures["log_likelihood"](image_bytes=tf.constant(contents), seed=seed)
    lines = re.findall(r"seed (\d+): (\S+) nats, (\S+) bits/dim\n", ended.stdout)
    assert [int(line[0]) for line in lines] == SEEDS
    nats, bits = np.float64([line[1:] for line in lines]).T
    np.testing.assert_allclose(nats, -bound["elbo"], rtol=1e-4)
    np.testing.assert_allclose(bits, bound["bits_per_dim"], rtol=1e-4)
    expected = re.escape(f"TensorFlow {tf.__version__}: sample of 3, 2 calls: ")
    times = re.search(expected + r"median (\S+) ms, fastest (\S+) ms\n$", ended.stdout)
    assert 0 < float(times[2]) <= float(times[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["0"], "usage: "),
        (["-1", 1, 1, "."], "SEED is a whole number from 0 to 9223372036854775806, and not '-1'."),
        (["99999999999999999999", 1, 1, "."], "SEED is a whole number"),
        (["7", 0, 1, "."], "COUNT is a whole number from 1 to 1024, and not '0'."),
        (["7", "1x", 1, "."], "COUNT is a whole number from 1 to 1024, and not '1x'."),
        (["7", 1, -1, "."], "TEMPERATURE is a number from 0, and not '-1'."),
        (["7", 1, "nan", "."], "TEMPERATURE is a number from 0, and not 'nan'."),
        (["7", 1, 1, ".", "0"], "REPEATS is a whole number from 1 to 1000000, and not '0'."),
        (["7", 1, 1, "/no/directory"], "/no/directory/7.png: No such file or directory"),
    ],
)
def test_wrong_usage(program, arguments, message):
    ended = run(program, small_version(), *arguments)
    assert ended.returncode == 1
    assert message in ended.stderr and not ended.stdout


def test_models_of_others(program, tmp_path):
    ended = run(program, tmp_path, 7, 1, 1, tmp_path)
    assert ended.returncode == 1 and "Loading the SavedModel: Could not find" in ended.stderr
    module = tf.Module()
    specs = [tf.TensorSpec([None], tf.int64, "seed"), tf.TensorSpec([None], name="temperature")]
    module.sample = tf.function(lambda seed, temperature: {"image": temperature}, specs)
    for signatures, message in (
        ({"other": module.sample}, "The SavedModel has no signature 'sample'."),
        ({"sample": module.sample}, "The signature 'sample' has no 'image_bytes'."),
    ):
        tf.saved_model.save(module, str(tmp_path / "saved"), signatures)
        ended = run(program, tmp_path / "saved", 7, 1, 1, tmp_path)
        assert ended.returncode == 1 and message in ended.stderr
