"""`dreambooth dataset`: versioned photo sets.

`push` imports a task inside the command, to send an event to Prefect's server.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson, Work

if TYPE_CHECKING:
    from dreambooth_core.config import Config
    from dreambooth_core.data.versions import PushResult

app = typer.Typer(no_args_is_help=True, help="Versioned photo sets: dataset://NAME@latest.")

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
    with _services(settings):
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
    with _services(settings):
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
    with _services(settings):
        store = open_store(settings.storage)
        pointer = versions.pointer(store, name)
        newest = versions.read(store, name, pointer.latest.digest)
    dataset_output.show_dataset(pointer, newest, as_json)


@contextmanager
def _services(config: "Config") -> Iterator[None]:
    """Servers of the config; with a local store those of a running `up` in the work folder."""
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.servers.stack.supervisor import stack_environment

    local = config.storage.endpoint == "local"
    stack = stack_environment(config.paths.work / "up") if local else nullcontext()
    with stack, local_services(config):
        yield


def _load(config: Path | None, work: Path) -> "Config":
    from dreambooth_core.config import config_for_folder, load_config

    return config_for_folder(work) if config is None else load_config(config)


def _send_event(pushed: "PushResult") -> bool:
    """Whether Prefect's server accepted the event; the version is published in any case."""
    from tasks.events import dataset_published, emit

    return emit(dataset_published(pushed))
