import pytest

from tests.export import small


@pytest.fixture(scope="package")
def model():
    return small.small_model()


@pytest.fixture(scope="package")
def whitening(model):
    return small.fitted_whitening(model)


@pytest.fixture(scope="package")
def exported(model, whitening, tmp_path_factory):
    """Written once for all tests that only read it."""
    return small.export(model, whitening, tmp_path_factory.mktemp("exported"))
