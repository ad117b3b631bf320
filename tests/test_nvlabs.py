"""Checkpoints of the paper's release: same numbers, and nothing but data is read from them."""

import argparse
import builtins
import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import OptimizerConfig, nvlabs
from nvae_tf.architectures import ARCHITECTURES
from nvae_tf.model.inference import InferenceModel
from nvae_tf.model.layers.context import functional_call
from nvae_tf.model.layers.normalization import move_average
from nvae_tf.runs.workdir import Workdir
from nvae_tf.training.objective import objective_terms
from nvae_tf.training.optimizer import AdaMax
from nvae_tf.training.regularization import FIRST_ITERATIONS, ITERATIONS, Regularizer
from tests.conftest import GOLDEN
from trainers.import_nvlabs import import_checkpoint
from trainers.run.checkpoints import Checkpointer
from trainers.run.strategies import make_strategy
from trainers.run.trainer import Trainer

torch = pytest.importorskip("torch", reason="needs the extra nvlabs")

CHECKPOINTS = ["nvlabs_mnist_tiny", "nvlabs_cifar10_flow_tiny"]


def relative_error(ours, theirs):
    """Largest difference over the largest value."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.fixture(params=CHECKPOINTS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return nvlabs.load_checkpoint(GOLDEN / f"{name}.pt")


@functools.cache
def unchanged_model(name):
    """One model for all tests that only read it."""
    return nvlabs.load_checkpoint(GOLDEN / f"{name}.pt")


@pytest.mark.parametrize("mode", ["eval", "folded", "train"])
def test_inference_is_the_reference_s(golden, name, mode):
    model = unchanged_model(name)
    values = golden(f"{name}.npz")
    groups = range(model.config.num_groups)
    noise = [values[f"eps/{group}"] for group in groups]
    if mode == "folded":
        mode = "eval"
        output = InferenceModel(model).infer(values["x"], noise)
    else:
        with functional_call(model):  # and leave the moving averages alone
            output = model.infer(values["x"], noise, training=mode == "train")
    likelihood = model.likelihood(output.logits)
    reconstruction = -likelihood.log_prob(values["x"])
    computed = {
        "logits": output.logits,
        "kl_per_group": output.kl_per_group,
        "log_q": output.log_q,
        "log_p": output.log_p,
        "reconstruction_loss": reconstruction,
        "log_iw": output.log_p - output.log_q - reconstruction,
        "mean_image": likelihood.mean(),
        **{
            f"kl_per_channel/{group}": tf.reduce_mean(output.kl_per_channel[:, group], axis=0)
            for group in groups
        },
    }
    errors = {
        key: relative_error(value, values[f"{mode}/{key}"]) for key, value in computed.items()
    }
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("temperature", ["1.0", "0.6"])
def test_samples_are_the_reference_s(golden, name, temperature):
    model = unchanged_model(name)
    values = golden(f"{name}.npz")
    noise = [values[f"eps/{group}"] for group in range(model.config.num_groups)]
    logits = model.generate(len(values["x"]), float(temperature), noise)
    assert relative_error(logits, values[f"sample/temperature_{temperature}/logits"]) < 1e-5


def test_regularisation_is_the_reference_s(golden, name, model):
    values = golden(f"{name}.npz")
    regularizer = Regularizer(model)
    vectors = regularizer.initial_vectors(0)
    compute = tf.function(regularizer.singular_values, autograph=False)
    for _ in range(20):  # the first 40 iterations are 0.25 % short of the exact value
        singular_values, vectors = compute(regularizer.kernels.compute(), vectors, tf.constant(40))
    spectral = tf.reduce_sum(singular_values)
    np.testing.assert_allclose(regularizer.batch_norm(), values["batchnorm_loss"], rtol=1e-5)
    np.testing.assert_allclose(spectral, values["spectral_loss_exact_svd"], rtol=1e-3)
    assert model.num_trainable_parameters == values["num_parameters"]


@pytest.mark.parametrize(
    "name",
    [pytest.param("nvlabs_mnist_tiny", marks=pytest.mark.slow), "nvlabs_cifar10_flow_tiny"],
    indirect=True,
)
def test_training_follows_the_reference(golden, name, model):
    values = golden(f"{name}_training.npz")
    beta = float(values["kl_coefficient"])
    penalty = float(values["regularization_coefficient"])
    rate = float(values["learning_rate"])
    regularizer = Regularizer(model)
    variables = [variable.value for variable in model.trainable_variables]
    optimizer = AdaMax(OptimizerConfig(weight_decay=float(values["weight_decay"])))
    slots = [[tf.Variable(tf.zeros(v.shape)) for v in variables] for _ in range(2)]
    iterations = tf.Variable(0, dtype=tf.int64)

    @tf.function(autograph=False)
    def step(images, noise, vectors, power_iterations):
        with tf.GradientTape() as tape:
            kernels = regularizer.kernels.compute()
            with functional_call(model, kernels=regularizer.kernels.split(kernels)) as call:
                output = model.infer(images, noise, training=True)
            terms = objective_terms(model, images, output, beta)
            reconstruction = tf.reduce_mean(terms.reconstruction)
            kl = beta * tf.reduce_mean(terms.balanced_kl)
            singular_values, vectors = regularizer.singular_values(
                kernels, vectors, power_iterations
            )
            spectral = tf.reduce_sum(singular_values)
            batch_norm = regularizer.batch_norm()
            loss = reconstruction + kl + penalty * (spectral + batch_norm)
        gradients = tape.gradient(loss, variables)
        optimizer.apply(variables, *slots, iterations, gradients, rate)
        for average in model.non_trainable_variables:
            average.assign(move_average(average, call.statistics[average.path]))
        return tf.stack([loss, reconstruction, kl, spectral, batch_norm]), vectors

    vectors, count = regularizer.initial_vectors(0), FIRST_ITERATIONS

    for i, expected in enumerate(values["losses"]):
        noise = [values[f"step{i}/eps/{group}"] for group in range(model.config.num_groups)]
        losses, vectors = step(values[f"step{i}/x"], noise, vectors, tf.constant(count))
        np.testing.assert_allclose(losses, expected, rtol=1e-3)
        count = ITERATIONS


def test_what_does_not_fit_is_named(tmp_path):
    checkpoint = load_raw("nvlabs_mnist_tiny")
    state = checkpoint["state_dict"]
    state["stem.bias"] = torch.zeros(9)
    with pytest.raises(
        ValueError, match=r"'stem.bias'.*expected the shape \(8,\), received \(9,\)"
    ):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    state["stem.extra"] = state.pop("stem.bias")
    with pytest.raises(ValueError, match="Missing: 'stem.bias'. Surplus: 'stem.extra'"):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    checkpoint["args"].dataset = "imagenet_4096"
    with pytest.raises(ValueError, match="Unknown dataset 'imagenet_4096'.*cifar10"):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    del checkpoint["args"].num_nf
    with pytest.raises(ValueError, match="arguments lack num_nf"):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    del checkpoint["state_dict"]
    with pytest.raises(ValueError, match="lacks state_dict"):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))


def load_raw(name):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def write(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint, path)
    return path


def test_old_checkpoints_lack_some_arguments(tmp_path):
    checkpoint = load_raw("nvlabs_mnist_tiny")
    del checkpoint["args"].num_mixture_dec
    assert nvlabs.load_checkpoint(write(tmp_path, checkpoint)).config.num_mixture_dec == 10


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return builtins.exec, ("import pathlib; pathlib.Path(marker).touch()", {"marker": "pwned"})


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"state_dict": {}, "args": Hostile()})
    with pytest.raises(ValueError, match="not a readable checkpoint of tensors and arguments"):
        nvlabs.load_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 500_000])
def test_truncated_files(tmp_path, kept):
    path = tmp_path / "truncated.pt"
    path.write_bytes((GOLDEN / "nvlabs_mnist_tiny.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        nvlabs.load_checkpoint(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        nvlabs.load_checkpoint(tmp_path / "nowhere.pt")


def test_without_pytorch_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'nvae-tf\[nvlabs\]'"):
        nvlabs.load_checkpoint(GOLDEN / "nvlabs_mnist_tiny.pt")


ARGUMENTS = {
    "dataset": "cifar10",
    "num_x_bits": 8,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 3,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 8,
    "num_channels_dec": 8,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 10,
    "num_nf": 0,
    "use_se": True,
    "res_dist": True,
    "arch_instance": "res_mbconv",
}
VARIANTS = {
    **{
        arch: pytest.param({"arch_instance": arch}, marks=[pytest.mark.slow])
        for arch in ARCHITECTURES
    },
    "mbconv_den": {"arch_instance": "mbconv_den"},
    "res_bnelu": {"arch_instance": "res_bnelu"},
    "res_elu": {"arch_instance": "res_elu"},
    "no_res_dist": {"res_dist": False},
    "no_se": {"use_se": False},
    "normal_decoder": {"num_mixture_dec": 1},
    "one_group": {"num_latent_scales": 1, "num_groups_per_scale": 1},
    "celeba": {"dataset": "celeba_64", "num_x_bits": 5, "num_nf": 2},
    "unequal_widths": {"num_channels_enc": 8, "num_channels_dec": 16},
}


def random_checkpoint(**changes):
    """A checkpoint in the release's layout, with random weights."""
    args = argparse.Namespace(**(ARGUMENTS | changes))
    model = nvlabs.NVAE(nvlabs._model_config(vars(args)))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for weight in nvlabs._weights(model):
        values = torch.randn(weight.shape, generator=generator)
        state[weight.key] = values.abs() if "running_var" in weight.key else 0.1 * values
    return {"state_dict": state, "args": args, "epoch": 1, "global_step": 1}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_other_configurations(tmp_path, changes):
    checkpoint = random_checkpoint(**changes)
    model = nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    state = checkpoint["state_dict"]
    assert len(state) == len(model.variables)
    np.testing.assert_array_equal(
        model.stem.kernel, state["stem.weight"].numpy().transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        model.image_head.log_scale, state["image_conditional.1.log_weight_norm"][:, 0, 0, 0]
    )
    total = sum(float(value.double().abs().sum()) for value in state.values())
    ours = sum(np.abs(v.numpy().astype(np.float64)).sum() for v in model.variables)
    assert ours == pytest.approx(total, rel=1e-9)
    output = model.infer(np.zeros((1, *model.config.image_shape), np.float32))
    assert np.all(np.isfinite(output.logits))
    if model.config.is_vanilla:  # whose learned constant nothing uses
        state["prior_ftr0"] = torch.zeros(1)
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))


