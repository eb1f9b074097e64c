"""The examples in docstrings do what they say: they are typed in, one after the other, where the usual names are known.

An example that needs files is marked `# doctest: +SKIP`.
"""

import doctest
import importlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import mg_keras

PACKAGE = Path(mg_keras.__file__).parent
NAMES = {"keras": keras, "mg_keras": mg_keras, "np": np, "tf": tf}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    # some write a file
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said, tried = [], 0
    for example in doctest.DocTestFinder().find(module, name, globs={**vars(module), **NAMES}):
        tried += len(example.examples)
        runner.run(example, out=said.append)
    assert tried
    assert not runner.failures, "".join(said)
