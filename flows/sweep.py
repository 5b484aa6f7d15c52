"""A grid of trainings in; the best of them judged like any candidate."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from flows.train import train_flow
from tasks.data import collect_instance_images, ensure_class_images, pin_datasets
from tasks.models import train_model
from tasks.stage import passed_on
from tasks.sweep import choose_trial, measure_trial, plan_trials, publish_sweep


@flow(name="sweep", persist_result=False)
def sweep_flow(sweep: Sweep) -> Summary:
    """Train every point, choose by development seeds, and run the winner's whole walk."""
    with local_services(sweep.config):
        tracking.reach(sweep.config)
        points = []
        trials = plan_trials(sweep, pin_datasets(sweep.config))
        for trial in trials:
            intake, _ = collect_instance_images(trial.config)
            ensure_class_images(trial.config, intake.images)
            weights, _ = train_model(trial.config, intake.images)
            points.append(measure_trial(trial, intake.images, weights))
        best = choose_trial(sweep, points)
        publish_sweep(points, best)
        return passed_on(train_flow(trials[best].config, return_state=True))
