"""Flow `sweep`: a grid of trainings, the best of which goes to the gate."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.vision_budget import run_budget
from flows.train import train_flow
from tasks.data import (
    caption_instance_images,
    collect_instance_images,
    ensure_class_images,
    pin_datasets,
)
from tasks.models import train_model
from tasks.stage import subflow_result
from tasks.sweep import choose_trial, measure_trial, plan_trials, publish_sweep


@flow(name="sweep", persist_result=False)
def sweep_flow(sweep: Sweep) -> Summary:
    """Train every trial, choose one by its scores on development seeds, and run `train` with its config."""
    with local_services(sweep.config), run_budget(sweep.config):
        tracking.reach(sweep.config)
        scores = []
        trials = plan_trials(sweep, pin_datasets(sweep.config))
        for trial in trials:
            photos, _ = collect_instance_images(trial.config)
            if trial.config.dataset.auto_captions:
                photos, _ = caption_instance_images(trial.config, photos)
            ensure_class_images(trial.config, photos.images)
            weights, _ = train_model(trial.config, photos.images)
            scores.append(measure_trial(trial, photos.images, weights))
        best = choose_trial(sweep, scores)
        publish_sweep(scores, best)
        return subflow_result(train_flow(trials[best].config, return_state=True))
