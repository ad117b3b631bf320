"""Directories of classes, from images and labels in idx files."""

import gzip

import numpy as np
import pytest
from PIL import Image

from tests.conftest import idx_file
from tests.trainers.programs import Program, run

LABELS = np.array([1, 0, 1, 1, 0], np.uint8)


@pytest.fixture(params=[(), (3,)], ids=["gray", "colour"])
def images(request, tmp_path):
    """Five images, which a directory has with their labels."""
    shape = (5, 4, 6, *request.param)
    images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    axes = len(shape)
    (tmp_path / f"train-images-idx{axes}-ubyte.gz").write_bytes(gzip.compress(idx_file(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_file(LABELS))
    return images


def test_each_class_has_its_first_images(images, tmp_path):
    output = tmp_path / "classes"
    flags = f"--data_dir={tmp_path}", "--names=shirt,t-shirt", f"--output={output}"
    printed = run("examples.class_folders", *flags, "--per_class=2")
    assert printed == f"4 pictures of 2 classes in {output}\n"
    found = {str(path.relative_to(output)): path for path in output.rglob("*.png")}
    assert sorted(found) == [
        "shirt/00001.png",
        "shirt/00004.png",
        "t-shirt/00000.png",
        "t-shirt/00002.png",
    ]
    for name, path in found.items():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[int(name[-9:-4])])


@pytest.mark.parametrize("images", [()], indirect=True)
def test_what_is_wrong_leaves_nothing(images, tmp_path):
    output = tmp_path / "classes"
    labels = tmp_path / "train-labels-idx1-ubyte"
    cases = [
        ("--names=shirt", LABELS, "the images have of [0, 1]; received 1 names"),
        ("--names=shirt,bag,boot", LABELS, "received 3 names"),
        ("--names=shirt,bag", LABELS[1:], "There are 4 labels for 5 images"),
        ("--names=shirt,shirt", LABELS, "File exists"),
        ("--names=shirt,bag", LABELS[:, None], "not an idx file of labels"),
    ]
    for names, values, message in cases:
        labels.write_bytes(idx_file(values))
        flags = f"--data_dir={tmp_path}", names, f"--output={output}"
        program = Program("examples.class_folders", *flags)
        _, error = program.communicate()
        assert program.returncode == 1 and message in error and "Traceback" not in error
        assert not output.exists()
