"""Commands that draw and find images: `sample`, `search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work
from dreambooth_core.cli.signals import interruptible
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.batch_sampling.standalone import JobResult
    from dreambooth_core.config import Config

app = typer.Typer()

ORDERS = (".yaml", ".yml", ".csv")
Place = Annotated[Path | None, typer.Option(help="Config that says where MLflow is.")]


@app.command()
def sample(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ORDER",
            help="NAME (its candidate), NAME@alias or NAME/version; or an order in YAML or CSV.",
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="For a MODEL: template; {subject} is what was learned. Repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="For a MODEL: images per prompt; 4 when left out.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="For an ORDER: every N-th image from the K-th."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the images; samples, or samples/ORDER.")
    ] = None,
    work: Work = Path(".dreambooth"),
    config: Place = None,
    as_json: AsJson = False,
) -> None:
    """Draw images from a registered model, or a whole order of them; prints the paths.

    An order asks for prompts x seeds x models x settings, and becomes images, a gallery, a contact
    sheet and a manifest. A second run makes only what is missing; shards may run anywhere, at once.
    """
    is_order = Path(what).suffix in ORDERS
    _check_sample(what, is_order, prompt, seeds, shard)
    settings = _settings(config)
    place = settings.paths.work if settings else work
    if is_order:
        with interruptible():
            _order(settings, place, Path(what), shard or "1/1", out, as_json)
        return
    import json

    from dreambooth_core.registry import outputs

    wish = outputs.SampleRequest(tuple(prompt or ()), seeds or 4, out or Path("samples"))
    paths = outputs.sample_model(settings, place, what, wish)
    if as_json:
        print(json.dumps([str(path) for path in paths]))
        return
    for path in paths:
        print(path)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What is to be seen: on the beach.")],
    runs: Annotated[
        list[str] | None,
        typer.Option(
            help="Only images of NAME, NAME@alias, NAME/version, CONFIG.yaml, `base` or the name "
            "of an order; repeatable. All images of the store when left out."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 20,
    html: Annotated[
        Path | None, typer.Option(help="Write a gallery of them to this file.", dir_okay=False)
    ] = None,
    work: Work = Path(".dreambooth"),
    config: Annotated[
        Path | None,
        typer.Option(help="Config whose store is searched and whose evaluation.clip looks."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find generated images by words; prints the score, the place and the prompt of each."""
    import json

    from dreambooth_core.batch_sampling import search as searching
    from dreambooth_core.storage.stores import written_beside

    settings = _settings(config)
    place = settings.paths.work if settings else work
    question = searching.SearchQuery(text=text, runs=tuple(runs or ()), top=top)
    hits, home = searching.search(settings, place, question)
    if html is not None:
        with written_beside(html) as temporary:
            temporary.write_text(searching.page(home, question, hits), encoding="utf-8")
    if as_json:
        print(json.dumps([hit.model_dump(mode="json") for hit in hits], indent=2))
        return
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.uri}  {hit.prompt} ({hit.model}, seed {hit.seed})")


def _check_sample(
    what: str, is_order: bool, prompt: list[str] | None, seeds: int | None, shard: str | None
) -> None:
    if is_order and (prompt or seeds):
        raise ConfigError(
            f"{what} is an order, which says its prompts and seeds itself: leave them out"
        )
    if not is_order and not prompt:
        raise ConfigError(
            f"{what} is taken for a registered model: give --prompt, or name an order in "
            f"{', '.join(ORDERS)}"
        )
    if not is_order and shard:
        raise ConfigError("--shard is for orders: write the prompts into a YAML or CSV file")


def _order(
    settings: "Config | None", work: Path, path: Path, shard: str, out: Path | None, as_json: bool
) -> None:
    from dreambooth_core.batch_sampling import standalone
    from dreambooth_core.batch_sampling.job import read_job
    from dreambooth_core.batch_sampling.shards import shard_of

    order, part = read_job(path), shard_of(shard)
    folder = out or Path("samples") / order.name
    done = standalone.run_job(settings, work, order, part, folder)
    if as_json:
        print(done.model_dump_json(indent=2))
    else:
        _tell(done, folder)


def _tell(done: "JobResult", folder: Path) -> None:
    from dreambooth_core.console import say

    tally, published = done.tally, done.published
    pace = f", {tally.images_per_second:.2f} images/s" if tally.made else ""
    say(f"{tally.made} images drawn, {tally.found} found in {tally.seconds:.1f} s{pace}")
    if published is None:
        say(f"{tally.missing} images are left to other shards; the last one makes the gallery")
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
