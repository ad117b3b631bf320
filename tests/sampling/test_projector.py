"""The projector's directory, read as TensorBoard reads it."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

from nvae_tf.sampling.projector import check_projection, write_projection

SHAPES = [(2, 2, 3), (4, 4, 3)]


def projection(count=5, shape=(8, 6, 1)):
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(count, *s)).astype(np.float32) for s in SHAPES]
    return latents, rng.integers(0, 256, (count, *shape), np.uint8)


class Plugin:
    """TensorBoard's plugin, asked by its HTTP routes."""

    def __init__(self, logdir):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(logdir))
        plugin = ProjectorPlugin(TBContext(logdir=str(logdir), data_provider=provider))
        self._routes = plugin.get_plugin_apps()

    def get(self, route, **query):
        response = Client(self._routes[route]).get(route, query_string=query)
        assert response.status_code == 200, response.get_data()
        return response.get_data()


@pytest.mark.parametrize("below", ["", "run/tensorboard/projector"])
def test_tensorboard_shows_the_groups(tmp_path, below):
    directory = tmp_path / below
    directory.mkdir(parents=True, exist_ok=True)
    latents, images = projection()
    write_projection(directory, latents, images, ["a", "b", "a", "ä b", "b"])
    plugin = Plugin(tmp_path)
    (run,) = json.loads(plugin.get("/runs"))
    assert run == (below or ".")
    config = json.loads(plugin.get("/info", run=run))
    assert [(e["tensorName"], e["tensorShape"]) for e in config["embeddings"]] == [
        ("group_00", [5, 12]),
        ("group_01", [5, 48]),
    ]
    for latent, embedding in zip(latents, config["embeddings"]):
        name = embedding["tensorName"]
        vectors = np.frombuffer(plugin.get("/tensor", run=run, name=name), np.float32)
        np.testing.assert_array_equal(vectors.reshape(5, -1), latent.reshape(5, -1))
        lines = plugin.get("/metadata", run=run, name=name).decode().splitlines()
        assert lines == ["image\tclass", "0\ta", "1\tb", "2\ta", "3\tä b", "4\tb"]
        sprite = tf.io.decode_png(plugin.get("/sprite_image", run=run, name=name)).numpy()
        assert embedding["sprite"]["singleImageDim"] == [6, 8]  # width first
        assert sprite.shape == (24, 18, 1)
        np.testing.assert_array_equal(sprite[8:16, 6:12], images[4])


def test_without_labels_there_is_no_line_of_names(tmp_path):
    latents, images = projection()
    write_projection(tmp_path, latents, images)
    assert (tmp_path / "metadata.tsv").read_text() == "0\n1\n2\n3\n4\n"


def test_files_take_the_place_of_numbers(tmp_path):
    latents, images = projection(count=3)
    labels, files = ["a", "b", "a"], ["1/x.png", "2/ä.png", "y.png"]
    write_projection(tmp_path, latents, images, labels, files)
    assert (tmp_path / "metadata.tsv").read_text().splitlines() == [
        "image\tclass",
        "1/x.png\ta",
        "2/ä.png\tb",
        "y.png\ta",
    ]


def test_large_images_become_small(tmp_path):
    latents, images = projection(shape=(256, 128, 3))
    write_projection(tmp_path, latents, images)
    assert tf.io.decode_png((tmp_path / "sprite.png").read_bytes()).shape == (192, 96, 3)


def test_refusals(tmp_path):
    latents, images = projection(count=2)
    with pytest.raises(ValueError, match="A label has no tabulators"):
        write_projection(tmp_path, latents, images, ["a", "b\tc"])
    with pytest.raises(ValueError, match=r"that are not UTF-8, received 'b\\udce9\.png'"):
        write_projection(tmp_path, latents, images, files=["a.png", "b\udce9.png"])
    with pytest.raises(ValueError, match="A label has no tabulators"):
        check_projection(2, images.shape[1:], ["a", "b\tc"])
    check_projection(128**2, (64, 64, 3))
    with pytest.raises(ValueError, match="up to 16384 images of 64x64 pixels, received 16385"):
        check_projection(128**2 + 1, (64, 64, 3))
