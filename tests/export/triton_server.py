"""NVIDIA Triton Inference Server, as the package `nvidia-pytriton` brings it.

That package has no ONNX backend, so here ONNX Runtime runs in Triton's Python backend. All else is
as in a repository that `export.triton_repository` wrote: names, shapes, versions, batching.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from export.triton_repository import DIRECTORY

STARTS = 120  # seconds that it may take

_MODEL = '''\
import pathlib

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Runs the ONNX file beside this one on all requests of a batch at once."""

    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = pathlib.Path(__file__).with_suffix(".onnx")
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        inputs = {
            name: np.concatenate(
                [triton.get_input_tensor_by_name(r, name).as_numpy() for r in requests]
            )
            for name in self.inputs
        }
        first = triton.get_input_tensor_by_name
        rows = [len(first(request, self.inputs[0]).as_numpy()) for request in requests]
        ends = np.cumsum(rows)[:-1]
        parts = zip(*(np.split(value, ends) for value in self.session.run(None, inputs)))
        return [
            triton.InferenceResponse([triton.Tensor(*of) for of in zip(self.outputs, part)])
            for part in parts
        ]
'''


class Addresses(NamedTuple):
    """HOST:PORT by protocol."""

    http: str
    grpc: str


def why_not() -> str | None:
    """Returns why Triton cannot run here, or None if it can."""
    for name in ("pytriton", "onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            return f"Triton's binary and ONNX Runtime: there is no package {name}"
    return None


@contextlib.contextmanager
def triton_server(
    base: pathlib.Path, directory: pathlib.Path, dynamic_batching: bool = True
) -> Iterator[Addresses]:
    """Serves a directory of versions, from a copy of it.

    Args:
      base: The directory, with a model repository.
      directory: An empty directory for the copy and the server's log.
      dynamic_batching: Whether the copy's models merge requests.
    """
    copy = directory / base.name
    shutil.copytree(base, copy, symlinks=True)
    for config in copy.glob(f"{DIRECTORY}/*/config.pbtxt"):
        text = config.read_text()
        if not dynamic_batching:
            text = text[: text.index("dynamic_batching")]
        text = text.replace('"onnxruntime"', '"python"').replace('.onnx"', '.py"')
        config.write_text(text)
    for model in copy.glob("*/*.onnx"):
        model.with_suffix(".py").write_text(_MODEL)
    binaries = _binaries(directory)
    addresses = Addresses(*(f"127.0.0.1:{port}" for port in _free_ports(2)))
    http, grpc = (address.rpartition(":")[2] for address in addresses)
    log = directory / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [
                str(binaries / "bin" / "tritonserver"),
                f"--model-repository={copy / DIRECTORY}",
                f"--backend-directory={binaries / 'backends'}",
                f"--http-port={http}",
                f"--grpc-port={grpc}",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                "--allow-metrics=false",
            ],
            env=os.environ
            | {
                "LD_LIBRARY_PATH": os.pathsep.join(_libraries()),
                # By its path, the stub finds this environment's packages.
                "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
                "OMP_NUM_THREADS": "1",
            },
            stdout=file,
            stderr=file,
        )
    try:
        _wait(process, f"http://{addresses.http}/v2/health/ready", log)
        yield addresses
    finally:
        process.terminate()
        process.wait(60)


def _libraries() -> list[str]:
    """The directories of the libraries that came with the server, and of Python's own."""
    import pytriton

    packages = pathlib.Path(pytriton.__file__).parents[1]
    return [str(packages / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]


def _binaries(directory: pathlib.Path) -> pathlib.Path:
    """A copy of the server with the stub for this Python in its backend."""
    import pytriton

    source = pathlib.Path(pytriton.__file__).parent / "tritonserver"
    copy = directory / "tritonserver"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("python_backend_stubs"))
    version = "{}.{}".format(*sys.version_info)
    stub = source / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, copy / "backends" / "python")
    return copy


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def _wait(process: subprocess.Popen, url: str, log: pathlib.Path) -> None:
    end = time.monotonic() + STARTS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"Triton does not start: {log.read_text()[-20000:]}")
        time.sleep(0.2)
