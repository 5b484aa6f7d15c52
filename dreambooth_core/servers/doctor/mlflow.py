"""The MLflow server: whether it is well, and of the version of our client."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckedServer, CheckResult, CheckTarget, checked


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding."""
    named = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD")]
    yield checked(
        CheckedServer(
            name="mlflow",
            url=site.mlflow,
            health="/health",
            version="/version",
            credentials=":".join(named) if all(named) else "",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    )