def test_an_imported_run_samples_and_trains_on(tmp_path, golden):
    workdir = Workdir(tmp_path / "run")
    import_checkpoint(GOLDEN / "nvlabs_mnist_tiny.pt", workdir)
    values = golden("nvlabs_mnist_tiny.npz")
    model = nvae_tf.load_model(workdir.path)
    noise = [values[f"eps/{group}"] for group in range(6)]
    logits = model.generate(3, 0.6, noise)
    assert relative_error(logits, values["sample/temperature_0.6/logits"]) < 1e-5

    config = workdir.read_config()
    assert config.data.name == "mnist"
    trainer = Trainer(config, make_strategy("auto"), num_images=1000)
    assert Checkpointer(trainer, workdir).restore()
    values = trainer.state.model_values()
    np.testing.assert_array_equal(values[model.stem.kernel.path], model.stem.kernel)
    with pytest.raises(ValueError, match="not an empty directory"):
        import_checkpoint(GOLDEN / "nvlabs_mnist_tiny.pt", workdir)


@pytest.mark.slow
def test_a_model_of_the_papers_size_is_imported_in_twice_its_memory(tmp_path):
    checkpoint = random_checkpoint(
        num_latent_scales=1,
        num_groups_per_scale=30,
        num_latent_per_group=20,
        num_channels_enc=128,
        num_channels_dec=128,
        num_cell_per_cond_enc=2,
        num_cell_per_cond_dec=2,
        num_nf=1,
    )
    path = write(tmp_path, checkpoint)
    assert sum(value.numel() for value in checkpoint["state_dict"].values()) > 130e6
    program = (
        "import torch\n"
        "from benchmarks.workloads import peak_resident_gigabytes\n"
        "from trainers.import_nvlabs import import_checkpoint\n"
        "from nvae_tf.runs.workdir import Workdir\n"
        "libraries = peak_resident_gigabytes()\n"
        f"import_checkpoint({str(path)!r}, Workdir({str(tmp_path / 'run')!r}))\n"
        "print(peak_resident_gigabytes() - libraries)"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert 1e9 * float(result.stdout) < 2 * path.stat().st_size
    head = nvae_tf.load_model(tmp_path / "run").groups[-1].posterior_head.convolution.bias
    np.testing.assert_array_equal(head, checkpoint["state_dict"]["enc_sampler.29.bias"])


def test_a_refused_import_leaves_nothing_behind(tmp_path):
    path = write(tmp_path, {"state_dict": {}, "args": Hostile()})
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        import_checkpoint(path, Workdir(tmp_path / "run"))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_preset_of_other_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bernoulli, those of the preset cifar10 are"):
        import_checkpoint(GOLDEN / "nvlabs_mnist_tiny.pt", Workdir(tmp_path / "run"), "cifar10")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_found(tmp_path):
    content = bytearray((GOLDEN / "nvlabs_mnist_tiny.pt").read_bytes())
    path = tmp_path / "flipped.pt"
    for position in np.random.default_rng(0).integers(len(content), size=40):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(position) % 8
        path.write_bytes(damaged)
        try:
            model = nvlabs.load_checkpoint(path)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            continue
        # Padding, names and times belong to no value.
        expected = nvlabs.load_checkpoint(GOLDEN / "nvlabs_mnist_tiny.pt")
        for ours, theirs in zip(model.variables, expected.variables, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("stem.bias", torch.full((8,), np.nan), "'stem.bias' .*not finite"),
        ("stem.bias", torch.full((8,), np.inf), "'stem.bias' .*not finite"),
        ("stem.bias", torch.zeros(8, dtype=torch.complex64), "holds complex64, not real"),
        ("stem.bias", torch.zeros(8, dtype=torch.bool), "holds bool, not real"),
        ("stem.bias", torch.zeros(8).to_sparse(), "'stem.bias' .* is no plain array"),
        ("running_var", -1.0, "negative variance, -1"),
    ],
)
def test_values_must_be_weights(tmp_path, key, values, message):
    checkpoint = load_raw("nvlabs_mnist_tiny")
    state = checkpoint["state_dict"]
    if key == "running_var":
        name = next(name for name in state if name.endswith(key))
        state[name] = torch.full_like(state[name], values)
    else:
        state[key] = values
    with pytest.raises(ValueError, match=message):
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))


def test_half_precision_is_widened(tmp_path):
    checkpoint = load_raw("nvlabs_mnist_tiny")
    wide = checkpoint["state_dict"]["stem.bias"]
    checkpoint["state_dict"]["stem.bias"] = wide.bfloat16()
    model = nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    np.testing.assert_array_equal(model.stem.bias, wide.bfloat16().float().numpy())


def test_errors_about_keys_stay_short(tmp_path):
    checkpoint = load_raw("nvlabs_mnist_tiny")
    checkpoint["state_dict"] |= {f"key{number}": torch.zeros(1) for number in range(3000)}
    with pytest.raises(ValueError, match=r"Surplus: 'key0', 'key1'.*and 2995 more") as caught:
        nvlabs.load_checkpoint(write(tmp_path, checkpoint))
    assert len(str(caught.value)) < 500
