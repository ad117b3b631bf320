"""The client, over both protocols, against the stand-in server."""

import contextlib
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export.limits import MAX_ROWS
from export.serving_client import Client, RequestError
from nvae_tf.sampling.images import sheet
from tests.export.exported import (
    SIGNATURES,
    pictures,
    requests,
    small_signatures,
    small_version,
)
from tests.export.model_server import ModelServer
from tests.export.model_server_batching import BatchingParameters, Failure
from tests.trainers.programs import Program

PROTOCOLS = ("grpc", "rest")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Without warm-up requests, so that loading is quick."""
    base = tmp_path_factory.mktemp("served")
    shutil.copytree(small_version(), base / "1", ignore=lambda *_: ["assets.extra"])
    return base


@pytest.fixture(scope="module")
def served(base):
    with ModelServer(base, labels={"stable": 1}, batching=BatchingParameters()) as server:
        yield server


@pytest.fixture
def server(served):
    """Without what another test has done to it."""
    served.before = lambda request: None
    served.requests = 0
    return served


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return request.param


def address(server, protocol):
    return server.grpc_address if protocol == "grpc" else server.rest_address


def connect(server, protocol, **options):
    return Client(address(server, protocol), protocol, **options)


def free_port():
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def direct(name, **inputs):
    return small_signatures()[name](**inputs)["image"].numpy()


def assert_same_pictures(images, others):
    """Kernels may round differently for another batch size: at most one grey level."""
    assert images.dtype == np.uint8 and images.shape == others.shape
    assert np.abs(images.astype(int) - others).max() <= 1
    assert len({image.tobytes() for image in images}) == len(images)


def seeds(*values):
    return tf.constant(values, tf.int64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A PNG, and a JPEG of another size."""
    directory = tmp_path_factory.mktemp("pictures")
    Image.fromarray(pictures(1)[0]).save(directory / "a.png")
    Image.fromarray(pictures(1, 30, 20, seed=1)[0]).save(directory / "b.jpg")
    return [str(directory / "a.png"), str(directory / "b.jpg")]


def contents(files):
    return tf.stack([tf.io.read_file(file) for file in files])


def test_sample(server, protocol):
    with connect(server, protocol, label="stable") as client:
        images = client.sample(3, seed=8, temperature=0.7)
    expected = direct("sample", seed=seeds(8, 9, 10), temperature=tf.fill([3], 0.7))
    assert_same_pictures(images, expected)


def test_large_seeds_and_image_i_is_image_0_of_seed_plus_i(server, protocol):
    with connect(server, protocol, version=1) as client:
        images = client.sample(2, seed=2**63 - 2)
        assert_same_pictures(images[1:], client.sample(1, seed=2**63 - 1))


def test_reconstruct(server, protocol, files):
    with connect(server, protocol) as client:
        images = client.reconstruct([files[0], tf.io.read_file(files[1]).numpy()])
    assert_same_pictures(images, direct("reconstruct", image_bytes=contents(files)))


def test_vary(server, protocol, files):
    with connect(server, protocol) as client:
        images = client.vary(files, keep_groups=1, seed=5, temperature=0.9)
    expected = direct(
        "vary",
        image_bytes=contents(files),
        keep_groups=tf.constant([1, 1]),
        seed=seeds(5, 6),
        temperature=tf.fill([2], 0.9),
    )
    assert_same_pictures(images, expected)


def test_any_signature(server, protocol):
    inputs = {name: value.numpy() for name, value in requests(2)["log_likelihood"].items()}
    expected = small_signatures()["log_likelihood"](**requests(2)["log_likelihood"])
    with connect(server, protocol) as client:
        answer = client.ask("log_likelihood", inputs)
    assert set(answer) == set(expected)
    for name, value in expected.items():
        if name == "error":
            assert answer[name].tolist() == [b"", b""]
            continue
        assert answer[name].dtype == np.float32
        np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-3)


