"""Times ONNX Runtime Web in a browser without a screen: `runtimes.html` in Chromium."""

from __future__ import annotations

import contextlib
import http.server
import json
import pathlib
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

FLAGS = (  # of Chromium without a screen, which looks nothing up
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_DEADLINE = 300  # seconds


def time_in_browser(
    model: pathlib.Path, runtime: pathlib.Path, inputs: Mapping[str, Any], repeats: int
) -> dict[str, Any]:
    """Returns what `runtimes.html` sends: `version`, and the `milliseconds` of all calls.

    Args:
      model: The ONNX file.
      runtime: The directory `dist` of onnxruntime-web.
      inputs: By name, `shape` and `data`, which is base64 of float32.
      repeats: Number of calls, after a first one.

    Raises:
      RuntimeError: The page could not run the model.
      TimeoutError: The page has sent nothing.
    """
    files = {
        "/": pathlib.Path(__file__).with_name("runtimes.html").read_bytes(),
        "/sample_tensors.onnx": model.read_bytes(),
        "/inputs.json": json.dumps({"inputs": inputs, "repeats": repeats}).encode(),
    }
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    with _serving(files, runtime, results) as address, tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *FLAGS, f"--user-data-dir={profile}", address]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as browser:
            try:
                result = results.get(timeout=_DEADLINE)
            except queue.Empty:
                raise TimeoutError(f"No times from Chromium in {_DEADLINE} s.") from None
            finally:
                browser.terminate()
    if "error" in result:
        raise RuntimeError(f"The page says: {result['error']}")
    return result


@contextlib.contextmanager
def _serving(
    files: Mapping[str, bytes], runtime: pathlib.Path, results: queue.Queue[dict[str, Any]]
) -> Iterator[str]:
    """Serves files by path, and those of the runtime, and queues what is posted."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = pathlib.PurePosixPath(self.path)
            content = files.get(self.path)
            if content is None and str(path.parent) == "/runtime" and path.suffix in _TYPES:
                content = (runtime / path.name).read_bytes()
            self._answer(content, _TYPES.get(path.suffix, "text/html"))

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(b"", "text/plain")

        def _answer(self, content: bytes | None, kind: str) -> None:
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", kind)
            # Threads share memory, which needs an isolated page.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
