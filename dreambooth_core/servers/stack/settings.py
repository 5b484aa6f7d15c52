"""Where a stack's data lies and at which ports its servers listen; decided once, at the first start."""

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dreambooth_core.errors import ConfigError
from dreambooth_core.servers import local
from dreambooth_core.servers.process import free_port, is_free
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import written_beside

FOLDER = Path(".dreambooth/up")
FIRST_PORT = 14_200
PORTS = 16
"""Adjacent ports of a stack: one each for Prefect, MLflow and PostgreSQL, five for the S3 server, which
listens at these + 10000 as well, the rest for workers."""
BUCKET = "dreambooth"
LOGIN = "login"
"""File with the login to Prefect and MLflow, `user:password`, for this user's eyes only."""


class StackSettings(Record):
    """What stays as it was at the first start, so that links and data stay where they are."""

    port: int
    """The first of sixteen adjacent ports."""
    postgres: bool = False


@dataclass(frozen=True)
class StackLayout:
    """A stack's folder and ports, and the folder whose `prefect.yaml` it offers."""

    folder: Path
    """Absolute."""
    settings: StackSettings
    project: Path
    """Absolute."""

    @property
    def login(self) -> str:
        """`user:password` of Prefect and MLflow; made when its file is missing.

        Raises `ConfigError` for a file that holds something else: MLflow would ask for no login then.
        """
        path = self.folder / LOGIN
        found = local.secret(path, local.new_login)
        if not all(found.partition(":")):
            raise ConfigError(
                f"{path} must hold user:password: delete it, a new one is made by `up`"
            )
        return found

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.settings.port + 1}"

    @property
    def postgres_port(self) -> int:
        return self.settings.port + 2

    @property
    def s3(self) -> str:
        return f"http://127.0.0.1:{self.s3_ports[0]}"

    @property
    def s3_ports(self) -> tuple[int, ...]:
        return tuple(range(self.settings.port + 3, self.settings.port + 8))

    @property
    def worker_port(self) -> int:
        """Of the first work pool's worker; further ones follow."""
        return self.settings.port + 8


def read_settings(folder: Path) -> StackSettings | None:
    """What was settled at the first start; None before it. Raises `ConfigError` for a broken file."""
    path = folder / "settings.json"
    try:
        return StackSettings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path} cannot be read: delete it, and give --port and --postgres as before"
        ) from error


def choose_settings(folder: Path, port: int | None, postgres: bool) -> StackSettings:
    """The settings of the first start, or those to begin with; nothing is written (see `keep`).

    Raises `ConfigError` when others were asked for than those the data lies under.
    """
    known = read_settings(folder)
    if known is None:
        return StackSettings(port=port or _ports(), postgres=postgres)
    if port not in (None, known.port):
        raise ConfigError(
            f"{folder} listens from port {known.port} on, and links point there: leave out --port, "
            "or choose another --folder"
        )
    if postgres and not known.postgres:
        raise ConfigError(
            f"the databases in {folder} are sqlite files: leave out --postgres, "
            "or choose another --folder"
        )
    return known


def keep(place: StackLayout) -> None:
    """Write the settings down, for all later starts."""
    with written_beside(place.folder / "settings.json") as unfinished:
        unfinished.write_text(place.settings.model_dump_json())


def open_folder(folder: Path) -> Path:
    """The folder, made for this user alone if need be; raises `ConfigError` when it cannot be."""
    path = folder.resolve()
    if path.parent.name == local.DEFAULT_WORK:
        local.keep_private(path.parent)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be a folder for the servers' data ({error.strerror}): "
            "choose another --folder"
        ) from error
    return path


def ports_in_use(settings: StackSettings) -> tuple[int, ...]:
    """The ports that a stack with one worker listens at, all on loopback."""
    block = range(settings.port, settings.port + 9)
    used = [port for port in block if settings.postgres or port != settings.port + 2]
    return (*used, *(port + 10_000 for port in range(settings.port + 3, settings.port + 8)))


def _ports() -> int:
    block = range(FIRST_PORT, FIRST_PORT + PORTS)
    usual = all(is_free(port) and is_free(port + 10_000) for port in block)
    return FIRST_PORT if usual else free_port(PORTS - 1)
