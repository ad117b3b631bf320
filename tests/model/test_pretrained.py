"""Directories of trained models."""

import json
import os
import pathlib
import shutil

import h5py
import numpy as np
import pytest

from nvae_tf import NVAE, ExperimentConfig, presets
from nvae_tf.model.pretrained import Pretrained, builtin_directory, builtin_names
from nvae_tf.runs.load import TrainedModel, save_weights
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_model_config

NAMES = ("mnist_small", "fashion_mnist", "emoji64")
BUILTIN = [(name, pathlib.Path(builtin_directory(), name)) for name in NAMES]


@pytest.fixture(scope="module")
def model():
    """A tiny model whose moving averages are not those of a new one."""
    model = NVAE(tiny_model_config(num_nf=1))
    generator = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(generator.normal(1.0, 0.1, variable.shape).astype(np.float32))
    return model


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_to_preset(path, facts={"step": 3})
    return path


def test_what_is_saved_is_what_comes_back(model, directory):
    assert sorted(os.listdir(directory)) == [
        "README.md",
        "config.json",
        "metadata.json",
        "model.weights.h5",
    ]
    again = NVAE.from_preset(directory)
    assert again.config == model.config
    for a, b in zip(model.variables, again.variables, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["parameter_count"] == sum(np.prod(v.shape) for v in model.variables)
    assert metadata["step"] == 3
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: keras\n")
    assert f"NVAE with {model.num_trainable_parameters:,} parameters" in card


def test_mantissas_of_kernels_are_rounded_and_vectors_left(model, directory, tmp_path):
    model.save_to_preset(tmp_path / "half", mantissa_bits=10)
    again = NVAE.from_preset(tmp_path / "half")
    for a, b in zip(model.variables, again.variables, strict=True):
        if len(a.shape) > 1:
            mantissas, _ = np.frexp(b.numpy())
            np.testing.assert_array_equal(mantissas * 2**11, np.round(mantissas * 2**11), a.path)
            np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2**-11, err_msg=a.path)
            assert np.any(b.numpy() != a.numpy()) or not np.any(a.numpy())
        else:
            np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    files = [path / "model.weights.h5" for path in (directory, tmp_path / "half")]
    with h5py.File(files[0]) as wide, h5py.File(files[1]) as narrow:
        assert set(wide) == set(narrow)
    assert files[1].stat().st_size < files[0].stat().st_size


def test_wrong_values_are_refused(tmp_path):
    model = NVAE(tiny_model_config())
    kernel = model.stem.kernel
    for bits in (0, 24):
        with pytest.raises(ValueError, match="mantissa_bits must be from 1 to 23"):
            model.save_to_preset(tmp_path / "model", mantissa_bits=bits)
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match="stem/kernel are not finite: nothing was saved"):
        model.save_to_preset(tmp_path / "model")
    assert not os.listdir(tmp_path)


def test_nothing_is_overwritten_and_other_configurations_are_refused(model, directory, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        model.save_to_preset(directory)
    with pytest.raises(ValueError, match="another model"):
        model.save_to_preset(tmp_path / "x", ExperimentConfig(model=tiny_model_config()))


def test_without_weights(directory, model, tmp_path, monkeypatch):
    fresh = NVAE.from_preset(directory, load_weights=False)
    assert fresh.config == model.config
    assert np.any(fresh.stem.kernel.numpy() != model.stem.kernel.numpy())
    quickstart = presets.get("quickstart").model
    assert NVAE.from_preset("quickstart", load_weights=False).config == quickstart
    # A saved model of that name is taken with weights as without; another directory is not.
    monkeypatch.chdir(tmp_path)
    os.mkdir("quickstart")
    assert NVAE.from_preset("quickstart", load_weights=False).config == quickstart
    shutil.copytree(directory, "quickstart", dirs_exist_ok=True)
    for load_weights in (True, False):
        path = pathlib.Path("quickstart")
        assert NVAE.from_preset(path, load_weights=load_weights).config == model.config


def test_a_structure_has_nothing_to_save(model, tmp_path):
    structure, path = NVAE.structure(model.config), tmp_path / "a.weights.h5"
    model.save_weights(path)
    before = path.read_bytes()
    for save in (
        lambda: structure.save_to_preset(tmp_path / "preset"),
        lambda: structure.save_weights(path, overwrite=True),
        lambda: structure.save(tmp_path / "a.keras"),
    ):
        with pytest.raises(RuntimeError, match="structure alone.*cannot save"):
            save()
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_a_run_is_no_preset(model, tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.write_config(ExperimentConfig(model=model.config))
    save_weights(model, workdir)
    with pytest.raises(ValueError, match="is the workdir of a run: --workdir, or nvae_tf.load_mod"):
        NVAE.from_preset(workdir.path)
    found = TrainedModel.of_run(workdir)
    shutil.rmtree(workdir.checkpoints)  # as a run does that goes on, with those that are old
    with pytest.raises(ValueError, match="ckpt-0' is not there any more"):
        found.load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonesuch", "no trained model 'nonesuch': neither a directory, nor a preset with weights"),
        ("cifar10", "no weights of the preset 'cifar10'.*nvae-train --preset=cifar10 --workdir=W"),
    ],
)
def test_presets_without_weights(name, message):
    with pytest.raises(ValueError, match=message):
        NVAE.from_preset(name)


