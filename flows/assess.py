"""Flow `assess`: a new verdict on a registered version."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Assessment
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import Verdict
from dreambooth_core.tracking.vision_budget import run_budget
from tasks.artifacts import publish_verdict
from tasks.models import evaluate_samples, judge_candidate, promote_version
from tasks.registry import assessment_config, find_version, open_version


@flow(name="assess", persist_result=False)
def assess_flow(assessment: Assessment) -> Verdict:
    """Compare a version with the current champion; the verdict is recorded, the version not promoted."""
    found = find_version(assessment.model, assessment.registry)
    with local_services(found.config):
        details = open_version(found)
        config = assessment_config(details, assessment.seeds)
        with run_budget(config):
            scores, _ = evaluate_samples(config, details.instance, details.weights)
            verdict, _ = judge_candidate(config, details.instance, details.weights, scores)
        promote_version(config, details.version, verdict)
        publish_verdict(details.name, verdict)
        return verdict
