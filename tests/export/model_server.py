"""A stand-in for TensorFlow Serving, whose binary cannot be installed here.

What it is: a server on loopback which speaks the real protocol (the gRPC services PredictionService
and ModelService of `tensorflow-serving-api`, and the REST routes), watches a directory of versions,
loads the newest with `tf.compat.v1.saved_model.loader` into a session, answers the warm-up requests
to itself before it serves them, merges requests of one signature into batches, fills these up with
dummy rows, and computes them on several threads. Loading is restoring into a session and running
signatures by the names of their tensors, as in the real server, with the same C++ runtime below.

What it is not: the real server. The statuses and messages of errors, the formats of REST, the
rules for merging and the order of loading and unloading were rewritten from reading its sources;
how fast it is, and how it behaves under loads that matter, says nothing about the real one. There
are no streams, no Classify and Regress, no model configuration file and no monitoring.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent import futures

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tests.export.model_server_batching import Batcher, BatchingParameters, Failure, Merged
from tests.export.model_server_rest import serve_rest
from tests.export.model_server_versions import Version, as_proto_field, of_signature

State = get_model_status_pb2.ModelVersionStatus.State
_WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")
_THREADS = 256  # of requests, which mostly wait for their batches


class ModelServer:
    """Serves the versions in a directory on two ports of loopback, within a `with` block.

    Args:
      base: directory of directories named by integers.
      name: of the model.
      labels: versions by label.
      num_versions: how many of the newest are served; an older one goes when its successor serves.
      batching: None: no merging.
      grappler: whether graphs are optimised as in the real server; without it loading takes a third
        of the time.
      poll_seconds: between two looks into the directory.
      ports: of gRPC and REST; 0: a free one.

    Attributes:
      grpc_address: HOST:PORT.
      rest_address: HOST:PORT.
      before: called with every request to predict, on its thread: may sleep, or raise a Failure.
      requests: how many requests to predict have arrived.
      warmed_up: (version, signature) of every warm-up request, in order.
    """

    def __init__(
        self,
        base: str | os.PathLike,
        name: str = "nvae",
        labels: Mapping[str, int] | None = None,
        num_versions: int = 1,
        batching: BatchingParameters | None = None,
        grappler: bool = False,
        poll_seconds: float = 0.1,
        ports: tuple[int, int] = (0, 0),
    ):
        self.before: Callable[[predict_pb2.PredictRequest], None] = lambda request: None
        self.requests = 0
        self.warmed_up: list[tuple[int, str]] = []
        self._base = os.fspath(base)
        self._name = name
        self._labels = dict(labels or {})
        self._num_versions = num_versions
        self._grappler = grappler
        self._poll_seconds = poll_seconds
        self._ports = ports
        self._versions: dict[int, Version] = {}
        self._states: dict[int, tuple[State, str]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._batcher = Batcher(batching) if batching else None

    def __enter__(self) -> ModelServer:
        self.load_new_versions()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(self), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(self), self._server)
        grpc_port, rest_port = self._ports
        grpc_port = self._server.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self._server.start()
        self._rest = serve_rest(self, rest_port)
        self.rest_address = f"127.0.0.1:{self._rest.server_address[1]}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._watcher.join()
        self._rest.shutdown()
        self._rest.server_close()
        self._server.stop(grace=None).wait()
        if self._batcher:
            self._batcher.close()

    @property
    def merged(self) -> list[Merged]:
        """The batches computed so far."""
        return list(self._batcher.merged) if self._batcher else []

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.load_new_versions()

    def load_new_versions(self) -> None:
        """Loads what is new in the directory, and then drops what is too old."""
        try:
            names = os.listdir(self._base)
        except OSError:
            names = []
        found = sorted(int(name) for name in names if name.isascii() and name.isdigit())
        aspired = found[-self._num_versions :]
        for number in aspired:
            if number in self._states:
                continue
            self._states[number] = State.LOADING, ""
            try:
                directory = os.path.join(self._base, str(number))
                version = Version(directory, self._grappler)
                self._warm_up(number, version, os.path.join(directory, _WARMUP))
            except (tf.errors.OpError, OSError, ValueError, Failure) as error:
                self._states[number] = State.END, str(error)
                continue
            self._versions = self._versions | {number: version}  # others are reading
            self._states[number] = State.AVAILABLE, ""
        serving = {n: version for n, version in self._versions.items() if n in aspired}
        if serving:
            for number in set(self._versions) - set(serving):
                self._states[number] = State.END, ""
            self._versions = serving  # the session of a dropped one ends with its last request

    def _warm_up(self, number: int, version: Version, path: str) -> None:
        if not os.path.exists(path):
            return
        for record in tf.compat.v1.io.tf_record_iterator(path):
            log = prediction_log_pb2.PredictionLog.FromString(record)
            request = log.predict_log.request
            feeds, fetches, values = of_signature(version, request)
            version.run(feeds, tuple(fetches.values()), values)
            self.warmed_up.append((number, request.model_spec.signature_name))

    def find(self, spec: model_pb2.ModelSpec) -> tuple[int, Version]:
        """The version that a request asks for.

        Raises:
          Failure: if there is none.
        """
        wanted = "Latest({name})"
        number = max(self._versions, default=-1)
        if spec.version_label:
            if spec.name != self._name or spec.version_label not in self._labels:
                raise Failure(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Unrecognized servable version label: {spec.version_label}",
                )
            wanted, number = "Specific({name}, {number})", self._labels[spec.version_label]
        elif spec.HasField("version"):
            wanted, number = "Specific({name}, {number})", spec.version.value
        version = self._versions.get(number)
        if spec.name != self._name or version is None:
            text = wanted.format(name=spec.name, number=number)
            raise Failure(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {text}")
        return number, version

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answers a request, of whichever protocol.

        Raises:
          Failure: if there is no answer.
        """
        with self._lock:
            self.requests += 1
        self.before(request)
        number, version = self.find(request.model_spec)
        feeds, fetches, values = of_signature(version, request)
        names = tuple(fetches.values())
        if self._batcher:
            key = (number, feeds, names)
            outputs = self._batcher.run(
                key,
                request.model_spec.signature_name,
                values,
                lambda merged: version.run(feeds, names, merged),
            )
        else:
            outputs = version.run(feeds, names, values)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        response.model_spec.version.value = number
        for name, value in zip(fetches, outputs):
            response.outputs[name].CopyFrom(as_proto_field(value))
        return response

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """States of the versions that have been seen, or of the one that is asked for.

        Raises:
          Failure: if there are none.
        """
        states = dict(self._states) if spec.name == self._name else {}
        missing = f"any versions of model {spec.name}"
        if spec.version_label or spec.HasField("version"):
            number = self._labels.get(spec.version_label, spec.version.value)
            states = {number: states[number]} if number in states else {}
            missing = f"version {number} of model {spec.name}"
        if not states:
            raise Failure(grpc.StatusCode.NOT_FOUND, f"Could not find {missing}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, (state, message) in sorted(states.items(), reverse=True):
            status = response.model_version_status.add(version=number, state=state)
            status.status.error_message = message
            status.status.error_code = 2 if message else 0  # UNKNOWN or OK
        return response

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures.

        Raises:
          Failure: if another field is asked for, or there is no such model.
        """
        if list(request.metadata_field) != ["signature_def"]:
            raise Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Metadata field {', '.join(request.metadata_field)} is not supported",
            )
        number, version = self.find(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._name
        response.model_spec.version.value = number
        response.metadata["signature_def"].Pack(signatures)
        return response


def _answer(context: grpc.ServicerContext, function: Callable, request: object) -> object:
    try:
        return function(request)
    except Failure as failure:
        return context.abort(failure.code, failure.message)


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server: ModelServer):
        self._server = server

    def Predict(self, request, context):
        return _answer(context, self._server.predict, request)

    def GetModelMetadata(self, request, context):
        return _answer(context, self._server.metadata, request)


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: ModelServer):
        self._server = server

    def GetModelStatus(self, request, context):
        return _answer(context, lambda asked: self._server.status(asked.model_spec), request)
