"""What TFX hands over, without TFX: arguments, a data accessor and a pipeline's files."""

from __future__ import annotations

import glob
import os

import tensorflow as tf

from tests.conftest import small_experiment_config

SMALL = {
    name: list(value) if isinstance(value, tuple) else value  # as they come out of JSON
    for name, value in small_experiment_config(steps=50, image_every=50, checkpoint_every=50)
    .flat()
    .items()
    if name.startswith(("model.", "train."))
}


class RecordBatch:
    """Stands in for a pyarrow.RecordBatch."""

    def __init__(self, records):
        self._examples = [tf.train.Example.FromString(record) for record in records]

    def to_pydict(self):
        names = {name for example in self._examples for name in example.features.feature}
        return {name: [_values(e, name) for e in self._examples] for name in names}


def _values(example, name):
    if name not in example.features.feature:
        return None
    feature = example.features.feature[name]
    return list(getattr(feature, feature.WhichOneof("kind")).value)


class DataAccessor:
    """Stands in for tfx.components.DataAccessor: reads the pipeline's zipped TFRecords."""

    tf_dataset_factory = None
    data_view_decode_fn = None

    def record_batch_factory(self, patterns, options, schema):
        assert isinstance(patterns, list) and options.num_epochs == 1 and not options.shuffle
        files = [file for pattern in patterns for file in sorted(glob.glob(pattern))]
        dataset = tf.data.TFRecordDataset(files, "GZIP").batch(options.batch_size)
        return (RecordBatch(records.numpy()) for records in dataset)


class FnArgs:
    """Stands in for tfx.components.FnArgs: the same attributes."""

    def __init__(self, examples, output, **changes):
        self.working_dir = None
        self.train_files = [f"{examples}/Split-train/*"]
        self.eval_files = [f"{examples}/Split-eval/*"]
        self.train_steps = 3
        self.eval_steps = 2
        self.schema_path = self.schema_file = None
        self.transform_graph_path = self.transform_output = None
        self.data_accessor = DataAccessor()
        self.serving_model_dir = f"{output}/model/3/Format-Serving"
        self.eval_model_dir = f"{output}/model/3/Format-TFMA"
        self.model_run_dir = f"{output}/model_run/3"
        self.base_model = None
        self.hyperparameters = None
        self.custom_config = {"preset": "quickstart", "overrides": SMALL}
        for name, value in changes.items():
            assert hasattr(self, name)
            setattr(self, name, value)


def write_examples(path, features):
    """A zipped TFRecord file of examples with these features."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for feature in features:
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def bytes_feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def label(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
