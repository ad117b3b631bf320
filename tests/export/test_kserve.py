"""The client over KServe's protocol: the images of the seeds, and one clear error for the rest."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from export.seed_noise import noise_inputs
from export.serving_client import Client, RequestError
from tests.export.broken_servers import raw_server
from tests.export.exported import small_model, small_signatures
from tests.export.kserve_server import kserve_server

SEED = 7
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module", params=["binary", "JSON"])
def address(request):
    with kserve_server(small_signatures(), request.param == "binary") as found:
        yield found


@pytest.fixture
def client(address):
    with Client(address, "kserve", retries=0) as connected:
        yield connected


def served(rows, temperature):
    seeds = SEED + np.arange(rows, dtype=np.int64)
    factors = np.full(rows, temperature, np.float32)
    return small_signatures()["sample"](seed=seeds, temperature=factors)["image"].numpy()


def noise(rows):
    return noise_inputs(range(SEED, SEED + rows), small_model().config.latent_shapes)


def test_a_seed_gives_the_image_of_tensorflow_serving(client):
    images = client.sample(3, seed=SEED, temperature=0.7)
    assert images.dtype == np.uint8 and np.ptp(images) > 100
    assert np.abs(images.astype(int) - served(3, 0.7)).max() <= 1


def test_more_than_a_request(client):
    images = client.sample(34, seed=SEED)
    np.testing.assert_array_equal(images[32:], client.sample(2, seed=SEED + 32))


def test_portable_signatures(client):
    sampled = client.ask("sample_tensors", noise(2) | {"temperature": np.float32([0.7, 0.7])})
    assert np.abs(np.round(255 * sampled["image"]) - served(2, 0.7)).max() <= 1
    answer = client.ask("infer_tensors", {"image": sampled["image"]} | noise(2))
    expected = small_signatures()["infer_tensors"](image=sampled["image"], **noise(2))
    assert set(answer) == set(expected)
    for name, value in expected.items():
        assert answer[name].shape == value.shape
        np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-4)
    latents = {name: value for name, value in answer.items() if name.startswith("z_")}
    decoded = client.ask("decode_tensors", latents)["image"]
    expected = small_signatures()["decode_tensors"](**latents)["image"]
    np.testing.assert_allclose(decoded, expected, atol=1e-5)


def test_groups_are_in_the_order_of_their_numbers():
    """As text, `noise_100` comes before `noise_11`."""
    shapes = [(1, 1, 1 + group % 3) for group in range(102)]
    expected = noise_inputs([SEED], shapes)
    specs = {name: tf.TensorSpec([None, *v.shape[1:]], name=name) for name, v in expected.items()}
    specs["temperature"] = tf.TensorSpec([None], name="temperature")
    echo = tf.function(lambda **inputs: inputs).get_concrete_function(**specs)
    inputs = {"seed": np.array([SEED]), "temperature": np.float32([1.0])}
    with kserve_server({"sample_tensors": echo}) as server, Client(server, "kserve") as client:
        answer = client.ask("sample_tensors", inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(answer[name], value)


@pytest.mark.parametrize(
    "options, ask, code, message",
    [
        ({"model": "vae"}, lambda c: c.sample(1), "NOT_FOUND", "no model 'vae' loaded"),
        ({"version": 3}, lambda c: c.sample(1), "NOT_FOUND", "'nvae' in version 3 loaded"),
        (
            {},
            lambda c: c.ask("encode", {"image_bytes": np.array([b""], object)}),
            "UNIMPLEMENTED",
            "no 'encode' over kserve.*only sample, decode_tensors.*TensorFlow Serving",
        ),
        (
            {},
            lambda c: c.ask("decode_tensors", {"z_00": np.zeros([1, 2, 2, 1], np.float32)}),
            "INVALID_ARGUMENT",
            "refuses the request to 'decode_tensors'",
        ),
        (
            {},
            lambda c: c.ask("sample", {"seed": np.zeros(1, np.int64)}),
            "INVALID_ARGUMENT",
            "the input 'temperature' is missing",
        ),
    ],
)
def test_refusals(address, options, ask, code, message):
    with (
        Client(address, "kserve", retries=0, **options) as client,
        pytest.raises(RequestError, match=message) as caught,
    ):
        ask(client)
    assert caught.value.code == code


def test_labels_are_not_known():
    with pytest.raises(ValueError, match="has no labels: 'stable'"):
        Client("localhost:1", "kserve", label="stable")


def test_no_tensorflow_is_imported():
    program = "import sys; from export.serving_client import Client; Client('a:1', 'kserve')"
    found = "print([name for name in ('tensorflow', 'keras', 'nvae_tf') if name in sys.modules])"
    command = [sys.executable, "-c", f"{program}; {found}"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.slow
def test_the_benchmark_counts_answers():
    flags = ("--requests=5", "--images=2", "--clients=2")
    with kserve_server(small_signatures()) as server:
        command = [sys.executable, "-m", "benchmarks.kserve", f"--server={server}", *flags]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1].startswith("| 2 | 2 | 5 | ")


def http(body, *headers):
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def metadata(**shapes):
    inputs = [{"name": n, "datatype": "FP32", "shape": s} for n, s in shapes.items()]
    return json.dumps({"inputs": inputs}).encode()


RIGHT = metadata(noise_00=[-1, 1, 1, 1], temperature=[-1, 1])
WRONG_METADATA = {
    "no JSON": b"<html>",
    "nested": b"[" * 1_000_000,
    "no object": b"[]",
    "no inputs": b"{}",
    "text": b'{"inputs": ["a"]}',
    "no noise": metadata(temperature=[-1, 1]),
    "no temperature": metadata(noise_00=[-1, 1, 1, 1]),
    "flat noise": metadata(noise_00=[-1, 4], temperature=[-1, 1]),
    "open noise": metadata(noise_00=[-1, -1, -1, 8], temperature=[-1, 1]),
    "large noise": metadata(noise_00=[-1, 60000, 60000, 8], temperature=[-1, 1]),
}
IMAGE = {"name": "image", "datatype": "FP32", "shape": [1, 2, 1, 1]}


def reply(entry, tensor=b"", length=None):
    head = json.dumps({"outputs": [entry]}).encode()
    return head + tensor, f"{LENGTH}: {len(head) if length is None else length}"


WRONG_REPLIES = {
    "no JSON": (b"<html>",),
    "no outputs": (b"{}",),
    "text": (b'{"outputs": ["a"]}',),
    "no image": reply(IMAGE | {"name": "kl", "data": [0.0, 1.0]}),
    "other type": reply(IMAGE | {"datatype": "INT8", "data": [0, 1]}),
    "too few": reply(IMAGE | {"data": [0.5]}),
    "beyond floats": reply(IMAGE | {"data": [10**400, 1]}),
    "above one": reply(IMAGE | {"data": [0.5, 1.5]}),
    "NaN": reply(IMAGE | {"data": [0.5, float("nan")]}),
    "two rows": reply(IMAGE | {"shape": [2, 1, 1, 1], "data": [0.5, 0.5]}),
    "negative shape": reply(IMAGE | {"shape": [-1, 2, 1, 1], "data": [0.5, 0.5]}),
    "short tensor": reply(IMAGE | {"parameters": {"binary_data_size": 8}}, bytes(4)),
    "odd tensor": reply(IMAGE | {"parameters": {"binary_data_size": 7}}, bytes(7)),
    "size in words": reply(IMAGE | {"parameters": {"binary_data_size": "8"}}, bytes(8)),
    "listed parameters": reply(IMAGE | {"parameters": [8]}, bytes(8)),
    "long header": reply(IMAGE | {"data": [0.0, 1.0]}, length=999),
    "header in words": reply(IMAGE | {"data": [0.0, 1.0]}, length="all"),
}


@pytest.mark.parametrize("body", WRONG_METADATA.values(), ids=WRONG_METADATA)
def test_what_is_no_metadata(body):
    with (
        raw_server(lambda: [http(body)]) as (address, _),
        Client(address, "kserve") as client,
        pytest.raises(RequestError) as caught,
    ):
        client.sample(1)
    assert caught.value.code == "INTERNAL" and len(str(caught.value)) < 500


@pytest.mark.parametrize("names", [("noise_a",), ("noise_00", "noise_02"), ("noise_1", "noise_2")])
def test_noise_is_numbered_from_zero(names):
    inputs = metadata(**{name: [-1, 1, 1, 1] for name in names}, temperature=[-1, 1])
    with (
        raw_server(lambda: [http(inputs)]) as (address, _),
        Client(address, "kserve") as client,
        pytest.raises(RequestError, match="are not those of sample_tensors, noise_00, noise_01"),
    ):
        client.sample(1)


def asked(*answer):
    """What the client gets from a server with these metadata and this answer."""
    replies = iter([http(RIGHT), http(*answer)])
    with raw_server(lambda: [next(replies)]) as (address, _), Client(address, "kserve") as client:
        return client.sample(1)


@pytest.mark.parametrize("answer", WRONG_REPLIES.values(), ids=WRONG_REPLIES)
def test_what_is_no_answer(answer):
    with pytest.raises(RequestError) as caught:
        asked(*answer)
    assert caught.value.code == "INTERNAL" and str(caught.value).isprintable()


def test_a_right_answer():
    sized = IMAGE | {"parameters": {"binary_data_size": 8}}
    for answer in (
        reply(sized, np.float32([0.0, 1.0]).tobytes()),
        reply(IMAGE | {"data": [0.0, 1.0]}),
    ):
        np.testing.assert_array_equal(asked(*answer), np.uint8([[[[0]], [[255]]]]))


def test_metadata_and_answer_share_the_deadline():
    slow = [http(RIGHT)[:-1], http(RIGHT)[-1:]]
    begin = time.monotonic()
    with (
        raw_server(lambda: slow, pause=0.4) as (address, _),
        Client(address, "kserve", deadline=0.6) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.sample(1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - begin < 1.0
