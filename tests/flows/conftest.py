"""A Prefect server for the flows of a file of tests."""

from collections.abc import Iterator

import pytest

from tests.prefect_for_real import prefect_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url
