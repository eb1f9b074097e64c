"""What is known of the objectives by their names is what their classes say."""

import inspect

import pytest

from mg_keras import objectives


@pytest.mark.parametrize("name", objectives.NAMES)
def test_an_objective_has_a_weight_where_its_class_takes_one(name):
    takes_one = "classification_weight" in inspect.signature(objectives.get(name).__init__).parameters
    assert objectives.weight_of(name, 0.3) == (0.3 if takes_one else None)
