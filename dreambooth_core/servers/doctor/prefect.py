"""The Prefect server: whether it is well, and of the version of our client."""

import os
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckedServer, CheckResult, CheckTarget, checked


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding."""
    yield checked(
        CheckedServer(
            name="prefect",
            url=site.prefect,
            health="/api/health",
            version="/api/admin/version",
            credentials=os.environ.get("PREFECT_API_AUTH_STRING", ""),
            remedy="set PREFECT_API_AUTH_STRING",
        )
    )
