"""Flow `retrain`: train again if photos or base have changed; a person promotes."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config.flow_parameters import Retraining
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from flows.train import train_flow
from tasks.data import caption_instance_images, collect_instance_images
from tasks.registry import find_same_inputs, use_newest_inputs
from tasks.stage import subflow_result


@flow(name="retrain", persist_result=False)
def retrain_flow(retraining: Retraining) -> Summary | None:
    """Train with the newest photos and base; a person promotes the version.

    Ends as `Unchanged` when a registered version was trained from equal inputs.
    """
    with local_services(retraining.config):
        tracking.reach(retraining.config)
        config = use_newest_inputs(retraining)
        photos, _ = collect_instance_images(config)
        if config.dataset.auto_captions:
            photos, _ = caption_instance_images(config, photos)
        existing = find_same_inputs(config, photos.images)
        if existing is None:
            return subflow_result(train_flow(config, return_state=True))
        message = f"{existing} was trained from the same inputs"
        unchanged: State[None] = Completed(name="Unchanged", message=message, data=None)
        return cast(None, unchanged)