def damage_weights(path):
    content = bytearray((path / "model.weights.h5").read_bytes())
    (path / "model.weights.h5").write_bytes(content[: len(content) // 2])


def other_model(path):
    config = ExperimentConfig(model=tiny_model_config(num_channels_enc=16))
    (path / "config.json").write_text(config.to_json())


def not_finite(path):
    with h5py.File(path / "model.weights.h5", "r+") as file:
        file.visititems(
            lambda _, item: (
                item.__setitem__(..., np.nan) if isinstance(item, h5py.Dataset) else None
            )
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "not the directory of a trained model.*con"),
        (lambda path: (path / "metadata.json").write_text("{"), "metadata.json. is not JSON"),
        (
            lambda path: (path / "metadata.json").write_text("[]"),
            "metadata.json. is not a JSON object",
        ),
        *(
            (
                lambda path, field=field, value=value: (path / "metadata.json").write_text(
                    json.dumps({field: value})
                ),
                f"{field} in metadata.json is of a wrong kind",
            )
            for field, value in (
                ("step", "7"),
                ("step", True),
                ("evaluation", []),
                ("init_from", "x"),
                ("init_from", {"name": "x"}),
                ("init_from", {"name": 1, "step": 2}),
            )
        ),
        (lambda path: (path / "model.weights.h5").unlink(), "h5' does not hold the weights"),
        (damage_weights, "h5' does not hold the weights"),
        (other_model, "h5' does not hold the weights"),
        (not_finite, "the values of .* are not finite"),
    ],
)
def test_damaged_directories(directory, tmp_path, damage, message):
    shutil.copytree(directory, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=message):
        NVAE.from_preset(tmp_path / "copy")


def test_a_name_means_the_package_s_model_and_a_path_the_directory(
    directory, model, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    assert Pretrained.find("mnist_small").config.model == presets.get("mnist_small").model
    assert not caplog.text
    shutil.copytree(directory, "mnist_small")
    assert Pretrained.find("mnist_small").config.model == presets.get("mnist_small").model
    assert "is the model of this package; the directory is ./mnist_small" in caplog.text
    assert Pretrained.find("./mnist_small").config.model == model.config
    # A run of that name is named by its path as well.
    os.makedirs("mnist_small/checkpoints")
    assert TrainedModel.of("mnist_small").workdir is None
    with pytest.raises(FileNotFoundError, match="not a run, but the directory of a saved model"):
        TrainedModel.of("./mnist_small")


@pytest.mark.parametrize(("name", "path"), BUILTIN)
def test_models_in_the_package(name, path):
    found = Pretrained.find(name)
    assert found.config.model == presets.get(name).model
    model = NVAE.from_preset(name)
    assert found.metadata["parameter_count"] == model.count_params()
    assert (path / "model.weights.h5").stat().st_size < 10e6
    assert "<" not in (path / "README.md").read_text().partition("## Configuration")[0]
    assert found.metadata["evaluation"]["negative_elbo"] > 0


def test_size_of_all_models_in_the_package():
    assert builtin_names() == NAMES
    sizes = [file.stat().st_size for _, path in BUILTIN for file in path.iterdir()]
    assert sum(sizes) < 25e6
