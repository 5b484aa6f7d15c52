"""A real SeaweedFS for the tests of stores."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import config, services


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a local S3 server with a bucket `contract`; credentials are in the environment."""
    run = config.Config(
        name="stores",
        subject=config.Subject(images=Path("photos"), class_noun="dog"),
        storage=config.Storage(uri="s3://contract/start"),
        paths=config.Paths(work=tmp_path_factory.mktemp("s3")),
    )
    with services.local_services(run):
        yield os.environ["AWS_ENDPOINT_URL_S3"]
