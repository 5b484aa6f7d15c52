"""A whole run, and what in it cannot go together."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dreambooth_core.config.base import NAME, Section, as_name
from dreambooth_core.config.compute import Compute
from dreambooth_core.config.inputs import Dataset, Model, Subject
from dreambooth_core.config.results import Evaluation, Gate, Sample, Sampler, Tracking
from dreambooth_core.config.storage import Paths, Storage
from dreambooth_core.config.training import (
    ADAPTERS,
    INVERSIONS,
    Adapter,
    Checkpoints,
    Loss,
    Memory,
    Optimizer,
    Prior,
    PriorTarget,
    TextualInversion,
    Train,
    Validation,
)


class Config(Section):
    """A whole run."""

    subject: Subject
    name: Annotated[str, Field(pattern=NAME, default_factory=lambda known: _called(known))]
    """Name of the registered model; the last word of `subject.images` when left out."""
    version: Literal[1] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random number of the run follows from this one."""
    more_subjects: tuple[Subject, ...] = ()
    """Others to learn in the same run, each as often as the first."""
    model: Model = Model()
    dataset: Dataset = Dataset()
    prior: Prior = Prior()
    train: Train = Train()
    adapter: Adapter = Adapter()
    textual_inversion: TextualInversion = TextualInversion()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    checkpoints: Checkpoints = Checkpoints()
    memory: Memory = Memory()
    validation: Validation = Validation()
    sampler: Sampler = Sampler()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    sample: Sample = Sample()
    compute: Compute = Compute()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    paths: Paths = Paths()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """All that are learned, the main one first."""
        return (self.subject, *self.more_subjects)

    @property
    def prior_target(self) -> PriorTarget | None:
        """What preserves the prior: `prior.target`, or what the method can do; None where nothing does."""
        if not self.prior.enabled:
            return None
        return self.prior.target or ("prediction" if self.train.method in ADAPTERS else "images")

    @model_validator(mode="after")
    def _prompts_fill(self) -> Self:
        for subject in self.subjects:
            templates = (subject.instance_prompt, subject.class_prompt, *self.validation.prompts)
            for template in (*templates, *self.evaluation.kinds, *self.sample.prompts):
                subject.fill(template)
            if subject.identifier not in subject.fill(subject.instance_prompt).split():
                raise ValueError("subject.instance_prompt must contain {identifier} or {subject}")
            words = subject.fill(subject.class_prompt).split()
            if self.prior.enabled and subject.identifier in words:
                raise ValueError("subject.class_prompt must not contain the identifier token")
        if len({subject.identifier for subject in self.subjects}) < len(self.subjects):
            raise ValueError("each subject needs an identifier of its own: set more_subjects' too")
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        for wrong, sentence in _disagreements(self):
            if wrong:
                raise ValueError(sentence)
        return self


def _called(known: Mapping[str, Any]) -> str:
    """`dog` for photos/dog and dataset://dog@latest, in letters that a name may have; or the class noun."""
    subject = known["subject"]
    images = PurePath(str(subject.images).partition("@")[0]).name
    return next(filter(None, map(as_name, (images, subject.class_noun))), "")


Disagreement = tuple[bool, str]
"""Whether a config has a combination without a meaning, and what to say of it."""


def _disagreements(config: Config) -> list[Disagreement]:
    return [
        *_of_methods(config),
        *_of_optimizers(config),
        *_of_text_encoders(config),
        *_of_shards(config),
        *_of_masks(config),
        *_of_clusters(config),
        (
            config.validation.every_n_steps is None and config.validation != Validation(),
            "validation.* has no effect without validation.every_n_steps",
        ),
    ]


def _of_methods(config: Config) -> list[Disagreement]:
    """What `train.method` does not go with."""
    train, prior, quantize = config.train, config.prior, config.model.quantize
    adapter = train.method in ADAPTERS
    return [
        (
            config.prior_target == "prediction" and not adapter,
            f"prior.target: prediction needs an adapter to switch off, which train.method "
            f"{train.method} has not: use lora, dora, lokr or pivotal, or prior.target: images",
        ),
        (
            prior.enabled and train.method == "textual_inversion",
            "textual inversion moves nothing but new tokens, so the class noun is safe: "
            "set prior.enabled: false",
        ),
        (
            train.method == "textual_inversion" and bool(train.text_encoder),
            "train.text_encoder: true moves the encoders' weights, which textual_inversion leaves "
            "alone: use train.method pivotal",
        ),
        (
            prior.generate_in_background and config.prior_target != "images",
            "prior.generate_in_background needs class images to make: prior.enabled and prior.target: images",
        ),
        (
            config.prior_target == "prediction"
            and prior.num_class_images != Prior().num_class_images,
            f"prior.num_class_images {prior.num_class_images} has no effect with prior.target: prediction, "
            "the default of adapters: set prior.target: images, or leave prior.num_class_images out",
        ),
        (
            quantize != "none" and not adapter,
            f"model.quantize freezes the denoiser, which train.method {train.method} trains: "
            "use lora, dora, lokr or pivotal",
        ),
        (
            quantize != "none" and train.method == "lokr",
            "lokr has no layers for a quantized denoiser: use lora, dora or pivotal",
        ),
    ]


