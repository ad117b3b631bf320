"""What reads the damaged inputs: each target lets one be damaged, and reads it."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2

import nvae_tf
from export.manifest import manifest_of, read_manifest, write_manifest
from export.serving_client import Client
from nvae_tf import DataConfig, nvlabs
from nvae_tf.data import load_images
from nvae_tf.evaluation.model_card import model_card
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from tests.conftest import GOLDEN, tiny_model_config
from tests.export.broken_servers import grpc_server, raw_server
from tests.fuzz.mutations import Damage

Read: TypeAlias = Callable[[Damage], None]

_PICTURES = tiny_model_config(image_shape=(8, 8, 3), likelihood="normal", num_x_bits=8)


@contextlib.contextmanager
def workdir(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """A file of a run, as the programs read it that use a trained model."""
    whole = directory / "whole"
    shutil.copytree(sample, whole)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    names = sorted(name for name in names if name.parts[0] != "tensorboard" and name.name[0] != ".")

    def read(damage: Damage) -> None:
        with _damaged_file(whole / names[damage.choose(len(names))], damage):
            trained = TrainedModel.of(whole)
            Workdir(whole).check_images({})
            model_card(trained)
            trained.load()

    yield read


@contextlib.contextmanager
def preset(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """A file of the directory of a trained model."""
    whole = directory / "preset"
    trained = TrainedModel.of(sample)
    trained.load().save_to_preset(whole, trained.config)
    names = sorted(os.listdir(whole))

    def read(damage: Damage) -> None:
        with _damaged_file(whole / names[damage.choose(len(names))], damage):
            model_card(TrainedModel.of_preset(whole))
            nvae_tf.NVAE.from_preset(whole)

    yield read


@contextlib.contextmanager
def manifest(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """The manifest of a SavedModel."""
    write_manifest(str(directory), manifest_of(TrainedModel.of(sample)))
    (path,) = directory.rglob("nvae_manifest.json")

    def read(damage: Damage) -> None:
        with _damaged_file(path, damage):
            read_manifest(directory)

    yield read


@contextlib.contextmanager
def checkpoint_of_the_authors(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """A .pt file; in half of the cases with checksums that fit the damage."""
    del sample
    whole = (GOLDEN / "nvlabs_mnist_tiny.pt").read_bytes()

    def read(damage: Damage) -> None:
        path = directory / "x.pt"
        path.write_bytes(_damaged_entry(whole, damage) if damage.choose(2) else damage(whole))
        nvlabs.load_checkpoint(path)

    yield read


@contextlib.contextmanager
def tfrecord(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """A TFRecord file; in half of the cases with lengths and checksums that fit the damage."""
    del sample
    images = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8)
    features = [tf.train.BytesList(value=[_encoded(image, "PNG")]) for image in images]
    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={"image": tf.train.Feature(bytes_list=one)})
        ).SerializeToString()
        for one in features
    ]
    path = directory / "train-00000"
    data = DataConfig(name="tfrecord", data_dir=str(directory), cache_dir=str(directory / "cache"))

    def read(damage: Damage) -> None:
        inside = damage.choose(2)
        records = [damage(example) for example in examples] if inside else examples
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        if not inside:
            path.write_bytes(damage(path.read_bytes()))
        np.asarray(load_images(data, _PICTURES, "train"))

    yield read


@contextlib.contextmanager
def pictures(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """A directory of pictures, one of which is damaged."""
    del sample
    (directory / "train").mkdir()
    image = np.random.default_rng(0).integers(0, 256, [8, 8, 3], np.uint8)
    formats = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0112: 6, 0x0128: 2, 0x0132: "2020:01:01 00:00:00"})
    data = DataConfig(name="folder", data_dir=str(directory), cache_dir=str(directory / "cache"))

    def read(damage: Damage) -> None:
        kind = formats[damage.choose(len(formats))]
        path = directory / "train" / f"x.{kind.lower()}"
        path.write_bytes(damage(_encoded(image, kind, exif)))
        try:
            np.asarray(load_images(data, _PICTURES, "train"))
        finally:
            path.unlink()

    yield read


@contextlib.contextmanager
def reply_over_rest(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """What a server answers over HTTP."""
    del directory, sample
    body = (
        b'{"outputs": {"image": [[[[1], [2]]], [[[3], [4]]]], '
        b'"image_bytes": [{"b64": "AA=="}, {"b64": ""}]}}'
    )
    length = f"Content-Length: {len(body)}\r\n".encode()
    answers = [
        b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        b"HTTP/1.1 503 Busy\r\nContent-Length: 14\r\nRetry-After: 9\r\n\r\n" + b'{"error": "x"}',
    ]
    answer = b""

    with raw_server(lambda: [answer]) as (server, _):

        def read(damage: Damage) -> None:
            nonlocal answer
            answer = damage(answers[damage.choose(len(answers))])
            with Client(server, "rest", deadline=1.0, retries=1) as client:
                assert client.sample(2).dtype == np.uint8

        yield read


@contextlib.contextmanager
def reply_over_grpc(directory: pathlib.Path, sample: pathlib.Path) -> Iterator[Read]:
    """What a server answers over gRPC."""
    del directory, sample
    response = predict_pb2.PredictResponse()
    response.outputs["image"].CopyFrom(tf.make_tensor_proto(np.zeros([2, 4, 4, 1], np.uint8)))
    response.outputs["error"].CopyFrom(tf.make_tensor_proto([b"", b""]))
    whole, answer = response.SerializeToString(), b""
    with grpc_server(lambda: answer) as server, Client(server, deadline=2.0, retries=0) as client:

        def read(damage: Damage) -> None:
            nonlocal answer
            answer = damage(whole)
            assert client.sample(2).dtype == np.uint8

        yield read


TARGETS = {
    function.__name__: function
    for function in (
        workdir,
        preset,
        manifest,
        checkpoint_of_the_authors,
        tfrecord,
        pictures,
        reply_over_rest,
        reply_over_grpc,
    )
}


@contextlib.contextmanager
def _damaged_file(path: pathlib.Path, damage: Damage) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(damage(content))
    try:
        yield
    finally:
        path.write_bytes(content)


def _damaged_entry(archive: bytes, damage: Damage) -> bytes:
    """Returns a zip archive of which one entry, mostly the pickle, is damaged."""
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as whole,
        zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target,
    ):
        names = whole.namelist()
        (pickled,) = [name for name in names if name.endswith("data.pkl")]
        chosen = pickled if damage.choose(4) else names[damage.choose(len(names))]
        for name in names:
            content = whole.read(name)
            target.writestr(name, damage(content) if name == chosen else content)
    return written.getvalue()


def _encoded(image: np.ndarray, kind: str, exif: Image.Exif | None = None) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind, **({"exif": exif} if exif else {}))
    return content.getvalue()
