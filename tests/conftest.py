"""What keeps the tests fast; CONTRIBUTING.md says how they are meant to stay so."""

import collections
import gc

import pytest

from tests.imports import run_graphs_as_written

run_graphs_as_written()

# tracing makes millions of objects that live: looking through them again and again took a tenth of the time
gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with the most slow tests come first, so that the workers end together."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
