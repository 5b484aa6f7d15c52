"""A registered version in; what the gate says of it today."""

from prefect import flow

from dreambooth_core.config.flow_parameters import Assessment
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import Verdict
from tasks.artifacts import publish_verdict
from tasks.models import evaluate_samples, judge_candidate, promote_version
from tasks.registry import assessed_by, find_version, open_version


@flow(name="assess", persist_result=False)
def assess_flow(assessment: Assessment) -> Verdict:
    """Judge a version again, against who is in service now; it is told the verdict, not promoted."""
    found = find_version(assessment.model, assessment.registry)
    with local_services(found.config):
        dossier = open_version(found)
        config = assessed_by(dossier, assessment.seeds)
        scores, _ = evaluate_samples(config, dossier.instance, dossier.weights)
        verdict, _ = judge_candidate(config, dossier.instance, dossier.weights, scores)
        promote_version(config, dossier.version, verdict)
        publish_verdict(dossier.name, verdict)
        return verdict
