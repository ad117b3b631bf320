"""The classifier whose features measure samples."""

import gzip

import numpy as np
import pytest
from PIL import Image

from nvae_tf.evaluation.features import SavedModelFeatures
from tests.conftest import idx_file
from tests.trainers.programs import Program, run


@pytest.fixture
def data(tmp_path):
    """Forty images of two classes, black and white, and their labels."""
    directory = tmp_path / "data"
    directory.mkdir()
    classes = np.arange(40, dtype=np.uint8) % 2
    images = np.broadcast_to(255 * classes[:, None, None], (40, 8, 8)).astype(np.uint8)
    for split in ("train", "t10k"):
        (directory / f"{split}-images-idx3-ubyte").write_bytes(idx_file(images))
        (directory / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_file(classes)))
    return directory


def command(data, output):
    return ("examples.train_features", f"--data_dir={data}", f"--output={output}", "--side=8")


def test_its_features_are_those_of_a_saved_model(data, tmp_path):
    output = tmp_path / "features"
    printed = run(*command(data, output), "--epochs=100")
    assert printed.splitlines()[-1] == (
        f"{output}: 100.00% of the test images are classified correctly"
    )
    black_and_white = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))])
    features = SavedModelFeatures(output)(black_and_white)
    assert features.shape == (2, 128)
    assert np.linalg.norm(features[0] - features[1]) > 1


def test_labels_must_be_there_and_fit(data, tmp_path):
    path = data / "t10k-labels-idx1-ubyte.gz"
    for content, message in (
        (gzip.compress(idx_file(np.zeros(3, np.uint8))), "has 3 labels for 40 images"),
        (None, "must hold one file test-labels-idx1-ubyte (or .gz)"),
    ):
        path.unlink()
        if content:
            path.write_bytes(content)
        program = Program(*command(data, tmp_path / "features"))
        _, error = program.communicate()
        assert program.returncode == 1 and message in error
    assert not (tmp_path / "features").exists()


@pytest.fixture
def pictures(tmp_path):
    """Red and blue pictures in two splits, in an order of names that mixes the colours."""
    lines = []
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for index in range(20):
            color = ("red", "blue")[index % 3 % 2]
            path = f"{split}/{index}.png"
            Image.new("RGB", (8, 8), color).save(tmp_path / "pictures" / path)
            lines.append(f"{path},{color}\n")
    (tmp_path / "pictures" / "labels.csv").write_text("".join(lines))
    return tmp_path / "pictures"


def test_pictures_have_labels_in_a_table(pictures, tmp_path):
    for other in (".DS_Store", "notes.txt"):  # no pictures, so they need no labels
        (pictures / "train" / other).touch()
    output = tmp_path / "features"
    printed = run(*command(pictures, output), "--epochs=100")
    assert printed.splitlines()[-1].startswith(f"{output}: 100.00%")
    assert SavedModelFeatures(output)(np.zeros((2, 8, 8, 3))).shape == (2, 128)


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda lines: lines[1:], "labels.csv has no label for train/0.png"),
        (lambda lines: [*lines[:-1], "test/19.png,green\n"], "has the labels green"),
        (lambda lines: [*lines[:2], "\n", *lines[2:]], "labels.csv, line 3: a line has"),
        (lambda lines: ["train/0.png,red,blue\n", *lines[1:]], "received 'train/0.png,red,blue'"),
    ],
)
def test_each_picture_needs_a_label_to_learn(pictures, tmp_path, broken, message):
    table = pictures / "labels.csv"
    table.write_text("".join(broken(table.read_text().splitlines(keepends=True))))
    program = Program(*command(pictures, tmp_path / "features"))
    _, error = program.communicate()
    assert program.returncode == 1 and message in error
    assert not (tmp_path / "features").exists()