def test_a_lone_output_has_its_name(server, protocol):
    latents = requests(2)["decode"]
    with connect(server, protocol) as client:
        inputs = {name: value.numpy() for name, value in latents.items()}
        answer = client.ask("decode_tensors", inputs)
    expected = small_signatures()["decode_tensors"](**latents)
    assert set(answer) == set(expected) == {"image"}
    assert answer["image"].dtype == np.float32
    np.testing.assert_allclose(answer["image"], expected["image"], atol=1e-5)


def test_both_protocols_give_the_same_bytes(server):
    inputs = {name: value.numpy() for name, value in requests(2)["sample"].items()}
    with connect(server, "grpc") as one, connect(server, "rest") as other:
        answers = [client.ask("sample", inputs) for client in (one, other)]
    assert answers[0]["image_bytes"].tolist() == answers[1]["image_bytes"].tolist()
    np.testing.assert_array_equal(answers[0]["image"], answers[1]["image"])


def test_many_images_are_asked_for_in_parts(server, protocol):
    with connect(server, protocol) as client:
        images = client.sample(MAX_ROWS + 3, seed=1)
        assert server.requests == 2
        assert_same_pictures(images[-3:], client.sample(3, seed=1 + MAX_ROWS))


@pytest.mark.parametrize(
    "options, code, message",
    [
        ({"model": "vae"}, "NOT_FOUND", "has no model 'vae' loaded, or not yet"),
        ({"version": 7}, "NOT_FOUND", "has no model 'nvae' in version 7 loaded"),
        ({"label": "new"}, "INVALID_ARGUMENT", "has no model 'nvae' with label 'new'"),
    ],
)
def test_models_that_are_not_there(server, protocol, options, code, message):
    with (
        connect(server, protocol, **options) as client,
        pytest.raises(RequestError, match=message) as caught,
    ):
        client.sample(1)
    assert caught.value.code == code
    assert server.requests <= 1  # such an answer is final


def test_wrong_signature(server, protocol):
    with (
        connect(server, protocol) as client,
        pytest.raises(RequestError, match="model 'nvae', but without a signature 'paint'"),
    ):
        client.ask("paint", {"seed": np.int64([1])})


def test_wrong_inputs(server, protocol):
    with (
        connect(server, protocol) as client,
        pytest.raises(RequestError, match="refuses the request to 'sample'.*temperature") as caught,
    ):
        client.ask("sample", {"seed": np.int64([1])})
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("retries", [0, 2])
def test_no_server(protocol, retries):
    server = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with (
        Client(server, protocol, retries=retries) as client,
        pytest.raises(RequestError, match=f"No answer from {server}: is a server") as caught,
    ):
        client.sample(1)
    assert caught.value.code == "UNAVAILABLE"
    shortest = 0.4 if retries == 2 else 0.0  # less than 0.2 + 0.4 seconds
    assert shortest <= time.monotonic() - start < 5


def test_port_of_the_other_protocol(server, protocol):
    other = address(server, "rest" if protocol == "grpc" else "grpc")
    with (
        Client(other, protocol, retries=0) as client,
        pytest.raises(RequestError, match=f"with {protocol} on this port") as caught,
    ):
        client.sample(1)
    assert caught.value.code == "UNAVAILABLE"


def test_deadline(server, protocol):
    server.before = lambda request: time.sleep(2.5)
    start = time.monotonic()
    with (
        connect(server, protocol, deadline=0.3) as client,
        pytest.raises(RequestError, match="did not answer within 0.3 seconds") as caught,
    ):
        client.sample(1)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - start < 2
    assert server.requests == 1


def failing(server, times, code):
    def fail(request):
        if server.requests <= times:
            raise Failure(code, "on purpose")

    server.before = fail


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_busy_server_is_asked_again(server, protocol, code):
    failing(server, 2, grpc.StatusCode[code])
    with connect(server, protocol, retries=2) as client:
        assert len(client.sample(1)) == 1
    assert server.requests == 3
    server.requests = 0
    with (
        connect(server, protocol, retries=1) as client,
        pytest.raises(RequestError, match="on purpose") as caught,
    ):
        client.sample(1)
    assert caught.value.code == code and server.requests == 2


