"""Fixtures: an API server, a certificate authority, and the source that is to be tested, with short times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.certificates import Authority
from tests.api.harness import Harness, write_kubeconfig
from tests.api.server import ApiServer


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """Plain HTTP, nobody is asked who he is."""
    with ApiServer() as server:
        yield server


@pytest.fixture
def harness(server: ApiServer, tmp_path: Path) -> Iterator[Harness]:
    """The source for `server`, not yet started."""
    harness = Harness(server, write_kubeconfig(tmp_path / "kubeconfig", server.url))
    yield harness
    harness.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(directory=tmp_path_factory.mktemp("authority")).create()
