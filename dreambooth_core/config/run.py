"""Config of a run, and its conflicting combinations of options."""

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
from dreambooth_core.config.vision import JUDGING, Judge, Vision
from dreambooth_core.config.vision_profiles import model_profile


class Config(Section):
    """Config of a run."""

    subject: Subject
    name: Annotated[str, Field(pattern=NAME, default_factory=lambda known: _default_name(known))]
    """Name of the registered model; default: the last part of `subject.images`."""
    version: Literal[1] = 1
    """Version of the config format."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed that all random numbers of the run are derived from, except those of the evaluation."""
    more_subjects: tuple[Subject, ...] = ()
    """Further subjects to learn in the same training, in equal shares."""
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
    vision: Vision = Vision()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    sample: Sample = Sample()
    compute: Compute = Compute()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    paths: Paths = Paths()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """All subjects, `subject` first."""
        return (self.subject, *self.more_subjects)

    @property
    def prior_target(self) -> PriorTarget | None:
        """`prior.target` or its default for the method; None if prior preservation is off."""
        if not self.prior.enabled:
            return None
        return self.prior.target or ("prediction" if self.train.method in ADAPTERS else "images")

    @property
    def judge(self) -> Judge | None:
        """The judge of generated images, with model and server of `vision` where it has none of its own."""
        judge = self.evaluation.judge
        if judge is None or not judge.uses_vision:
            return judge
        return Judge.model_validate(
            {**self.vision.model_dump(), **judge.model_dump(include=set(JUDGING))}
        )

    @model_validator(mode="after")
    def _prompts_are_valid(self) -> Self:
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
            raise ValueError(
                "two subjects have the same identifier: set another one in more_subjects"
            )
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        for conflicting, message in _conflicts(self):
            if conflicting:
                raise ValueError(message)
        return self


def _default_name(known: Mapping[str, Any]) -> str:
    """`dog` for photos/dog and dataset://dog@latest, else the class noun, in characters of `NAME`."""
    subject = known["subject"]
    images = PurePath(str(subject.images).partition("@")[0]).name
    return next(filter(None, map(as_name, (images, subject.class_noun))), "")


Conflict = tuple[bool, str]
"""Whether a config has a conflicting combination of options, and its message."""


def _conflicts(config: Config) -> list[Conflict]:
    asks = config.evaluation.detector.kind == "language_model"
    boxes = model_profile(config.vision.model).boxes
    return [
        *_method_conflicts(config),
        *_optimizer_conflicts(config),
        *_text_encoder_conflicts(config),
        *_sharding_conflicts(config),
        *_mask_conflicts(config),
        *_vision_conflicts(config),
        *_cluster_conflicts(config),
        (
            config.validation.every_n_steps is None and config.validation != Validation(),
            "validation.* has no effect without validation.every_n_steps",
        ),
        (
            asks and config.vision.backend is None,
            "evaluation.detector.kind: language_model needs a model: set vision.backend and vision.model",
        ),
        (
            asks and config.vision.backend is not None and boxes is None,
            f"evaluation.detector.kind: language_model needs boxes, whose coordinate style is not known for "
            f"vision.model {config.vision.model}: use a model of config/vision_profiles.yaml",
        ),
    ]


def _method_conflicts(config: Config) -> list[Conflict]:
    train, prior, quantize = config.train, config.prior, config.model.quantize
    adapter = train.method in ADAPTERS
    return [
        (
            config.prior_target == "prediction" and not adapter,
            f"prior.target: prediction needs an adapter, which train.method "
            f"{train.method} does not have: use lora, dora, lokr or pivotal, or prior.target: images",
        ),
        (
            prior.enabled and train.method == "textual_inversion",
            "train.method textual_inversion trains new tokens only and needs no prior preservation: "
            "set prior.enabled: false",
        ),
        (
            train.method == "textual_inversion" and bool(train.text_encoder),
            "train.text_encoder: true trains the encoders' weights, which textual_inversion freezes: "
            "use train.method pivotal",
        ),
        (
            prior.generate_in_background and config.prior_target != "images",
            "prior.generate_in_background needs class images: set prior.enabled and prior.target: images",
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
            "lokr does not support a quantized denoiser: use lora, dora or pivotal",
        ),
    ]


