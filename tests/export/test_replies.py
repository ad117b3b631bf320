"""Replies of servers that are broken or hostile: one clear error, in time, and without a file."""

import contextlib
import itertools
import json
import socket
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from export.serving_client import Client, RequestError
from tests.export.broken_servers import grpc_server, raw_server

IMAGES = np.zeros([2, 4, 4, 1], np.uint8)
DEADLINE = 0.5  # seconds


def http(body, status="200 OK", headers=()):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def dripping(start):
    return lambda: itertools.chain([start], itertools.repeat(b"1"))


SLOW = {
    "status": b"HTTP/1.1 20",
    "headers": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
    "error": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 1000000\r\n\r\n",
    "busy": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 1000000\r\n\r\n",
}


@pytest.mark.parametrize("start", SLOW.values(), ids=SLOW)
def test_a_dripping_server_does_not_outlive_the_deadline(start):
    with raw_server(dripping(start), pause=0.01) as (address, _):
        begin = time.monotonic()
        with (
            Client(address, "rest", deadline=DEADLINE) as client,
            pytest.raises(RequestError) as caught,
        ):
            client.sample(2)
        assert time.monotonic() - begin < 2 * DEADLINE
    assert caught.value.code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def resolve_to(monkeypatch, *addresses):
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, *_, **__: [(*kind, (a, port)) for a in addresses]
    )


@pytest.mark.parametrize("protocol", ["rest", "kserve"])
def test_the_addresses_of_a_host_share_the_deadline(protocol, monkeypatch):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # which fill the queue of those that wait for the listener
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.1", "127.0.0.1")
        begin = time.monotonic()
        with (
            Client(f"host:{listener.getsockname()[1]}", protocol, deadline=DEADLINE) as client,
            pytest.raises(RequestError, match="did not answer within") as caught,
        ):
            client.sample(2)
        assert time.monotonic() - begin < 2 * DEADLINE
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_an_address_that_refuses_is_passed_over(monkeypatch):
    answer = http(json.dumps({"error": "on purpose"}).encode(), "404 Not Found")
    with raw_server(lambda: [answer]) as (address, connections):
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        with (
            Client(f"host:{address.rpartition(':')[2]}", "rest", deadline=30) as client,
            pytest.raises(RequestError, match="on purpose"),
        ):
            client.sample(2)
        assert len(connections) == 1


def endless(start, piece=bytes(1 << 16)):
    return lambda: itertools.chain([start], itertools.repeat(piece))


CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
TOO_MUCH = {
    "body": endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"),
    "body without length": endless(b"HTTP/1.1 200 OK\r\n\r\n"),
    "chunks": endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
    "error": endless(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@pytest.mark.parametrize("pieces", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_reply_without_end(pieces):
    with raw_server(pieces) as (address, connections):
        with (
            Client(address, "rest", deadline=30) as client,
            pytest.raises(RequestError, match="fewer images.*more than 40,000,000 bytes") as caught,
        ):
            client.sample(2)
        assert caught.value.code == "OUT_OF_RANGE"
        assert len(connections) == 1


def outputs(**values):
    return json.dumps({"outputs": values}).encode()


WRONG = {
    "no JSON": b"<html>",
    "not UTF-8": b'{"outputs": "\xff"}',
    "nested": b"[" * 1_000_000,
    "no outputs": b'{"predictions": []}',
    "no names": b'{"outputs": "image"}',
    "a number": b'{"outputs": 1}',
    "no name, no image": b'{"outputs": [[0.5], [0.5]]}',
    "no name, one row": json.dumps({"outputs": IMAGES[:1].tolist()}).encode(),
    "no object": b"[]",
    "no image": outputs(kl=[[0.5], [0.5]]),
    "one row": outputs(image=IMAGES[:1].tolist()),
    "three rows": outputs(image=[*IMAGES.tolist(), IMAGES[0].tolist()]),
    "ragged": outputs(image=[[[[1]]], [[[1], [2]]]]),
    "nothing": outputs(),
    "floats": outputs(image=(IMAGES + 0.5).tolist()),
    "NaN": outputs(image=(IMAGES + np.nan).tolist()),
    "above 255": outputs(image=(IMAGES + np.int64(300)).tolist()),
    "negative": outputs(image=(IMAGES - np.int64(1)).tolist()),
    "beyond 64 bits": outputs(image=[[[[10**30]]]] * 2),
    "text": outputs(image=["a", "b"]),
    "truth": outputs(image=[[[[True]]]] * 2),
    "flat": outputs(image=[1, 2]),
    "no pixels": outputs(image=[[], []]),
    "no base64": outputs(image=IMAGES.tolist(), image_bytes=[{"b64": "!"}] * 2),
    "null": outputs(image=None),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_over_rest(body):
    with (
        raw_server(lambda: [http(body)]) as (address, _),
        Client(address, "rest") as client,
        pytest.raises(RequestError) as caught,
    ):
        client.sample(2)
    assert caught.value.code == "INTERNAL"


@pytest.mark.parametrize("named", [True, False])
def test_a_right_answer_over_rest(named):
    """TensorFlow Serving leaves out the name of a lone output."""
    body = {"outputs": {"image": IMAGES.tolist()} if named else IMAGES.tolist()}
    with (
        raw_server(lambda: [http(json.dumps(body).encode())]) as (address, _),
        Client(address, "rest") as client,
    ):
        np.testing.assert_array_equal(client.sample(2), IMAGES)


def test_redirects_are_not_followed():
    with raw_server(lambda: [http(outputs(image=IMAGES.tolist()))]) as (elsewhere, connections):
        moved = http(b"", "302 Found", [f"Location: http://{elsewhere}/"])
        with (
            raw_server(lambda: [moved]) as (address, _),
            Client(address, "rest") as client,
            pytest.raises(RequestError, match="HTTP 302"),
        ):
            client.sample(2)
        assert not connections


def test_terminals_are_not_commanded():
    said = http(
        json.dumps({"error": "\x1b]0;owned\x07\x1b[2J\u202e" + 999 * "x"}).encode(), "400 Bad"
    )
    with (
        raw_server(lambda: [said]) as (address, _),
        Client(address, "rest") as client,
        pytest.raises(RequestError) as caught,
    ):
        client.sample(2)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def response(**values):
    answer = predict_pb2.PredictResponse()
    for name, value in values.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        answer.outputs[name].CopyFrom(proto)
    return answer


ZERO = np.zeros([1], np.uint8)


def declared(*shape, value=ZERO, **fields):
    """A tensor of one value that declares this shape."""
    proto = tf.make_tensor_proto(value)
    proto.ClearField("tensor_shape")
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    for name, content in fields.items():
        setattr(proto, name, content)
    return proto


WRONG_RESPONSES = {
    "nothing": response(),
    "large": response(image=declared(2, 60000, 60000)),
    "large text": response(image=declared(2, 60000, 60000, value=[b""])),
    "negative": response(image=declared(2, -4, -4, 1)),
    "unknown type": response(image=declared(2, 4, 4, 1, dtype=77)),
    "wrong size": response(image=declared(2, 4, 4, 1, tensor_content=b"123")),
    "one row": response(image=IMAGES[:1]),
    "scalar": response(image=np.uint8(1)),
    "floats": response(image=np.float32(IMAGES)),
    "NaN": response(image=np.float32(IMAGES) + np.nan),
    "no image": response(kl=np.zeros([2, 3], np.float32)),
    "flat": response(image=np.zeros([2], np.uint8)),
}


@pytest.mark.parametrize("answer", WRONG_RESPONSES.values(), ids=WRONG_RESPONSES)
def test_what_is_no_answer_over_grpc(answer):
    with (
        grpc_server(answer.SerializeToString) as address,
        Client(address) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.sample(2)
    assert caught.value.code == "INTERNAL"


def test_a_right_answer_over_grpc():
    """One value may stand for all."""
    answer = response(image=declared(2, 4, 4, 1))
    with grpc_server(answer.SerializeToString) as address, Client(address) as client:
        np.testing.assert_array_equal(client.sample(2), IMAGES)


def test_a_message_that_is_too_large():
    answer = response(image=np.zeros([2, 5000, 5000, 1], np.uint8))
    with (
        grpc_server(answer.SerializeToString) as address,
        Client(address, retries=0) as client,
        pytest.raises(RequestError, match="fewer images.*more than 40,000,000 bytes") as caught,
    ):
        client.sample(2)
    assert caught.value.code == "OUT_OF_RANGE"
