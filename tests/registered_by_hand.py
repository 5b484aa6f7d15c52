"""Made-up records of models, for tests of registration and promotion."""

import secrets

import numpy as np
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.diffusion.sampling import encode_png
from dreambooth_core.registry import provenance, register
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.registry.provenance import RunInputs
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import image_set, put_blob, put_record
from dreambooth_core.storage.records import (
    ImageScores,
    ImageSet,
    ModelVersion,
    Reason,
    SampleSet,
    Scores,
    ScoreTable,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking


def noise_images(store: Store, kind: type[ImageSet], seed: int) -> ImageSet:
    """Two stored images of noise for one prompt."""
    draw = np.random.default_rng(seed)
    images = []
    for index in range(2):
        image = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        blob = put_blob(store, encode_png(image, "p", index))
        images.append(records.Image(name=f"{index}.png", blob=blob, prompt="p", seed=index))
    return image_set(store, "sets", images, kind)


def stored_inputs(store: Store, mark: str = "a", value: float = 0.75) -> RunInputs:
    """All records of one training, stored; its digests repeat the hex digit `mark`."""
    samples = [noise_images(store, SampleSet, seed) for seed in range(4)]
    blob = put_blob(store, f"weights {mark}".encode())
    weights = Weights(
        uri=f"{store.uri}/runs/{mark}/result.json",
        digest=mark * 64,
        key=mark * 64,
        code=f"0.0.1 {mark * 40}",
        method="full",
        files={"unet/weights.safetensors": blob},
        steps=3,
        steps_per_second=2.0,
        losses=((1, 0.5, 0.25), (3, 0.4, None)),
    )
    rows = (_row("{subject} on the beach", 1, 0.5), _row("{subject} in the snow", 2, 0.25))
    scores = Scores(
        uri=f"{store.uri}/scores/{mark}/result.json",
        digest=mark * 64,
        plan="f" * 64,
        metrics={"clip_i": value},
        base_metrics={"clip_i": 0.5},
        reference={"clip_i": 0.875},
        table=put_blob(store, ScoreTable(rows=rows).model_dump_json().encode()),
        samples=samples[0],
        base_samples=samples[1],
        class_samples=samples[2],
        base_class_samples=samples[3],
    )
    put_record(store, f"scores/{mark}/result.json", scores)
    return RunInputs(
        noise_images(store, ImageSet, 8), noise_images(store, ImageSet, 9), weights, scores
    )


def _row(prompt: str, seed: int, value: float) -> ImageScores:
    scores = {"subject_fidelity": value, "prompt_fidelity": 1 - value}
    return ImageScores(
        prompt=prompt,
        kind="scene",
        seed=seed,
        image="1" * 64,
        base_image="2" * 64,
        scores=scores,
        base_scores=scores,
    )


def version_by_hand(client, config: Config, store: Store, mark: str) -> ModelVersion:
    """A version in MLflow and the store, whose run has no contents."""
    inputs = stored_inputs(store, mark)
    log = register.open_alias_log(client, config, store)
    run = client.create_run(tracking.experiment_of(client, config)).info.run_id
    number = str(client.create_model_version(config.name, f"file:///{mark}", run).version)
    made = provenance.provenance_of(config, store, inputs)
    provenance.put_provenance(log, made.model_copy(update={"version": number, "run_id": run}))
    return ModelVersion(name=config.name, version=number, aliases=(), run_id=run)


def verdict(
    version: str,
    outcome: str,
    against: str,
    rule: str = "superiority",
    candidate: Scores | None = None,
) -> Verdict:
    """A verdict on a version with made-up scores."""
    passed = "passed" if outcome == "promote" else "failed"
    sentence = f"version {version}: {outcome} | against {against}"
    no_images = SampleSet(uri="x", digest="x", images=())
    scores = Scores(
        uri="file:///s",
        digest="b" * 64,
        metrics={"clip_i": 0.5},
        base_metrics={"clip_i": 0.25},
        samples=no_images,
        base_samples=no_images,
        class_samples=no_images,
        base_class_samples=no_images,
    )
    return Verdict(
        uri=f"file:///verdicts/{version}",
        digest=secrets.token_hex(32),
        outcome=outcome,
        sentence=sentence,
        reasons=(Reason(rule=rule, metric="clip_i", outcome=passed, sentence="0.5"),),
        comparisons=(),
        against=against,
        rounds=1,
        candidate=candidate or scores,
        champion=None,
    )


def log_of(log: AliasLog) -> list[tuple[str, str, str]]:
    """Action, version and user of all changes, oldest first."""
    return [(change.action, change.version, change.by) for change in log.history()]
