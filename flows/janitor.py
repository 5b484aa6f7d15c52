"""A store in; the same without what nothing needs."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Cleaning
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.garbage_collection import SweepResult
from tasks.garbage_collection import publish_swept, sweep_store


@flow(name="janitor", persist_result=False)
def janitor_flow(cleaning: Cleaning = Cleaning()) -> SweepResult:  # noqa: B008 - frozen
    """Count what is old and cannot be reached, and delete it if that is wished."""
    with local_services(cleaning.config):
        swept = sweep_store(cleaning)
        publish_swept(swept)
        return swept