def _of_masks(config: Config) -> list[Disagreement]:
    """What masks that are to be found need."""
    wanted = config.dataset.auto_masks
    return [
        (
            wanted and not config.loss.masks,
            "dataset.auto_masks has no effect without loss.masks: true",
        ),
        (
            wanted and config.evaluation.detector.kind is None,
            "dataset.auto_masks needs someone to find the subject: set evaluation.detector",
        ),
    ]


def _of_optimizers(config: Config) -> list[Disagreement]:
    """What an optimizer, or its step within the backward pass, does not go with."""
    train, optimizer = config.train, config.optimizer
    fused, late = optimizer.fused_backward, train.text_encoder_until < 1
    return [
        (
            fused and (train.gradient_accumulation_steps > 1 or train.max_grad_norm is not None),
            "optimizer.fused_backward frees each gradient at once: it needs "
            "train.gradient_accumulation_steps: 1 and train.max_grad_norm: null",
        ),
        (
            fused and (train.num_processes > 1 or train.precision == "fp16"),
            "optimizer.fused_backward works in one process, and without fp16's loss scaling",
        ),
        (
            fused and (late or optimizer.name == "prodigy"),
            "optimizer.fused_backward steps each weight alone and at once: it goes neither with "
            "prodigy, which looks at all together, nor with train.text_encoder_until",
        ),
        (
            optimizer.name == "prodigy" and train.learning_rate < 0.1,
            f"prodigy finds its own rate and multiplies it by train.learning_rate "
            f"{train.learning_rate:g}: set that to 1",
        ),
        (
            optimizer.name == "schedule_free"
            and (train.lr_schedule != "constant" or train.ema is not None),
            "schedule_free averages by itself: it needs train.lr_schedule: constant and no train.ema",
        ),
    ]


def _of_text_encoders(config: Config) -> list[Disagreement]:
    """What has no effect on text encoders that rest."""
    train = config.train
    late, inverts = train.text_encoder_until < 1, train.method in INVERSIONS
    return [
        (
            train.text_encoder is False and train.text_encoder_learning_rate is not None,
            "train.text_encoder_learning_rate has no effect with train.text_encoder: false",
        ),
        (
            late and not inverts and train.text_encoder is False,
            "train.text_encoder_until has no effect with train.text_encoder: false",
        ),
    ]


def _of_shards(config: Config) -> list[Disagreement]:
    """What a model in shards does not go with."""
    train = config.train
    sharded = train.strategy == "fsdp2"
    return [
        (
            sharded and config.optimizer.name != "adamw",
            "train.strategy fsdp2 goes with optimizer.name: adamw",
        ),
        (
            sharded and train.precision == "fp16",
            "train.strategy fsdp2 has no loss scaling for fp16: set train.precision: bf16 or fp32",
        ),
        (
            sharded and config.model.quantize == "int8",
            "model.quantize int8 makes weights that train.strategy fsdp2 cannot cut into pieces: "
            "use nf4, or ddp",
        ),
        (
            sharded and config.validation.every_n_steps is not None,
            "validation.every_n_steps looks at a whole model, which train.strategy fsdp2 leaves to no rank: "
            "use ddp, or leave validation.every_n_steps out",
        ),
    ]


def _of_clusters(config: Config) -> list[Disagreement]:
    """What several machines cannot share."""
    engine, storage = config.compute.engine, config.storage
    nodes, ranks = config.compute.nodes, config.train.num_processes
    return [
        (
            ranks % nodes != 0,
            f"train.num_processes {ranks} cannot be shared out among compute.nodes {nodes}",
        ),
        (
            nodes > 1 and config.memory.fit == "auto",
            "memory.fit auto looks at this machine's device, and compute.nodes train on others: "
            "set what fits theirs",
        ),
        (
            engine != "local" and storage.uri.startswith("s3://") and storage.endpoint == "local",
            f"compute.engine {engine} needs a store that every machine reaches, and the local one "
            "is this machine's: set storage.endpoint, or storage.uri to a shared folder",
        ),
    ]
