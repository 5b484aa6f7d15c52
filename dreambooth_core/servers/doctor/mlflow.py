"""The MLflow server: health, and version against the client's."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckedServer, CheckResult, CheckTarget, checked


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result."""
    login = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD")]
    yield checked(
        CheckedServer(
            name="mlflow",
            url=target.mlflow,
            health="/health",
            version="/version",
            credentials=":".join(login) if all(login) else "",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    )
