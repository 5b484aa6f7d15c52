"""`dreambooth dataset`: photo sets in versions, for runs that learn from the newest one.

`push` imports a task, inside the command: it is Prefect that is told.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.data.versions import PushResult

app = typer.Typer(no_args_is_help=True, help="Photo sets in versions: dataset://NAME@latest.")

Name = Annotated[str, typer.Argument(help="The dataset's name.")]
Place = Annotated[Path | None, typer.Option(help="Config that says where the store is.")]


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of photos.")],
    name: Name,
    resolution: Annotated[
        int, typer.Option(min=32, max=2048, help="Side of the training images, in pixels.")
    ] = 512,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """Check photos and store them as the newest version; the same photos are no new version.

    A new version is told to Prefect's server, if one is configured.
    """
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.storage.stores import open_store

    settings = _place(config, work)
    rules = settings.dataset if config else None
    with local_services(settings):
        store = open_store(settings.storage)
        pushed = versions.push(store, folder, name, resolution, rules)
    told = pushed.new and _tell(pushed)
    dataset_output.show_pushed(pushed, told, as_json)


@app.command("list")
def list_datasets(
    as_json: AsJson = False, work: Work = Path(".dreambooth"), config: Place = None
) -> None:
    """The datasets of the store, and the newest version of each."""
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.storage.stores import open_store

    settings = _place(config, work)
    with local_services(settings):
        store = open_store(settings.storage)
        found = [versions.pointer(store, name) for name in versions.names(store)]
    dataset_output.show_datasets(found, as_json)


@app.command()
def show(
    name: Name,
    as_json: AsJson = False,
    work: Work = Path(".dreambooth"),
    config: Place = None,
) -> None:
    """All versions of a dataset, and the photos of the newest."""
    from dreambooth_core.cli import dataset_output
    from dreambooth_core.data import versions
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.storage.stores import open_store

    settings = _place(config, work)
    with local_services(settings):
        store = open_store(settings.storage)
        pointer = versions.pointer(store, name)
        newest = versions.read(store, name, pointer.latest.digest)
    dataset_output.show_dataset(pointer, newest, as_json)


def _place(config: Path | None, work: Path) -> "Config":
    from dreambooth_core.config import config_for_folder, load_config

    return config_for_folder(work) if config is None else load_config(config)


def _tell(pushed: "PushResult") -> bool:
    """Whether Prefect's server took the news; a version is published whether or not it did."""
    from tasks.events import dataset_published, emit

    return emit(dataset_published(pushed))
