"""Publishes versions of a stand-in model: `python -m tests.export.publisher BASE COUNT KEEP`.

A process to be killed by a test. The SavedModel is tiny; all else is the real `publish`. It is
written slowly, so that kills come in the middle of it.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import keras
import tensorflow as tf

from export import publish as publishing
from export.manifest import Manifest, write_manifest
from nvae_tf import ExperimentConfig

SIGNATURE = "number"


def write_stand_in(model: object, directory: str, manifest: Manifest) -> None:
    """What `write_saved_model` is replaced with: a SavedModel that answers the manifest's step."""
    del model
    module = tf.Module()
    module.number = tf.Variable(tf.fill([100_000], manifest.step))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="rows")])
    def number(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        return {SIGNATURE: rows + module.number[-1]}

    tf.saved_model.save(module, directory, signatures={SIGNATURE: number})
    time.sleep(0.02)
    write_manifest(directory, dataclasses.replace(manifest, signatures=(SIGNATURE,)))


def main() -> None:
    base, count, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    publishing.write_saved_model = write_stand_in
    print("ready", flush=True)
    for _ in range(count):
        number = max(publishing.versions(base), default=0) + 1
        manifest = Manifest.of(ExperimentConfig(), step=number)
        print(publishing.publish(keras.Model(), base, manifest, keep), flush=True)


if __name__ == "__main__":
    main()
