"""A Ray cluster of two machines for the tests of the engine."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if find_spec("ray") is None:  # not imported: Ray reads its token's variables when it is
        pytest.skip("Ray is not installed: pip install 'dreambooth-factory[ray]'")
    from tests.ray_for_real import cluster, own_network

    with own_network(), cluster(tmp_path_factory.mktemp("cluster"), machines=2) as made:
        yield made
