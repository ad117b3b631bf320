"""Serves the page that draws samples in a browser, from this machine to this machine.

`python examples/browser/serve.py --model=serving/onnx/1/sample_tensors.onnx`, after
`npm install --no-save --ignore-scripts --prefix=. onnxruntime-web@1.30.0`. Any web server can do
the same; docs/serving.md says what it has to send.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import pathlib
import posixpath
import sys
import urllib.parse

from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "sample_tensors.onnx of an export.", required=True)
_RUNTIME = flags.DEFINE_string(
    "runtime", "node_modules/onnxruntime-web/dist", "Files of the npm package onnxruntime-web."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port on 127.0.0.1; 0 takes a free one.", lower_bound=0, upper_bound=65535
)

_PAGE = pathlib.Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".wasm": "application/wasm",  # else browsers refuse to compile it while it arrives
}
# Threads of WebAssembly share memory, which browsers allow to isolated pages only.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
}


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Answers with the page, the model and the runtime, and with no other file."""

    extensions_map = _TYPES

    def __init__(self, *args: object, model: str, runtime: str) -> None:
        self._model, self._runtime = model, runtime
        super().__init__(*args)

    def translate_path(self, path: str) -> str:
        """The file of a path; one that does not exist if the path leads nowhere."""
        name = posixpath.normpath(urllib.parse.unquote(urllib.parse.urlsplit(path).path))
        directory, file = posixpath.split(name)
        if name in ("/", "/index.html", "/seed_noise.mjs"):
            return str(_PAGE / (file or "index.html"))
        if name == "/sample_tensors.onnx":
            return self._model
        if directory == "/runtime" and file.endswith((".mjs", ".wasm")):
            return os.path.join(self._runtime, file)
        return os.path.join(os.devnull, "nothing")  # for which the answer is 404

    def end_headers(self) -> None:
        """Adds the headers of every answer."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, *args: object) -> None:
        """Keeps the terminal for errors."""


def main(argv: list[str]) -> None:
    del argv
    if not os.path.isfile(_MODEL.value):
        raise app.UsageError(f"--model={_MODEL.value} is not a file; nvae-export writes one.")
    if not os.path.isfile(os.path.join(_RUNTIME.value, "ort.wasm.min.mjs")):
        raise app.UsageError(
            f"--runtime={_RUNTIME.value} has no ort.wasm.min.mjs: npm install --no-save "
            "--ignore-scripts --prefix=. onnxruntime-web@1.30.0"
        )
    handler = functools.partial(_Handler, model=_MODEL.value, runtime=_RUNTIME.value)
    try:
        listening = http.server.ThreadingHTTPServer(("127.0.0.1", _PORT.value), handler)
    except OSError as error:
        sys.exit(
            f"Error: cannot listen on 127.0.0.1:{_PORT.value} ({error.strerror}); --port chooses "
            "another one."
        )
    with listening as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    app.run(main)
