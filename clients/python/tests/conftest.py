"""What the tests share: the server under test, and a photograph."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostserve import Client

IMAGES = Path(__file__).resolve().parents[3] / "tests/goldens/images"


@pytest.fixture(scope="session")
def url() -> str:
    found = os.environ.get("GHOSTSERVE_URL")
    if not found:
        pytest.skip("GHOSTSERVE_URL names no server; `make test-python-client` starts one")
    return found


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def photo() -> Path:
    return IMAGES / "jpeg-420.jpg"
