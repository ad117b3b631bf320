"""Named configurations: the six of the paper's table 6, and small ones. See docs/presets.md."""

from __future__ import annotations

from typing import Any

from nvae_tf.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

_BINARISED_28X28: dict[str, Any] = {
    "image_shape": (32, 32, 1),
    "padding": 2,
    "likelihood": "bernoulli",
    "num_x_bits": 1,
}
# The paper's cells, one for each group and direction.
_ONE_CELL_EACH: dict[str, Any] = {
    "ada_groups": True,
    "min_groups_per_scale": 2,
    "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1,
}


def _quickstart() -> ExperimentConfig:
    """Gray test images of Fashion-MNIST, trained in about five minutes on two CPU cores.

    The top groups have 4x4 places and see the whole image. In so few steps, a high learning rate
    and little annealing of the KL give the sharpest images.
    """
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(32, 32, 1),
            padding=2,
            num_mixture_dec=3,
            num_latent_scales=2,
            num_groups_per_scale=4,
            num_latent_per_group=8,
            num_channels_enc=16,
            num_channels_dec=16,
            num_preprocess_blocks=2,
            num_preprocess_cells=1,
            num_postprocess_blocks=2,
            num_postprocess_cells=1,
            **_ONE_CELL_EACH,
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-2, warmup_epochs=0.2, ema_decay=0.98),
        train=TrainConfig(
            steps=1_200,
            global_batch_size=32,
            kl_anneal_portion=0.15,
            checkpoint_every=300,
            log_every=25,
            image_every=300,
        ),
    )


def _folder64() -> ExperimentConfig:
    """Colour pictures from a directory, trained in about a quarter of an hour on two CPU cores."""
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(64, 64, 3),
            num_x_bits=5,
            num_mixture_dec=5,
            num_latent_scales=3,
            num_groups_per_scale=3,
            ada_groups=True,
            num_latent_per_group=12,
            num_channels_enc=12,
            num_channels_dec=12,
            num_preprocess_blocks=2,
            num_preprocess_cells=1,
            num_postprocess_blocks=2,
            num_postprocess_cells=1,
            num_cell_per_cond_enc=1,
            num_cell_per_cond_dec=1,
            arch_instance="res_bnswish",  # plain residual cells are cheap on CPUs
        ),
        data=DataConfig(name="folder", center_crop=True, resize=True, flip=True),
        optimizer=OptimizerConfig(warmup_epochs=1),
        train=TrainConfig(
            steps=600,
            global_batch_size=32,
            checkpoint_every=200,
            log_every=25,
            image_every=200,
        ),
    )


def _night(steps: int, batch: int) -> TrainConfig:
    return TrainConfig(
        steps=steps, global_batch_size=batch, checkpoint_every=500, image_every=2_000
    )


def _mnist_small() -> ExperimentConfig:
    """Dynamically binarised MNIST in a night on two CPU cores: 3 million parameters.

    The images are those of `data.data_dir`, as idx files.
    """
    return ExperimentConfig(
        model=ModelConfig(
            **_BINARISED_28X28,
            num_latent_scales=2,
            num_groups_per_scale=6,
            num_latent_per_group=8,
            num_channels_enc=16,
            num_channels_dec=16,
            num_preprocess_blocks=2,
            num_postprocess_blocks=2,
            **_ONE_CELL_EACH,
        ),
        data=DataConfig(name="idx"),
        optimizer=OptimizerConfig(warmup_epochs=0.2, ema_decay=0.998),
        train=_night(steps=13_600, batch=128),
    )


# A model that is a little smaller, so that more images are seen in the time.
_QUICK_MNIST = {
    "model.num_groups_per_scale": 4,
    "model.num_preprocess_cells": 1,
    "model.num_postprocess_cells": 1,
    "train.global_batch_size": 32,
}


def _mnist_small_night() -> ExperimentConfig:
    """Dynamically binarised MNIST in a night on two CPU cores, with the paper's 15 groups."""
    return _mnist_small().override(
        {
            "model.num_groups_per_scale": 10,
            "model.num_channels_enc": 12,
            "model.num_channels_dec": 12,
            "train.global_batch_size": 32,
            "train.steps": 50_000,
            "train.kl_anneal_portion": 0.2,
            "train.frozen_batch_norm_portion": 0.4,
        }
    )


def _mnist_small_1h() -> ExperimentConfig:
    """Dynamically binarised MNIST in an hour on two CPU cores."""
    return _mnist_small().override(
        _QUICK_MNIST
        | {
            "train.steps": 23_000,
            "train.kl_anneal_portion": 0.2,
            "train.frozen_batch_norm_portion": 0.4,
        }
    )


def _mnist_small_5min() -> ExperimentConfig:
    """Dynamically binarised MNIST in five minutes on two CPU cores."""
    return _mnist_small().override(
        _QUICK_MNIST
        | {
            "optimizer.learning_rate": 1.5e-2,
            "optimizer.ema_decay": 0.98,
            "train.steps": 1_100,
            "train.kl_anneal_portion": 0.15,
        }
    )


def _fashion_mnist() -> ExperimentConfig:
    """Gray Fashion-MNIST in a night on two CPU cores.

    The images are those of `data.data_dir`, as idx files. Latent groups at three resolutions, the
    highest of which is 16x16, have room for prints and seams.
    """
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(32, 32, 1),
            padding=2,
            num_mixture_dec=5,
            num_latent_scales=3,
            num_groups_per_scale=6,
            num_latent_per_group=8,
            num_channels_enc=16,
            num_channels_dec=16,
            **_ONE_CELL_EACH,
        ),
        data=DataConfig(name="idx"),
        optimizer=OptimizerConfig(warmup_epochs=0.2, ema_decay=0.998),
        train=_night(steps=15_000, batch=64),
    )


