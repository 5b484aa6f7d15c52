"""The MLflow server: whether it is well, and of the version of our client."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import Finding, Server, Site, checked


def check(site: Site) -> Iterator[Finding]:
    """One finding."""
    named = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD")]
    yield checked(
        Server(
            name="mlflow",
            url=site.mlflow,
            health="/health",
            version="/version",
            credentials=":".join(named) if all(named) else "",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    )
