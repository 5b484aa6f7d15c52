"""`dreambooth dataset`: versioned photo sets, captions of photos, and photos from videos.

`push` imports a task inside the command, to send an event to Prefect's server.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work, subject_of
from dreambooth_core.cli.services import services
from dreambooth_core.errors import ConfigError, DatasetRefused, StageFailed

if TYPE_CHECKING:
    from dreambooth_core.config import Config, Subject
    from dreambooth_core.data.captioning import CaptionedPhoto
    from dreambooth_core.data.findings import Finding
    from dreambooth_core.data.versions import PushResult
    from dreambooth_core.data.video_frames import VideoFrames
    from dreambooth_core.vision.language.spending import Counts

app = typer.Typer(
    no_args_is_help=True,
    help="Versioned photo sets (dataset://NAME@latest), captions of photos, photos from videos.",
)

Name = Annotated[str, typer.Argument(help="The dataset's name.")]
StoreConfig = Annotated[Path | None, typer.Option(help="Config with the store's location.")]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    name: Name,
    resolution: Annotated[
        int, typer.Option(min=32, max=2048, help="Side of the training images, in pixels.")
    ] = 512,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: StoreConfig = None,
) -> None:
    """Check photos and store them as a new version, unless they are unchanged.

    A new version sends an event to Prefect's server, if one is configured or `dreambooth up` runs in the
    work folder.
    """
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.storage.stores import open_store

    settings = _load(config, work)
    rules = settings.dataset if config else None
    with services(settings):
        store = open_store(settings.storage)
        pushed = versions.push(store, folder, name, resolution, rules)
        event_sent = pushed.new and _send_event(pushed)
    dataset_output.show_pushed(pushed, event_sent, as_json)


@app.command("list")
def list_datasets(
    as_json: AsJson = False, work: Work = Path(".dreambooth"), config: StoreConfig = None
) -> None:
    """List the datasets of the store and their newest versions."""
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.storage.stores import open_store

    settings = _load(config, work)
    with services(settings):
        store = open_store(settings.storage)
        found = [versions.pointer(store, name) for name in versions.names(store)]
    dataset_output.show_datasets(found, as_json)


@app.command()
def show(
    name: Name,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: StoreConfig = None,
) -> None:
    """Show all versions of a dataset, and the photos of the newest."""
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.storage.stores import open_store

    settings = _load(config, work)
    with services(settings):
        store = open_store(settings.storage)
        pointer = versions.pointer(store, name)
        newest = versions.read(store, name, pointer.latest.digest)
    dataset_output.show_dataset(pointer, newest, as_json)


@app.command()
def caption(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    class_noun: Annotated[
        str | None,
        typer.Option(
            "--class", help="Class noun: dog, backpack, robot; default: that of the card."
        ),
    ] = None,
    identifier: Annotated[
        str, typer.Option(help="Identifier that captions contain, as such or by {subject}.")
    ] = "sks",
    config: Annotated[
        Path | None, typer.Option(help="Config with the section vision, photo limits and store.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Subject card whose phrases captions leave out; default: the config's."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace existing captions.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check existing captions only; for leaks if vision.backend is set."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write captions of photos with the config's vision-language model, or check captions.

    Photos with a caption are skipped. Answers are cached in the store; a repeated run costs nothing.
    """
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.config import Dataset, load_config
    from dreambooth_core.data.captioning import check_captions

    if check and overwrite:
        raise ConfigError("--overwrite has no effect with --check: leave one of them out")
    settings = load_config(config) if config else None
    own = settings.subject.card if settings else None
    if class_noun is None and card is None:
        raise ConfigError("captions need the subject's class noun: give --class or --card")
    noun = {} if class_noun is None else {"class_noun": class_noun}
    subject = subject_of({"images": folder, "identifier": identifier, "card": card or own, **noun})
    if settings is not None and settings.vision.backend is not None:
        made, findings, counts = _captioned(settings, subject, overwrite, check)
        cost = None if settings.vision.price is None else counts.cost
        dataset_output.show_captions(made, findings, counts, cost, as_json)
        if counts.failures and not counts.answers + counts.cached:
            raise StageFailed(
                f"{settings.vision.model} answered none of {counts.failures} questions: see the findings, "
                "and check vision"
            )
    elif check:
        findings = check_captions(folder, subject, settings.dataset if settings else Dataset())
        dataset_output.show_captions([], findings, None, None, as_json)
    else:
        raise ConfigError(
            "captions are written by a vision-language model, and none is configured: set vision.backend, "
            "vision.model and, for a server, vision.url in a config, and give it with --config"
        )
    hard = sum(finding.level == "hard" for finding in findings)
    if hard:
        raise DatasetRefused(f"{folder} has {hard} hard findings: follow their remedies")


@app.command("from-video")
def from_video(
    clip: Annotated[
        Path, typer.Argument(metavar="CLIP", help="A video file: MP4, MOV, MKV, WebM.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for the photos.")],
    frames: Annotated[int, typer.Option(min=1, max=200, help="Number of photos.")] = 8,
    class_noun: Annotated[
        str, typer.Option("--class", help="Class noun, for the model: dog, backpack, robot.")
    ] = "subject",
    config: Annotated[
        Path | None, typer.Option(help="Config with the section vision, photo limits and store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose sharp and different frames of a video as photos of the subject.

    With vision.backend in the config, the model checks each one: same subject, unobstructed. Answers are
    cached in the store; a repeated run costs nothing.
    """
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.config import load_config
    from dreambooth_core.data.video_frames import frames_from_video

    subject_of({"images": out, "class_noun": class_noun})
    settings = load_config(config) if config else None
    if settings is None or settings.vision.backend is None:
        rules = settings.dataset if settings else None
        made, counts, cost = frames_from_video(clip, out, frames, rules=rules), None, None
    else:
        made, counts = _checked_frames(settings, clip, out, frames, class_noun)
        cost = None if settings.vision.price is None else counts.cost
    dataset_output.show_frames(made, frames, counts, cost, as_json)


def _checked_frames(
    config: "Config", clip: Path, out: Path, count: int, noun: str
) -> "tuple[VideoFrames, Counts]":
    """Frames that the config's model has checked, and the requests of this process."""
    from dreambooth_core.data.video_frames import frames_from_video
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.vision.language.model import VisionLanguageModel

    with services(config):
        cache = StoredAnswers(open_store(config.storage))
        with VisionLanguageModel(config.vision, cache) as model:
            made = frames_from_video(clip, out, count, noun=noun, rules=config.dataset, model=model)
            return made, model.account.counts


def _captioned(
    config: "Config", subject: "Subject", overwrite: bool, check: bool
) -> "tuple[list[CaptionedPhoto], list[Finding], Counts]":
    """New captions (none with `check`), findings, and the requests of this process."""
    from dreambooth_core.data.captioning import caption_folder, check_captions
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.vision.language.model import VisionLanguageModel

    folder, rules = subject.folder, config.dataset
    with services(config):
        cache = StoredAnswers(open_store(config.storage))
        with VisionLanguageModel(config.vision, cache) as model:
            if check:
                findings = check_captions(folder, subject, rules, model)
                return [], findings, model.account.counts
            made, findings = caption_folder(model, folder, subject, rules, overwrite)
            return made, findings, model.account.counts


def _load(config: Path | None, work: Path) -> "Config":
    from dreambooth_core.config import config_for_folder, load_config

    return config_for_folder(work) if config is None else load_config(config)


def _send_event(pushed: "PushResult") -> bool:
    """Whether Prefect's server accepted the event; the version is published in any case."""
    from tasks.events import dataset_published, emit

    return emit(dataset_published(pushed))
