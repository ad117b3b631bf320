"""Packaging of nvae-tf."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="nvae-tf",
    version="0.1.0",
    description="NVAE, the deep hierarchical VAE, for TensorFlow and Keras 3",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "nvae_tf/data/embedded/LICENSE"],
    packages=find_packages(include=["nvae_tf*", "trainers*", "export*"]),
    package_data={
        "nvae_tf": ["py.typed", "pretrained/*/*"],
        "nvae_tf.evaluation": ["model_card_template.md"],
        "nvae_tf.data": ["embedded/*"],
        "export": ["py.typed", "serving/*"],
        "trainers": ["py.typed"],
    },
    python_requires=">=3.10,<3.14",
    install_requires=[
        "absl-py>=1.4",  # TFX does not allow 2
        "h5py>=3.8",
        "importlib_resources",  # tensorflow-datasets imports it without asking for it
        "keras>=3.12.1,!=3.13.0,!=3.13.1,<4",  # CVE-2026-1669
        "ml_collections>=1.0",
        "matplotlib>=3.7",
        "numpy>=1.26",
        "pillow>=10.3",  # CVE-2024-28219
        "tensorboard",
        "tensorflow>=2.16,<2.22",
        "tensorflow-datasets>=4.9.3",
        "tensorflow-probability[tf]>=0.24",
        "tensorflow-serving-api>=2.16,<2.22",
        "tqdm>=4.65",
        "urllib3>=2.0",
    ],
    extras_require={
        "cuda": ["tensorflow[and-cuda]"],
        # Metrics of nvae-detect.
        "detect": ["scikit-learn>=1.3"],
        "nvlabs": ["torch>=2.6"],
        # Another reader of ONNX files, with which the tests compare them.
        "openvino": ["openvino>=2024.0"],
        # LiteRT, which runs what tf.lite.TFLiteConverter converts.
        "litert": ["ai-edge-litert>=2.0"],
        "onnx": ["onnx>=1.14", "onnxruntime>=1.17", "tf2onnx>=1.16"],
        # Independent implementations that ours are compared with. They need torch and torchvision.
        "metrics": ["clean-fid>=0.1.35", "scipy>=1.10", "torch-fidelity>=0.4"],
        # Its libraries are for Linux with glibc 2.39 or newer.
        "tfx": ["tfx[kfp]>=1.21,<1.22"],
        "test": ["hypothesis>=6.100", "pytest>=8.0", "pytest-xdist>=3.5"],
        "dev": [
            "hypothesis>=6.100",
            "import-linter>=2.0",
            "mypy>=1.10",
            "pre-commit>=3.5",
            "pytest>=8.0",
            "pytest-cov>=5.0",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "scikit-learn>=1.3",
        ],
        # The schemas of examples/kubernetes, for its test.
        "kubernetes": ["kubeflow-training>=1.9,<2", "kubernetes-validate>=1.34"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    },
    entry_points={
        "console_scripts": [
            "nvae-train=trainers.start:train",
            "nvae-evaluate=trainers.start:evaluate",
            "nvae-detect=trainers.start:detect",
            "nvae-sample=trainers.start:sample",
            "nvae-latents=trainers.start:latents",
            "nvae-projector=trainers.start:projector",
            "nvae-complete=trainers.start:complete",
            "nvae-export=trainers.start:export",
            "nvae-client=trainers.start:client",
            "nvae-model-card=trainers.start:model_card",
            "nvae-save-preset=trainers.start:save_preset",
            "nvae-import-nvlabs=trainers.start:import_nvlabs",
        ]
    },
)
