"""The files for TensorFlow Serving, parsed by its own protocol buffers.

The package `tensorflow-serving-api` has those of the models' configuration, but not those of
batching and monitoring: these are declared here as far as they are used, with the numbers and types
of `session_bundle_config.proto` and `monitoring_config.proto`.
"""

import pathlib
import re

import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,  # noqa: F401  (declares what is imported below)
)
from tensorflow_serving.config import model_server_config_pb2

import export

FILES = pathlib.Path(export.__file__).parent / "serving"
_FIELD = descriptor_pb2.FieldDescriptorProto


def message(name, fields, dependencies=()):
    """A message type of scalars and other messages: {field: (number, type, repeated)}."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"test_{name}.proto", package="test", syntax="proto3", dependency=dependencies
    )
    declared = file.message_type.add(name=name)
    for field, (number, kind, repeated) in fields.items():
        added = declared.field.add(
            name=field,
            number=number,
            label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
        )
        if isinstance(kind, str):
            added.type, added.type_name = _FIELD.TYPE_MESSAGE, kind
        else:
            added.type = kind
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindMessageTypeByName(f"test.{name}")
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)  # protobuf 3


@pytest.fixture(scope="module")
def batching_parameters():
    integer = ".google.protobuf.Int64Value"
    return message(
        "BatchingParameters",
        {
            "max_batch_size": (1, integer, False),
            "batch_timeout_micros": (2, integer, False),
            "max_enqueued_batches": (3, integer, False),
            "num_batch_threads": (4, integer, False),
            "thread_pool_name": (5, ".google.protobuf.StringValue", False),
            "allowed_batch_sizes": (6, _FIELD.TYPE_INT64, True),
            "pad_variable_length_inputs": (7, _FIELD.TYPE_BOOL, False),
        },
        ["google/protobuf/wrappers.proto"],
    )


@pytest.fixture(scope="module")
def monitoring_config():
    message("PrometheusConfig", {"enable": (1, _FIELD.TYPE_BOOL, 0), "path": (2, 9, 0)})
    field = {"prometheus_config": (1, ".test.PrometheusConfig", False)}
    return message("MonitoringConfig", field, ["test_PrometheusConfig.proto"])


def parse(name, message_type):
    return text_format.Parse((FILES / name).read_text(), message_type())


def test_models():
    parsed = parse("models.config", model_server_config_pb2.ModelServerConfig)
    (model,) = parsed.model_config_list.config
    assert (model.name, model.base_path) == ("nvae", "/models/nvae")
    assert model.model_platform == "tensorflow"
    assert set(model.version_labels) == {"stable", "canary"}
    # A label for a version that is not loaded is an error; at the start, none is loaded yet.
    assert "--allow_version_labels_for_unavailable_models" in (FILES / "serve.sh").read_text()
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_batching(batching_parameters):
    parsed = parse("batching_parameters.txt", batching_parameters)
    sizes = list(parsed.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == parsed.max_batch_size.value == 32
    assert parsed.batch_timeout_micros.value > 0
    assert parsed.max_enqueued_batches.value > 0 and parsed.num_batch_threads.value > 0


def test_monitoring(monitoring_config):
    parsed = parse("monitoring.config", monitoring_config)
    assert parsed.prometheus_config.enable
    assert parsed.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_unknown_fields_are_errors(batching_parameters):
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sizes { value: 32 }", batching_parameters())


def test_the_command_uses_these_files_and_a_fixed_image():
    script = (FILES / "serve.sh").read_text()
    used = set(re.findall(r"=/serving/([\w.]+)", script))
    assert used == {path.name for path in FILES.iterdir()} - {"serve.sh"}
    assert re.search(r"tensorflow/serving:\d+\.\d+\.\d+ ", script)
