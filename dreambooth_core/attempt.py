"""One attempt at training: `python -m dreambooth_core.attempt SPEC.json`, a process per rank.

Asked to stop (SIGTERM), it finishes the step, saves, and says so in the result file.
"""

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dreambooth_core.errors import DreamBoothError, Preempted
from dreambooth_core.fit import Outcome, Spec, Standing, read_record, write_record

if TYPE_CHECKING:
    from PIL import Image as Pillow

    from dreambooth_core.batches import Steps
    from dreambooth_core.families import Family, Parts
    from dreambooth_core.keeper import Keeper
    from dreambooth_core.latents import LatentDistribution
    from dreambooth_core.records import ImageSet
    from dreambooth_core.storage import Store
    from dreambooth_core.training import DreamBooth

POINTS = 200
"""Points of the loss curves that are kept, about."""


class Stop:
    """A flag that SIGTERM and SIGINT raise; nothing else is done inside the handler."""

    def __init__(self) -> None:
        self.asked = False
        self.install()

    def __call__(self) -> bool:
        return self.asked

    def install(self) -> None:
        """Take the signals, from Lightning too, whose own handler ends the process midway."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise_flag)

    def _raise_flag(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def main(arguments: list[str]) -> int:
    """Train what the spec says; 0 done, 75 preempted, 1 failed. Rank 0 writes the result file."""
    stop = Stop()
    spec = read_record(Path(arguments[0]), Spec) if len(arguments) == 1 else None
    if spec is None:
        print("usage: python -m dreambooth_core.attempt SPEC.json", file=sys.stderr)
        return 2
    try:
        outcome = _attempt(spec, stop)
    except DreamBoothError as error:
        outcome = _failed(spec, str(error))
    except Exception as error:
        traceback.print_exc()
        outcome = _failed(spec, _sentence(spec, error))
    if _rank() == 0:
        write_record(spec.folder / "result.json", outcome)
    return {"done": 0, "preempted": Preempted.exit_code, "failed": 1}[outcome.status]


def _attempt(spec: Spec, stop: Stop) -> Outcome:
    import torch

    from dreambooth_core import adapters, bases, checkpoints, keeper, training
    from dreambooth_core.families import load_family
    from dreambooth_core.storage import open_store

    config, total, first = spec.config, spec.config.train.steps, _rank() == 0
    store = open_store(config.storage)
    family, base = load_family(config.model.family), bases.base_folder(config.model)
    parts = family.load(base, {})
    data, prompts = _data(spec, store, family, parts)
    tokens = family.tokenize(parts, prompts)
    parts = parts.without(family.autoencoder)
    parts[family.denoiser].to(memory_format=torch.channels_last)
    trained = adapters.prepare(family, parts, config.train, config.lora, config.seed)
    module = training.DreamBooth(family, parts, trained, config.train, config.prior.weight)
    module.set_prompts(tokens)
    place = f"{spec.prefix}/checkpoints"
    behind = checkpoints.Background(
        lambda path: checkpoints.upload(store, place, path, config.train.keep_checkpoints)
    )
    keeping = keeper.Keeper(
        folder=spec.folder / "checkpoints",
        resume=spec.resume,
        stop=stop,
        say=lambda step, figures: _say(spec, step, figures),
        saved=behind.submit,
    )
    _run(module, data, keeping, spec, stop)
    if keeping.stopped_at is not None:
        outcome = Outcome(attempt=spec.attempt, status="preempted", step=keeping.stopped_at)
    else:
        losses = thinned(module.losses.tolist(), with_classes=spec.classes is not None)
        outcome = Outcome(attempt=spec.attempt, status="done", step=total, losses=losses)
    if first and outcome.status == "done":
        adapters.export(family, parts, config.train, base, spec.folder / "weights")
    elif first:
        # said before the upload ends, for which whoever stops us may not wait
        write_record(spec.folder / "result.json", outcome)
    behind.close()
    return outcome


def _run(module: "DreamBooth", data: "Steps", keeping: "Keeper", spec: Spec, stop: Stop) -> None:
    """Take the steps that are left; signals wait until our handler stands over Lightning's."""
    from dreambooth_core import training
    from dreambooth_core.keeper import restore

    if spec.resume is not None and spec.resume_step >= spec.config.train.steps:
        restore(spec.resume, module, None)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    def ready() -> None:
        stop.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})

    keeping.ready = ready
    try:
        training.fit(module, data, keeping, spec.resume_step)
    finally:
        ready()


def _data(
    spec: Spec, store: "Store", family: "Family", parts: "Parts"
) -> tuple["Steps", tuple[str, ...]]:
    """All images as latents, and the table of the prompts that they point to."""
    import torch

    from dreambooth_core import batches, latents

    config = spec.config
    if torch.cuda.is_available():
        parts[family.autoencoder].to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")

    def encode(images: "ImageSet") -> "LatentDistribution":
        files = _decoded(store, images)
        return latents.encode(family, parts, files, config.model.resolution, config.train.flip)

    subject = config.subject
    captions = _captions(spec.instance, subject.fill(subject.instance_prompt))
    of_class: tuple[str, ...] = ()
    if spec.classes is not None:
        of_class = _captions(spec.classes, subject.fill(subject.class_prompt))
    table = tuple(dict.fromkeys(captions + of_class))
    instance = batches.Images(encode(spec.instance), tuple(map(table.index, captions)))
    classes = None
    if spec.classes is not None:
        classes = batches.Images(encode(spec.classes), tuple(map(table.index, of_class)))
    plan = batches.Plan(
        run_seed=config.seed,
        train=config.train,
        timesteps=family.objective(parts).timesteps,
        rank=_rank(),
        ranks=config.train.processes,
    )
    return batches.Steps(plan, instance, classes), table


def _captions(images: "ImageSet", usual: str) -> tuple[str, ...]:
    return tuple(image.prompt or usual for image in images.images)


def _decoded(store: "Store", images: "ImageSet") -> Iterator["Pillow.Image"]:
    from PIL import Image as Pillow

    from dreambooth_core.blobs import get_blob

    for image in images.images:
        yield Pillow.open(io.BytesIO(get_blob(store, image.blob)))


def thinned(
    losses: list[list[float]], *, with_classes: bool
) -> tuple[tuple[int, float, float | None], ...]:
    """(last step, instance loss, class loss) of about `POINTS` windows, each averaged."""
    width = max(1, len(losses) // POINTS)
    points = []
    for start in range(0, len(losses), width):
        window = losses[start : start + width]
        instance, classes = (sum(column) / len(window) for column in zip(*window, strict=True))
        points.append((start + len(window), instance, classes if with_classes else None))
    return tuple(points)


def _say(spec: Spec, step: int, figures: Mapping[str, float]) -> None:
    parts = [f"loss {figures['instance']:.4f}"]
    if spec.classes is not None:
        parts.append(f"class {figures['class']:.4f}")
    parts.append(f"{figures['steps_per_second']:.1f} steps/s")
    standing = Standing(step=step, total=spec.config.train.steps, label=", ".join(parts))
    write_record(spec.folder / "progress.json", standing)


def _failed(spec: Spec, message: str) -> Outcome:
    return Outcome(attempt=spec.attempt, status="failed", message=message)


def _sentence(spec: Spec, error: Exception) -> str:
    log = spec.folder / "train.log"
    if type(error).__name__ == "OutOfMemoryError":
        return f"the GPU's memory is full; lower train.batch_size or use train.method: lora ({log})"
    return f"training broke with {type(error).__name__}: {' '.join(str(error).split())} ({log})"


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
