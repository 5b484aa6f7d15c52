"""Photos in, a measured and registered model out."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config import Config
from dreambooth_core.errors import DatasetRefused
from dreambooth_core.reports.summary import RunRecorder, Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from tasks.artifacts import publish_findings, publish_plan, publish_results, write_report
from tasks.data import collect_instance_images, ensure_class_images, pin_datasets
from tasks.events import tell_outcome
from tasks.models import (
    evaluate_samples,
    generate_samples,
    judge_candidate,
    promote_version,
    register_version,
    train_model,
)


@flow(name="train", persist_result=False)
def train_flow(config: Config) -> Summary:
    """Learn one subject; what is there already is reused, what was cut off goes on."""
    with local_services(config):
        tracking.reach(config)
        config = pin_datasets(config)
        with RunRecorder(config) as run:
            try:
                intake = run.stage("validate", collect_instance_images, config)
            except DatasetRefused as refused:
                publish_findings(config, refused.findings)
                raise
            publish_plan(config, intake)
            photos = intake.images
            if not config.prior.generate_in_background:
                classes = run.stage("priors", ensure_class_images, config, photos)
            weights = run.stage("train", train_model, config, photos)
            if config.prior.generate_in_background:
                classes = run.stage("priors", ensure_class_images, config, photos)
            scores = run.stage("evaluate", evaluate_samples, config, photos, weights)
            found = (photos, classes, weights, scores)
            version = run.stage("register", register_version, config, *found)
            verdict = run.stage("gate", judge_candidate, config, photos, weights, scores)
            settled = run.stage("promote", promote_version, config, version, verdict)
            run.stage("sample", generate_samples, config, weights)
            run.stage("report", write_report, config, run.results, run.stages)
        publish_results(config, run.summary, run.results)
        if run.stages["promote"].status == "done":
            tell_outcome(settled, verdict)
        if verdict.outcome == "promote":
            return run.summary
        rejected: State[Summary] = Completed(
            name="GateRejected", message=verdict.sentence, data=run.summary
        )
        # whoever calls the flow gets the state's data
        return cast(Summary, rejected)
