"""A grid of trainings in; the best of them judged like any candidate."""

from prefect import flow

from dreambooth_core import tracking
from dreambooth_core.forms import Sweep
from dreambooth_core.services import local_services
from dreambooth_core.summary import Summary
from flows.train import train_flow
from tasks.models import train_model
from tasks.photos import collect_instance_images, ensure_class_images, pin_datasets
from tasks.stages import passed_on
from tasks.trials import choose_trial, measure_trial, plan_trials, publish_sweep


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