def _mask_conflicts(config: Config) -> list[Conflict]:
    wanted = config.dataset.auto_masks
    return [
        (
            wanted and not config.loss.masks,
            "dataset.auto_masks has no effect without loss.masks: true",
        ),
        (
            wanted and config.evaluation.detector.kind is None,
            "dataset.auto_masks needs a detector: set evaluation.detector",
        ),
    ]


def _vision_conflicts(config: Config) -> list[Conflict]:
    judge, rules, missing = config.evaluation.judge, config.dataset, config.vision.backend is None
    return [
        (
            judge is not None and judge.uses_vision and missing,
            "evaluation.judge needs a model: set vision.backend, or evaluation.judge.url and model",
        ),
        (
            rules.second_opinion is not None and missing,
            "dataset.second_opinion needs a model: set vision.backend",
        ),
        (
            rules.auto_captions and missing,
            "dataset.auto_captions needs a model: set vision.backend",
        ),
        (
            rules.auto_captions and not any(subject.captions for subject in config.subjects),
            "dataset.auto_captions has no effect with subject.captions: false",
        ),
    ]


def _optimizer_conflicts(config: Config) -> list[Conflict]:
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
            "optimizer.fused_backward needs train.num_processes: 1 and no fp16 loss scaling",
        ),
        (
            fused and (late or optimizer.name == "prodigy"),
            "optimizer.fused_backward steps each weight separately: it supports neither prodigy, "
            "whose rate depends on all weights, nor train.text_encoder_until",
        ),
        (
            optimizer.name == "prodigy" and train.learning_rate < 0.1,
            f"prodigy estimates the rate and multiplies it by train.learning_rate "
            f"{train.learning_rate:g}: set train.learning_rate: 1",
        ),
        (
            optimizer.name == "schedule_free"
            and (train.lr_schedule != "constant" or train.ema is not None),
            "schedule_free averages by itself: it needs train.lr_schedule: constant and no train.ema",
        ),
    ]


def _text_encoder_conflicts(config: Config) -> list[Conflict]:
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


def _sharding_conflicts(config: Config) -> list[Conflict]:
    train = config.train
    sharded = train.strategy == "fsdp2"
    return [
        (
            sharded and config.optimizer.name != "adamw",
            "train.strategy fsdp2 supports optimizer.name: adamw only",
        ),
        (
            sharded and train.precision == "fp16",
            "train.strategy fsdp2 has no loss scaling for fp16: set train.precision: bf16 or fp32",
        ),
        (
            sharded and config.model.quantize == "int8",
            "train.strategy fsdp2 cannot shard the weights of model.quantize int8: use nf4, or ddp",
        ),
        (
            sharded and config.validation.every_n_steps is not None,
            "validation.every_n_steps needs a whole model per rank, which train.strategy fsdp2 shards: "
            "use ddp, or leave validation.every_n_steps out",
        ),
    ]


def _cluster_conflicts(config: Config) -> list[Conflict]:
    engine, storage = config.compute.engine, config.storage
    nodes, ranks = config.compute.nodes, config.train.num_processes
    return [
        (
            ranks % nodes != 0,
            f"train.num_processes {ranks} is not a multiple of compute.nodes {nodes}: make it one",
        ),
        (
            nodes > 1 and config.memory.fit == "auto",
            "memory.fit auto plans for this machine's device, but compute.nodes train on others: "
            "set memory.fit: none",
        ),
        (
            engine != "local" and storage.uri.startswith("s3://") and storage.endpoint == "local",
            f"compute.engine {engine} needs a store that every machine reaches, which storage.endpoint "
            "local is not: set storage.endpoint, or storage.uri to a shared folder",
        ),
    ]
