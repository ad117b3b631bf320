"""Feature extractors: what they compute, what they are called, what they refuse."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.evaluation.features import InceptionFeatures, SavedModelFeatures

FIXED_SIZE = tf.TensorSpec((None, 8, 8, 3), tf.float32, name="images")
ANY_SIZE = tf.TensorSpec((None, None, None, None), tf.float32, name="images")


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape).astype(np.uint8)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """The real network with random weights, and the extractor that read them from a file."""
    keras.utils.set_random_seed(0)
    network = keras.applications.InceptionV3(include_top=False, weights=None, pooling="avg")
    path = tmp_path_factory.mktemp("inception") / "random.weights.h5"
    network.save_weights(path)
    return network, InceptionFeatures(path)


def small_network(include_top, weights, pooling, input_shape):
    """Takes the place of Inception where its weights do not matter."""
    assert (include_top, pooling, input_shape) == (False, "avg", (299, 299, 3))
    layers = [keras.Input(input_shape), keras.layers.Conv2D(4, 9, 8)]
    model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])
    if weights != "imagenet":
        model.load_weights(weights)
    return model


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(keras.applications, "InceptionV3", small_network)


def test_inception_on_images_of_its_own_size(inception):
    network, extractor = inception
    images = pictures(2, 299, 299, 3)
    features = extractor(images)
    assert features.shape == (2, 2048) and features.dtype == np.float32
    scaled = keras.applications.inception_v3.preprocess_input(images.astype(np.float32))
    expected = network(scaled, training=False)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (500, 700)], ids=["enlarged", "shrunk"])
def test_resizing_is_pillow_s(small, size):
    image = pytest.importorskip("PIL.Image")
    extractor = InceptionFeatures()
    images = pictures(2, *size, 3)
    resized = np.empty((2, 299, 299, 3), np.float32)
    for index in np.ndindex(2, 3):
        channel = image.fromarray(images[index[0], ..., index[1]].astype(np.float32) / 255)
        resized[index[0], ..., index[1]] = channel.resize((299, 299), image.Resampling.BILINEAR)
    np.testing.assert_allclose(extractor(images), extractor(resized), rtol=1e-3, atol=1e-5)
    # And it matters: without antialiasing pixels are left out.
    plain = tf.image.resize(images / 255, (299, 299)).numpy()
    assert (abs(extractor(images) - extractor(plain)).max() > 1e-4) == (size != (32, 32))


def test_gray_and_floating_point_images(small):
    extractor = InceptionFeatures()
    gray = pictures(3, 28, 28, 1)
    features = extractor(gray)
    np.testing.assert_array_equal(features, extractor(np.repeat(gray, 3, axis=-1)))
    np.testing.assert_array_equal(features, extractor(gray.astype(np.float32) / 255))
    np.testing.assert_array_equal(features, extractor(tf.constant(gray)))
    assert len(np.unique(features, axis=0)) == 3


@pytest.mark.parametrize("channels", [2, 4])
def test_inception_refuses_other_channels(small, channels):
    with pytest.raises(ValueError, match=f"1 or 3 channels, received {channels}"):
        InceptionFeatures()(pictures(2, 8, 8, channels))


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((8, 8, 3), np.uint8), r"\(N, h, w, C\).*received \(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "not empty"),
        (np.zeros((1, 8, 8, 3), np.int32), "received int32"),
        (np.full((1, 8, 8, 3), 255.0), "from 255 to 255"),
        (np.full((1, 8, 8, 3), -0.5), "from -0.5"),
        (np.full((1, 8, 8, 3), np.nan), "from nan"),
    ],
)
def test_images_that_no_extractor_takes(small, images, message):
    with pytest.raises(ValueError, match=message):
        InceptionFeatures()(images)


def test_names_and_fingerprints(small, tmp_path):
    first, copy, other = (str(tmp_path / f"{name}.weights.h5") for name in "abc")
    small_network(False, "imagenet", "avg", (299, 299, 3)).save_weights(first)
    shutil.copy(first, copy)
    small_network(False, "imagenet", "avg", (299, 299, 3)).save_weights(other)
    assert InceptionFeatures().name == "inception_v3/imagenet"
    assert InceptionFeatures(first).name == f"inception_v3/{first}"
    fingerprint = InceptionFeatures(first).fingerprint
    assert fingerprint == InceptionFeatures(copy).fingerprint and len(fingerprint) == 64
    assert fingerprint != InceptionFeatures(other).fingerprint


def test_features_are_float32_under_any_policy(small):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        extractor = InceptionFeatures()
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(layer.compute_dtype == "float32" for layer in extractor._model.layers)


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file of Inception weights.*nowhere"):
        InceptionFeatures(tmp_path / "nowhere.h5")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.h5 or \.keras file, received .*weights\.pth"):
        InceptionFeatures(tmp_path / "weights.pth")

    def no_network(**_):
        raise Exception("URL fetch failure on https://storage.googleapis.com")

    monkeypatch.setattr(keras.applications, "InceptionV3", no_network)
    with pytest.raises(FileNotFoundError, match="path of a local .* URL fetch failure"):
        InceptionFeatures()


@pytest.mark.parametrize("name", ["garbage.h5", "garbage.keras", "other.weights.h5"])
def test_files_of_something_else(small, tmp_path, name):
    path = tmp_path / name
    if name.startswith("garbage"):
        path.write_bytes(b"not weights" * 20)
    else:
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    with pytest.raises(ValueError, match="does not hold the weights of.*InceptionV3"):
        InceptionFeatures(path)


class Module(tf.Module):
    """A function with one variable, as a SavedModel."""

    def __init__(self, function, *specs, scale=1.0):
        super().__init__()
        self.scale = tf.Variable(scale)
        self.serve = tf.function(
            lambda *inputs: function(self.scale, *inputs), specs, autograph=False
        )

    def save(self, path, name="serving_default"):
        tf.saved_model.save(self, str(path), signatures={name: self.serve})
        return path


def test_what_a_saved_model_gets_and_gives(tmp_path):
    def shape_and_range(scale, images):
        low, high = (f(images, (1, 2, 3)) for f in (tf.reduce_min, tf.reduce_max))
        sizes = [tf.ones_like(low) * tf.cast(s, tf.float32) for s in tf.unstack(tf.shape(images))]
        return scale * tf.stack([low, high, *sizes[1:]], axis=1)

    extractor = SavedModelFeatures(Module(shape_and_range, ANY_SIZE).save(tmp_path / "m"))
    assert extractor.name == f"saved_model/{tmp_path / 'm'}"
    images = np.zeros((2, 5, 7, 4), np.uint8)
    images[0, 0, 0, 0], images[1] = 255, 51
    expected = np.array([[0, 1, 5, 7, 4], [0.2, 0.2, 5, 7, 4]], np.float32)
    np.testing.assert_allclose(extractor(images), expected, rtol=1e-6)
    np.testing.assert_allclose(extractor(images / 255), expected, rtol=1e-6)


def test_more_axes_are_flattened(tmp_path):
    extractor = SavedModelFeatures(
        Module(lambda scale, images: tf.cast(scale * images, tf.float16), FIXED_SIZE).save(
            tmp_path / "m"
        )
    )
    images = pictures(3, 8, 8, 3)
    features = extractor(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, images.reshape(3, -1) / 255, atol=1e-3)
    with pytest.raises(ValueError, match=r"takes images \(None, 8, 8, 3\), received \(1, 8, 8, 1"):
        extractor(pictures(1, 8, 8, 1))


def test_a_keras_model_as_it_exports_itself(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    model.export(tmp_path / "m", verbose=False)
    images = pictures(3, 8, 8, 3)
    expected = model(images.astype(np.float32) / 255)
    np.testing.assert_allclose(SavedModelFeatures(tmp_path / "m")(images), expected, rtol=1e-5)


def test_a_saved_model_s_fingerprint_is_that_of_its_files(tmp_path):
    first = Module(lambda scale, images: scale * images, FIXED_SIZE).save(tmp_path / "m")
    fingerprint = SavedModelFeatures(first).fingerprint
    shutil.copytree(first, tmp_path / "elsewhere")
    assert SavedModelFeatures(tmp_path / "elsewhere").fingerprint == fingerprint
    # Same graph, another weight.
    variables = Module(lambda scale, images: scale * images, FIXED_SIZE, scale=2.0)
    other = variables.save(tmp_path / "other")
    shutil.rmtree(tmp_path / "elsewhere" / "variables")
    shutil.copytree(other / "variables", tmp_path / "elsewhere" / "variables")
    changed = SavedModelFeatures(tmp_path / "elsewhere")
    assert changed.fingerprint != fingerprint
    assert changed(np.full((1, 8, 8, 3), 255, np.uint8)).max() == 2


def test_saved_models_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory.*nowhere"):
        SavedModelFeatures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not hold a SavedModel"):
        SavedModelFeatures(tmp_path)


WRONG_SIGNATURES = {
    "two inputs": ((lambda _, x, y: x + y, FIXED_SIZE, ANY_SIZE), "one input, it has"),
    "two outputs": ((lambda _, x: {"a": x, "b": x}, FIXED_SIZE), r"one output, it has \['a', 'b'"),
    "uint8": (
        (lambda _, x: tf.cast(x, tf.float32), tf.TensorSpec((None, 8, 8, 3), tf.uint8)),
        r"must be float32 \[B, h, w, C\].*uint8 \(None, 8, 8, 3\)",
    ),
    "rank": ((lambda _, x: x, tf.TensorSpec((None, 8, 8))), r"float32 \(None, 8, 8\)"),
    "batch": ((lambda _, x: x, tf.TensorSpec((4, 8, 8, 3))), r"any B.*float32 \(4, 8, 8, 3\)"),
    "integers": ((lambda _, x: tf.cast(x, tf.int32), FIXED_SIZE), "output.*floating-point.*int32"),
    "scalars": ((lambda _, x: tf.reduce_mean(x, (1, 2, 3)), FIXED_SIZE), r"float32 \(None,\)"),
}


@pytest.mark.parametrize("case", WRONG_SIGNATURES)
def test_wrong_signatures(tmp_path, case):
    arguments, message = WRONG_SIGNATURES[case]
    with pytest.raises(ValueError, match=message):
        SavedModelFeatures(Module(*arguments).save(tmp_path / "m"))


def test_another_signature_s_name(tmp_path):
    path = Module(lambda _, x: x, FIXED_SIZE).save(tmp_path / "m", "features")
    with pytest.raises(ValueError, match=r"'serving_default', it has \['features'\]"):
        SavedModelFeatures(path)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda _, images: tf.math.log(images - 1), "not all finite"),
        (lambda _, images: tf.reduce_mean(images, 0), "not one vector for each"),
    ],
)
def test_features_that_are_none(tmp_path, function, message):
    extractor = SavedModelFeatures(Module(function, FIXED_SIZE).save(tmp_path / "m"))
    with pytest.raises(ValueError, match=message):
        extractor(pictures(2, 8, 8, 3))
