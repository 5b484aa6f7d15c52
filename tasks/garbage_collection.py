"""Tasks of garbage collection in the store."""

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config.flow_parameters import Cleaning
from dreambooth_core.reports.markdown import garbage_markdown
from dreambooth_core.storage.garbage_collection import DAY, SweepResult, sweep
from dreambooth_core.storage.stores import open_store
from tasks.stage import stage


@stage("sweep")
def sweep_store(cleaning: Cleaning) -> SweepResult:
    """Find unreachable objects, and delete them with `cleaning.delete` (see `garbage_collection`)."""
    return sweep(open_store(cleaning.storage), cleaning.days * DAY, cleaning.delete)


def publish_swept(result: SweepResult) -> None:
    """Markdown artifact `janitor`: bytes by kind."""
    create_markdown_artifact(garbage_markdown(result), key="janitor")
