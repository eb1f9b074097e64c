"""What keeps whole trainings fast."""

import pytest

from tests.train.tiny import decode_jpegs_alone


@pytest.fixture(autouse=True)
def jpegs_alone(monkeypatch):
    """All photos here are sound; tests/data and tests/train have others."""
    decode_jpegs_alone(monkeypatch)