def _emoji64() -> ExperimentConfig:
    """Emoji of three artists, two hours on two CPU cores; examples/prepare_emoji.py has them."""
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(64, 64, 3),
            num_x_bits=5,
            num_mixture_dec=5,
            num_latent_scales=3,
            num_groups_per_scale=4,
            num_latent_per_group=12,
            num_channels_enc=12,
            num_channels_dec=12,
            num_preprocess_blocks=2,
            num_postprocess_blocks=2,
            **_ONE_CELL_EACH,
        ),
        data=DataConfig(name="folder", flip=True),
        optimizer=OptimizerConfig(warmup_epochs=1, ema_decay=0.998),
        train=_night(steps=8_000, batch=32),
    )


def _mnist() -> ExperimentConfig:
    """Dynamically binarised MNIST. The paper reports 78.01 nats, on 2 GPUs."""
    return ExperimentConfig(
        model=ModelConfig(
            **_BINARISED_28X28,
            num_latent_scales=2,
            num_groups_per_scale=10,
            ada_groups=True,
            num_preprocess_blocks=2,
            num_preprocess_cells=3,
            num_postprocess_blocks=2,
            num_postprocess_cells=3,
        ),
        data=DataConfig(name="mnist"),
        train=TrainConfig(epochs=400, global_batch_size=400),
    )


def _cifar10() -> ExperimentConfig:
    """CIFAR-10. The paper reports 2.91 bits per dimension, on 8 GPUs."""
    return ExperimentConfig(
        model=ModelConfig(
            num_groups_per_scale=30, num_channels_enc=128, num_channels_dec=128, num_nf=1
        ),
        data=DataConfig(name="cifar10", flip=True),
        train=TrainConfig(epochs=400, global_batch_size=256),
    )


def _celeba64() -> ExperimentConfig:
    """CelebA at 64x64. The paper reports 2.03 bits per dimension, on 8 GPUs."""
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(64, 64, 3),
            num_latent_scales=3,
            num_groups_per_scale=20,
            ada_groups=True,
            num_channels_enc=64,
            num_channels_dec=64,
            num_nf=1,
        ),
        data=DataConfig(name="celeb_a", crop=(40, 15, 148, 148), resize=True, flip=True),
        train=TrainConfig(epochs=90, global_batch_size=128, weight_decay_norm=1e-1),
    )


def _imagenet32() -> ExperimentConfig:
    """ImageNet at 32x32. The paper reports 3.92 bits per dimension, on 24 GPUs."""
    return ExperimentConfig(
        model=ModelConfig(
            num_groups_per_scale=28, num_channels_enc=192, num_channels_dec=192, num_nf=1
        ),
        data=DataConfig(name="downsampled_imagenet/32x32", test_split="validation", flip=True),
        optimizer=OptimizerConfig(warmup_epochs=1),
        train=TrainConfig(epochs=45, global_batch_size=576, weight_decay_norm_anneal=True),
    )


def _faces256(data: DataConfig, optimizer: OptimizerConfig, train: TrainConfig) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(
            image_shape=(256, 256, 3),
            num_x_bits=5,
            num_latent_scales=5,
            num_groups_per_scale=16,
            ada_groups=True,
            min_groups_per_scale=4,
            num_channels_enc=30,
            num_channels_dec=30,
            num_nf=2,
        ),
        data=data,
        optimizer=optimizer,
        train=train,
    )


def _celebahq256() -> ExperimentConfig:
    """CelebA-HQ at 256x256. The paper reports 0.70 bits per dimension, on 24 GPUs."""
    return _faces256(
        DataConfig(
            name="celeb_a_hq/256", train_split="train[:90%]", test_split="train[90%:]", flip=True
        ),
        OptimizerConfig(),
        TrainConfig(epochs=300, global_batch_size=96, weight_decay_norm_anneal=True),
    )


def _ffhq256() -> ExperimentConfig:
    """FFHQ at 256x256. The paper reports 0.69 bits per dimension, on 24 GPUs."""
    return _faces256(
        DataConfig(name="folder", resize=True, flip=True),
        OptimizerConfig(learning_rate=8e-3),
        TrainConfig(
            epochs=200,
            global_batch_size=96,
            weight_decay_norm=1e-1,
            weight_decay_norm_anneal=True,
        ),
    )


_SMALL = {
    "quickstart": _quickstart,
    "folder64": _folder64,
    "mnist_small": _mnist_small,
    "mnist_small_night": _mnist_small_night,
    "mnist_small_1h": _mnist_small_1h,
    "mnist_small_5min": _mnist_small_5min,
    "fashion_mnist": _fashion_mnist,
    "emoji64": _emoji64,
}
_PAPER = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "celeba64": _celeba64,
    "imagenet32": _imagenet32,
    "celebahq256": _celebahq256,
    "ffhq256": _ffhq256,
}
_PRESETS = _SMALL | _PAPER


def paper_names() -> tuple[str, ...]:
    """Returns the names of the presets of the paper's table 6."""
    return tuple(_PAPER)


def names() -> tuple[str, ...]:
    """Returns the names of all presets."""
    return tuple(_PRESETS)


def description(name: str) -> str:
    """Returns a sentence about a preset of that name."""
    return (_PRESETS[name].__doc__ or "").partition("\n")[0]


def get(name: str) -> ExperimentConfig:
    """Returns the configuration of a preset.

    Raises:
      ValueError: if there is no preset of that name; the message lists the known names.
    """
    if name not in _PRESETS:
        raise ValueError(f"Unknown preset {name!r}. Known: {', '.join(_PRESETS)}.")
    return _PRESETS[name]()
