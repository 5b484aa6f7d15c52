"""A Prefect server for the flows of a file of tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefect_for_real import prefect_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect_home")
    shutil.copy(prefect_tables, home)
    with prefect_server(home) as url:
        yield url
