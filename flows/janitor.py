"""Flow `janitor`: garbage collection in the store."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Cleaning
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.garbage_collection import SweepResult
from tasks.garbage_collection import publish_swept, sweep_store


@flow(name="janitor", persist_result=False)
def janitor_flow(cleaning: Cleaning = Cleaning()) -> SweepResult:  # noqa: B008 - frozen
    """Count old unreachable objects; with `delete`, remove them."""
    with local_services(cleaning.config):
        result = sweep_store(cleaning)
        publish_swept(result)
        return result
