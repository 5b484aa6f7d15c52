"""The newest photos and base in; nothing at all, or a version that waits for a person's word."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config.flow_parameters import Retraining
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from flows.train import train_flow
from tasks.data import collect_instance_images
from tasks.registry import find_twin, renew_inputs
from tasks.stage import passed_on


@flow(name="retrain", persist_result=False)
def retrain_flow(retraining: Retraining) -> Summary | None:
    """Train what changed since it was registered last; who promotes it is a person.

    Started by a clock or by new photos, it ends at once as `Unchanged` when there is nothing new.
    """
    with local_services(retraining.config):
        tracking.reach(retraining.config)
        config = renew_inputs(retraining)
        intake, _ = collect_instance_images(config)
        twin = find_twin(config, intake.images)
        if twin is None:
            return passed_on(train_flow(config, return_state=True))
        said = f"{twin} was trained from the same inputs"
        unchanged: State[None] = Completed(name="Unchanged", message=said, data=None)
        return cast(None, unchanged)
