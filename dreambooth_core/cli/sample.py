"""Commands `sample` and `search`: draw images, and find generated images and training photos."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work
from dreambooth_core.cli.signals import interruptible
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.batch_sampling.search import PhotoHit
    from dreambooth_core.batch_sampling.standalone import JobResult
    from dreambooth_core.config import Config

app = typer.Typer()

JOB_SUFFIXES = (".yaml", ".yml", ".csv")
MLflowConfig = Annotated[Path | None, typer.Option(help="Config that names the MLflow server.")]


@app.command()
def sample(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|JOB",
            help="NAME (its candidate), NAME@alias or NAME/version; or a sampling job in YAML or CSV.",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="For a MODEL: prompt template; {subject} is identifier and class noun. Repeatable."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="For a MODEL: images per prompt; 4 when left out.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="For a JOB: draw every N-th image from the K-th."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the images; samples, or samples/JOB.")
    ] = None,
    work: Work = Path(".dreambooth"),
    config: MLflowConfig = None,
    as_json: AsJson = False,
) -> None:
    """Draw images with a registered model, or all images of a sampling job; prints the paths.

    A job lists prompts x seeds x models x settings, and gives images, a gallery, a contact sheet and
    a manifest. A second run draws only missing images; shards may run on several machines at once.
    """
    is_job = Path(what).suffix in JOB_SUFFIXES
    _check_sample(what, is_job, prompt, seeds, shard)
    settings = _settings(config)
    folder = settings.paths.work if settings else work
    if is_job:
        with interruptible():
            _run_job(settings, folder, Path(what), shard or "1/1", out, as_json)
        return
    from dreambooth_core.registry import outputs

    request = outputs.SampleRequest(tuple(prompt or ()), seeds or 4, out or Path("samples"))
    paths = outputs.sample_model(settings, folder, what, request)
    if as_json:
        print(json.dumps([str(path) for path in paths]))
        return
    for path in paths:
        print(path)


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(help="What the image shows: on the beach.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Find images like this file instead.", dir_okay=False)
    ] = None,
    nearest_photo: Annotated[
        str | None,
        typer.Option(
            metavar="SAMPLE",
            help="Find the training photos nearest to a generated image: a file, a URI or a digest.",
        ),
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            help="Only images of NAME, NAME@alias, NAME/version, CONFIG.yaml, `base` or the name "
            "of a sampling job; repeatable. All images of the store when left out."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most images to find.")] = 20,
    html: Annotated[
        Path | None, typer.Option(help="Write a gallery of them to this file.", dir_okay=False)
    ] = None,
    work: Work = Path(".dreambooth"),
    config: Annotated[
        Path | None,
        typer.Option(help="Config whose store is searched, with its evaluation.clip."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find generated images by text or by an image, or training photos by a generated image.

    Prints score, URI and prompt of each.
    """
    from dreambooth_core.batch_sampling import search as searching
    from dreambooth_core.registry.resolve import find_runs
    from dreambooth_core.storage.stores import written_beside

    _check_search(text, image, nearest_photo, html)
    settings = _settings(config)
    models = find_runs(runs or (), settings, settings.paths.work if settings else work)
    if nearest_photo is not None:
        photos, _ = searching.nearest_photos(settings, models, nearest_photo, top)
        _print_photos(photos, as_json)
        return
    query = searching.SearchQuery(text=text or "", image=image, top=top)
    hits, used = searching.search(settings, models, query)
    if html is not None:
        with written_beside(html) as temporary:
            temporary.write_text(searching.page(used, query, hits), encoding="utf-8")
    if as_json:
        print(json.dumps([hit.model_dump(mode="json") for hit in hits], indent=2))
        return
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.uri}  {hit.prompt} ({hit.model}, seed {hit.seed})")


def _check_search(
    text: str | None, image: Path | None, nearest_photo: str | None, html: Path | None
) -> None:
    if sum(given is not None for given in (text, image, nearest_photo)) != 1:
        raise ConfigError("search needs one of a text, --image FILE and --nearest-photo SAMPLE")
    if nearest_photo is not None and html is not None:
        raise ConfigError("--html has no effect with --nearest-photo: leave one of them out")


def _print_photos(photos: "Sequence[PhotoHit]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([photo.model_dump(mode="json") for photo in photos], indent=2))
        return
    for photo in photos:
        print(f"{photo.score:.3f}  {photo.uri}  {photo.name} ({photo.bits} of 64 bits differ)")


def _check_sample(
    what: str, is_job: bool, prompt: list[str] | None, seeds: int | None, shard: str | None
) -> None:
    if is_job and (prompt or seeds):
        raise ConfigError(
            f"{what} is a sampling job with its own prompts and seeds: leave out --prompt and --seeds"
        )
    if not is_job and not prompt:
        raise ConfigError(
            f"{what} is taken for a registered model: give --prompt, or name a sampling job in "
            f"{', '.join(JOB_SUFFIXES)}"
        )
    if not is_job and shard:
        raise ConfigError("--shard is for sampling jobs: write the prompts into a YAML or CSV file")


def _run_job(
    settings: "Config | None", work: Path, path: Path, shard: str, out: Path | None, as_json: bool
) -> None:
    from dreambooth_core.batch_sampling.job import read_job
    from dreambooth_core.batch_sampling.shards import shard_of
    from dreambooth_core.batch_sampling.standalone import run_job
    from dreambooth_core.registry.resolve import find_models

    job, part = read_job(path), shard_of(shard)
    folder = out or Path("samples") / job.name
    result = run_job(job, find_models(job.models, settings, work), part, folder)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        _print_result(result, folder)


def _print_result(result: "JobResult", folder: Path) -> None:
    from dreambooth_core.console import say

    shard, published = result.shard, result.published
    rate = f", {shard.images_per_second:.2f} images/s" if shard.made else ""
    say(f"{shard.made} images drawn, {shard.found} found in {shard.seconds:.1f} s{rate}")
    if published is None:
        say(f"{shard.missing} images are left to other shards; the last one makes the gallery")
        return
    if published.near_duplicates:
        say(f"{published.near_duplicates} of {published.count} images nearly repeat another one")
    if published.unsafe:
        say(f"{published.unsafe} of {published.count} images are flagged as unsafe")
    for name in published.files:
        print(folder / name)


def _settings(config: Path | None) -> "Config | None":
    from dreambooth_core.config import load_config

    return load_config(config) if config else None
