"""What can only be seen on a GPU: the step beside that of the CPU, memory, and resumption.

`pytest -m gpu` runs these on a machine that has one.
"""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.runs.workdir import Workdir
from tests.conftest import small_experiment_config, tiny_experiment_config
from tests.trainers.run.test_experiment import train_until_killed, weights
from tests.trainers.run.test_trainer import stored_images
from trainers.run.experiment import train
from trainers.run.memory import peak_memory
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU here"
    ),
]
STEPS = 3


def losses(config, device):
    strategy = tf.distribute.OneDeviceStrategy(device)
    trainer = Trainer(config, strategy, num_images=100)
    iterator = iter(trainer.batches(stored_images(config)))
    metrics = [trainer.step(iterator) for _ in range(STEPS)]
    return [float(m.batch.loss) for m in metrics], [float(m.verdict.gradient_norm) for m in metrics]


@pytest.fixture(scope="module")
def on_cpu():
    return losses(small_experiment_config(steps=100), "/cpu:0")


@pytest.mark.parametrize("jit_compile", ["none", "islands", "step"])
@pytest.mark.parametrize(
    ("precision", "rtol"), [("float32", 1e-3), ("mixed_bfloat16", 2e-2), ("mixed_float16", 2e-2)]
)
def test_the_step_is_that_of_the_cpu(on_cpu, jit_compile, precision, rtol):
    changes = {"train.jit_compile": jit_compile, "train.precision": precision}
    ours = losses(small_experiment_config(steps=100).override(changes), "/gpu:0")
    np.testing.assert_allclose(ours[0], on_cpu[0], rtol)
    np.testing.assert_allclose(ours[1], on_cpu[1], 5 * rtol)


def test_recomputation_takes_less_memory():
    def peak(recompute):
        wide = {"model.num_channels_enc": 64, "model.num_channels_dec": 64}
        config = tiny_experiment_config(steps=100, global_batch_size=64).override(
            wide | {"model.num_cell_per_cond_dec": 4, "train.recompute": recompute}
        )
        trainer = Trainer(config, make_strategy("one_device"), num_images=100)
        iterator = iter(trainer.batches(stored_images(config)))
        trainer.step(iterator)
        tf.config.experimental.reset_memory_stats("GPU:0")
        float(trainer.step(iterator).batch.loss)
        return peak_memory()["GPU:0"]

    assert peak(recompute=True) < peak(recompute=False)


def test_a_run_resumes(tmp_path):
    config = tiny_experiment_config(steps=4, checkpoint_every=2)
    whole, parts = Workdir(tmp_path / "whole"), Workdir(tmp_path / "parts")
    train(config, whole)
    train_until_killed(config, parts, step=2)
    train(config, parts)
    expected = weights(whole)
    for path, value in weights(parts).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-3, atol=1e-4, err_msg=path)
