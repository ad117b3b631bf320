"""Batches on several devices, which here are logical devices of the CPU."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.devices import all_devices, batches_on_devices, filled_rows, on_devices
from nvae_tf.evaluation import LikelihoodEvaluator
from nvae_tf.model.nvae import NVAE
from tests.conftest import random_images, tiny_model_config

TWO = ["/CPU:0", "/CPU:1"]


def test_a_cpu_counts_once():
    assert len(tf.config.list_logical_devices("CPU")) == 2
    assert len(all_devices()) == 1


def test_results_keep_their_order_and_all_devices_are_used():
    meeting = threading.Barrier(2, timeout=60)  # which one device alone would never pass

    def compute(number):
        meeting.wait()
        result = tf.constant(number) + 1
        return int(result), result.device

    results = list(on_devices(compute, range(6), TWO))
    assert [value for value, _ in results] == [1, 2, 3, 4, 5, 6]
    assert {device[-5:] for _, device in results} == {"CPU:0", "CPU:1"}
    assert tf.constant(0).device.endswith("CPU:0")  # the scope is over


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = on_devices(lambda number: number, items(), TWO)
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()


@pytest.mark.parametrize("devices", [TWO, TWO[:1]])
def test_errors_reach_the_caller(devices):
    def compute(number):
        if number == 2:
            raise ValueError("item 2")
        return number

    results = on_devices(compute, range(8), devices)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)


@pytest.mark.parametrize("devices", [TWO, TWO[:1]])
def test_batches_that_lack_images_are_filled_up_and_cut_again(devices):
    sizes, seen = [], []

    def compute(first, images):
        sizes.append(len(images))
        return images.numpy(), first + np.arange(len(images))

    batches = [tf.range(3), tf.range(3, 4), tf.range(4, 9), tf.range(9, 11)]
    results = batches_on_devices(compute, batches, devices, seen.append, first=100)
    values, numbers = map(np.concatenate, zip(*results))
    np.testing.assert_array_equal(values, np.arange(11))
    np.testing.assert_array_equal(numbers, 100 + np.arange(11))
    assert sorted(sizes) == [3, 3, 3, 5]
    assert seen == [3, 1, 5, 2]


def test_likelihoods_are_the_same_on_two_devices():
    config = tiny_model_config()
    model = NVAE(config)
    batches = [random_images(config, 2, seed) for seed in range(3)]
    one, two = (
        LikelihoodEvaluator(model, devices).per_image(batches, num_iw_samples=3)
        for devices in (TWO[:1], TWO)
    )
    np.testing.assert_array_equal(one.iw_bound, two.iw_bound)
    np.testing.assert_array_equal(one.kl_per_group, two.kl_per_group)
    np.testing.assert_array_equal(one.reconstruction, two.reconstruction)


def test_the_last_rows_are_filled_up():
    found = [(rows.tolist(), number) for rows, number in filled_rows(5, 2)]
    assert found == [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
