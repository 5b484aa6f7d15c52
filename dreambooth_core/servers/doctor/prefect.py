"""The Prefect server: health, and version against the client's."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckedServer, CheckResult, CheckTarget, checked


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result."""
    yield checked(
        CheckedServer(
            name="prefect",
            url=target.prefect,
            health="/api/health",
            version="/api/admin/version",
            credentials=os.environ.get("PREFECT_API_AUTH_STRING", ""),
            remedy="set PREFECT_API_AUTH_STRING",
        )
    )
