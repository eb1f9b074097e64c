"""Packaging of mg_keras. Lower bounds are the oldest versions that were tried."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mg-keras",
    version="0.1.0",
    description="One image embedding for classes, instances and copies: MultiGrain in Keras 3 on TensorFlow",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["mg_keras", "mg_keras.*"]),
    install_requires=[
        # not tensorflow-cpu beside it: keras-hub brings tensorflow-text, which brings the full wheel
        "tensorflow>=2.20",
        "keras>=3.12",  # the last for Python 3.10
        "keras-hub>=0.25",
        "numpy>=2.0",
        "faiss-cpu>=1.12",
        "scikit-learn>=1.6",
        "matplotlib>=3.9",
        "pillow>=11.0",
        "rich>=13.0",
        "jsonargparse[signatures]>=4.40",
        "pyyaml>=6.0",
        # TensorFlow writes summaries through it, and no longer brings it
        "tensorboard>=2.20",
        "tensorflow-datasets>=4.9.8",
        # tensorflow-datasets imports it without asking for it
        "importlib_resources>=6.0",
    ],
    extras_require={
        "serving": ["grpcio>=1.70", "tensorflow-serving-api>=2.19"],
        "test": ["pytest>=8.0", "pytest-xdist>=3.6", "ruff>=0.11"],
    },
)