@pytest.mark.parametrize("code", ["FAILED_PRECONDITION", "NOT_FOUND", "INTERNAL"])
def test_other_failures_are_final(server, protocol, code):
    failing(server, 1, grpc.StatusCode[code])
    with connect(server, protocol) as client, pytest.raises(RequestError, match="on purpose"):
        client.sample(1)
    assert server.requests == 1


def test_no_retry_goes_beyond_the_deadline(server, protocol):
    failing(server, 100, grpc.StatusCode.UNAVAILABLE)
    start = time.monotonic()
    with (
        connect(server, protocol, deadline=1.0) as client,
        pytest.raises(RequestError, match="on purpose|did not answer within 1 seconds"),
    ):
        client.sample(1)
    assert time.monotonic() - start < 1.5
    assert 2 <= server.requests <= 3  # after about 0.2 and 0.4 seconds, and not after 0.8 more


def test_a_server_that_comes_late(base):
    ports = free_port(), free_port()

    def ask(protocol, port):
        with Client(f"127.0.0.1:{port}", protocol, retries=4) as client:
            return client.sample(2)

    late = ModelServer(base, ports=ports)
    late.load_new_versions()  # which may take longer than a client waits
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(ask, *of) for of in zip(PROTOCOLS, ports)]
        time.sleep(0.5)
        with late as server:
            images = [answer.result() for answer in answers]
            assert server.requests == 2
    np.testing.assert_array_equal(*images)


def in_format(kind, mode="RGB"):
    content = io.BytesIO()
    Image.fromarray(pictures(1, 40, 40)[0]).convert(mode).save(content, kind)
    return content.getvalue()


def large_png():
    content = io.BytesIO()
    Image.new("1", (4097, 4097)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    "picture, message",
    [
        (b"", "Picture 1 is not a picture"),
        (b"no picture", "Picture 1 is not a picture"),
        # A DDS file whose kind of pixels Pillow does not know.
        (b"DDS " + struct.pack("<31I", 124, 0x1007, 8, 8, *27 * [0]), "Picture 1 is broken"),
        (in_format("PNG")[:-80], "Picture 1 is broken"),
        (in_format("JPEG")[:-80], "Picture 1 is broken"),
        (in_format("BMP"), "the format BMP; send PNG or JPEG"),
        (in_format("JPEG", "CMYK"), "four channels of print"),
        (large_png(), "Picture 1 has 4097x4097 pixels; send at most 16,777,216"),
    ],
)
def test_pictures_are_looked_at_first(picture, message):
    """There is no server, and no complaint about it."""
    with Client("localhost:1") as client, pytest.raises(ValueError, match=message):
        client.reconstruct([in_format("PNG"), picture])


def test_pictures_are_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with Client("localhost:1") as client:
        for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
            with pytest.raises(ValueError, match="not a regular file"):
                client.reconstruct([path])


