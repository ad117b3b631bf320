"""Servers that answer with whatever bytes a test wants."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

import grpc


@contextlib.contextmanager
def raw_server(
    pieces: Callable[[], Iterable[bytes]], pause: float = 0.0
) -> Iterator[tuple[str, list[socket.socket]]]:
    """Answers every connection with these bytes, and yields HOST:PORT and the connections.

    Args:
      pieces: Returns what a connection gets, in parts.
      pause: Seconds after each part.
    """
    connections: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(1 << 16)
            for piece in pieces():
                connection.sendall(piece)
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # closed with unread bytes, it would be reset
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=answer, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", connections
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def grpc_server(answer: Callable[[], bytes]) -> Iterator[str]:
    """Answers every call of Predict with a serialised message, and yields HOST:PORT."""
    handler = grpc.method_handlers_generic_handler(
        "tensorflow.serving.PredictionService",
        {"Predict": grpc.unary_unary_rpc_method_handler(lambda request, context: answer())},
    )
    server = grpc.server(futures.ThreadPoolExecutor(1), [handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
