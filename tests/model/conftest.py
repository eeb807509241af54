"""Fixtures for tests of model files."""

import pytest

from charrnn.model.file import save_model
from tests.model.model_files import make_model


@pytest.fixture
def path(tmp_path):
    """Where a test writes its model."""
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The bytes of a good model file."""
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_model(path, make_model())
    return path.read_bytes()