def test_a_picture_that_only_the_server_refuses(server, protocol, monkeypatch):
    monkeypatch.setattr("export.serving_client._check_picture", lambda *_: None)
    with (
        connect(server, protocol) as client,
        pytest.raises(RequestError, match="cannot use picture 1: not a whole PNG") as caught,
    ):
        client.reconstruct([in_format("PNG"), b"no picture"])
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_large_request_is_repeated(server, protocol):
    """GRPC repeats requests above 256 KiB only if it is told."""
    noise = np.random.default_rng(0).integers(0, 256, [600, 600, 3], np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    assert len(content.getvalue()) > 1 << 20
    failing(server, 1, grpc.StatusCode.UNAVAILABLE)
    with connect(server, protocol) as client:
        client.reconstruct([content.getvalue()])
    assert server.requests == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_of_any_colours_are_answered(server, mode):
    if mode == "I;16":
        content = io.BytesIO()
        Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(content, "PNG")
        picture = content.getvalue()
    else:
        picture = in_format("PNG", mode)
    with connect(server, "grpc") as client:
        assert client.reconstruct([picture]).shape == (1, 12, 12, 3)


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda client: client.sample(0), "num_samples must be at least 1"),
        (lambda client: client.sample(1, seed=-1), "seed must be at least 0"),
        (lambda client: client.sample(2, seed=2**63 - 1), "all 2 images, below 2\\^63"),
        (lambda client: client.sample(1, temperature=-0.1), "temperature must be finite"),
        (lambda client: client.sample(1, temperature=np.nan), "temperature must be finite"),
        (lambda client: client.reconstruct([]), "at least one picture"),
        (lambda client: client.vary([in_format("PNG")], -1), "keep_groups must be at least 0"),
        (lambda client: client.ask("sample", {}), "received no inputs"),
        (lambda client: client.ask("sample", {"seed": np.zeros(0)}), "at least 1"),
        (
            lambda client: client.ask("sample", {"seed": np.zeros(32), "z": np.zeros(40)}),
            "{'seed': 32, 'z': 40}",
        ),
    ],
)
def test_wrong_arguments(ask, message):
    with Client("localhost:1") as client, pytest.raises(ValueError, match=message):
        ask(client)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"server": "localhost"}, "HOST:PORT"),
        ({"server": "http://localhost:8501"}, "HOST:PORT"),
        ({"server": "localhost:70000"}, "HOST:PORT"),
        ({"server": "a..b:80"}, "HOST:PORT"),
        ({"protocol": "http"}, "one of grpc, rest"),
        ({"version": 1, "label": "stable"}, "Choose between"),
        ({"version": -1}, "version must be"),
        ({"model": ""}, "name of a model"),
        ({"deadline": 0.0}, "deadline must be positive"),
        ({"retries": -1}, "retries must be"),
        ({"retries": 5}, "retries must be from 0 to 4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Client(**({"server": "localhost:1"} | options))


def test_rest_needs_no_tensorflow():
    program = "import sys; from export.serving_client import Client; Client('a:1', 'rest')"
    found = "print([name for name in ('tensorflow', 'keras', 'nvae_tf') if name in sys.modules])"
    command = [sys.executable, "-c", f"{program}; {found}"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def start(server, *flags):
    return Program("export.client", f"--server={server}", *flags)


def assert_sheet(path, expected):
    with Image.open(path) as picture:
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_program(server, tmp_path):
    output = tmp_path / "x.png"
    flags = ("--num_samples=35", "--seed=2", "--temperature=0.6", f"--output={output}")
    printed, _ = start(server.grpc_address, *flags).communicate()
    assert printed == f"sample, 35 images from {server.grpc_address}: {output}\n"
    assert server.requests == 2  # of 32 images at most
    with connect(server, "grpc") as client:
        assert_sheet(output, sheet(client.sample(35, seed=2, temperature=0.6)))


@pytest.mark.slow
def test_other_modes_of_the_program(server, files, tmp_path):
    images = f"--images={','.join(files)}"
    flags = ("--protocol=rest", images, f"--output={tmp_path / 'x.png'}")
    with connect(server, "grpc") as client:
        start(server.rest_address, "--mode=reconstruct", *flags).communicate()
        assert_sheet(tmp_path / "x.png", sheet(client.reconstruct(files)))
        drawing = ("--keep_groups=2", "--num_samples=3", "--seed=4")
        start(server.rest_address, "--mode=vary", *drawing, *flags).communicate()
        rows = [client.vary(3 * [file], 2, seed=4) for file in files]
        assert_sheet(tmp_path / "x.png", sheet(np.concatenate(rows), columns=3))


@pytest.mark.slow
def test_other_outputs_of_the_program(server, tmp_path):
    for output in (tmp_path / "x.npy", f"{tmp_path}/x/"):
        start(server.grpc_address, "--num_samples=3", f"--output={output}").communicate()
    with connect(server, "grpc") as client:
        expected = client.sample(3)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert_sheet(tmp_path / "x" / "00002.png", expected[2])


@pytest.mark.slow
def test_what_the_program_refuses(server, files, tmp_path):
    images = f"--images={files[0]}"
    output = f"--output={tmp_path / 'x.png'}"
    refused = {
        "No answer from 127.0.0.1:1: is a server": ("--server=127.0.0.1:1", "--retries=0"),
        "has no model 'vae' loaded": ("--model=vae",),
        "No such file or directory: 'none.png'": ("--mode=reconstruct", "--images=none.png"),
        "--mode=reconstruct needs --images": ("--mode=reconstruct",),
        "test_client.py' is not a picture": ("--mode=vary", f"{images},{__file__}"),
        "--mode=reconstruct has no use for --seed": ("--mode=reconstruct", images, "--seed=1"),
        "--mode=vary needs TensorFlow Serving": ("--mode=vary", images, "--protocol=kserve"),
        "The output must end in .png": ("--output=x.gif",),
    }
    programs = [start(server.grpc_address, output, *flags) for flags in refused.values()]
    for program, message in zip(programs, refused):
        lines = program.communicate()[1].splitlines()
        (line,) = [line for line in lines if line.startswith("Error")]
        assert program.returncode == 1 and message in line
    assert not os.path.exists(tmp_path / "x.png")


@pytest.mark.slow
def test_200_concurrent_requests(tmp_path):
    """Every row is the one computed alone, whatever it was merged with and filled up to."""
    os.symlink(small_version(), tmp_path / "1")
    mix = np.random.default_rng(0)
    count, largest = 200, 5
    names = mix.permutation(np.resize(SIGNATURES, count))
    rows = [
        mix.choice(40, mix.integers(1, largest, endpoint=True), replace=False) for _ in range(count)
    ]
    everything = {
        name: {key: value.numpy() for key, value in inputs.items()}
        for name, inputs in requests(40).items()
    }
    asked = [
        {key: value[row] for key, value in everything[name].items()}
        for name, row in zip(names, rows)
    ]
    ready = threading.Barrier(count)

    with ModelServer(tmp_path, batching=BatchingParameters(), grappler=True) as server:

        def ask(index):
            protocol = PROTOCOLS[index % 4 == 3]
            ready.wait()
            with connect(server, protocol) as client:
                return client.ask(names[index], asked[index])

        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(ask, range(count)))
        merged = server.merged

    with (
        ModelServer(tmp_path, grappler=True) as unmerged,
        connect(unmerged, "grpc") as client,
    ):
        alone = {
            name: [
                client.ask(name, {key: value[row : row + 1] for key, value in inputs.items()})
                for row in range(40)
            ]
            for name, inputs in everything.items()
        }
    assert sum(batch.requests for batch in merged) == count
    together = [batch for batch in merged if batch.requests > 1]
    padded = [batch for batch in merged if batch.padding]
    pixels = wrong = worst = images = unequal = 0
    relative = 0.0
    for name, row, answer in zip(names, rows, answers):
        for position, number in enumerate(row):
            expected = alone[name][number]
            assert set(answer) == set(expected)
            for key in set(expected) - {"image", "image_bytes", "error"}:
                value, other = answer[key][position], expected[key][0]
                np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-3)
                scale = np.abs(other).max() + 1e-3
                relative = max(relative, float(np.abs(value - other).max() / scale))
            if "image" in expected:
                difference = np.abs(answer["image"][position].astype(int) - expected["image"][0])
                pixels, wrong = pixels + difference.size, wrong + np.count_nonzero(difference)
                worst = max(worst, difference.max())
                images, unequal = images + 1, unequal + bool(difference.any())
    print(
        f"\n{count} requests, {sum(map(len, rows))} rows in {len(merged)} batches, "
        f"{len(together)} of several requests (at most {max(b.requests for b in merged)}), "
        f"{len(padded)} filled up with {sum(b.padding for b in merged)} rows\n"
        f"{images} images: {unequal} differ, {wrong} of {pixels} values, by at most {worst}; "
        f"other outputs by at most {relative:.1e} of their largest value"
    )
    assert worst <= 1
    assert len(merged) < count / 2 and len(together) > 10 and len(padded) > 3
    assert {batch.signature for batch in together} == set(SIGNATURES)
