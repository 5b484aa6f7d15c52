"""Folder, ports and login of a stack, chosen at its first start."""

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
"""Adjacent ports of a stack: Prefect, MLflow, PostgreSQL, five for the S3 server, which also listens at
these + 10000, the rest for workers."""
BUCKET = "dreambooth"
LOGIN = "login"
"""File with the login to Prefect and MLflow, `user:password`, mode 0600."""


class StackSettings(Record):
    """Settings of the first start, kept so that links and data stay valid."""

    port: int
    """The first of `PORTS` adjacent ports."""
    postgres: bool = False


@dataclass(frozen=True)
class StackLayout:
    """Folder and ports of a stack, and the project whose `prefect.yaml` it deploys."""

    folder: Path
    """Absolute."""
    settings: StackSettings
    project: Path
    """Absolute."""

    @property
    def login(self) -> str:
        """`user:password` of Prefect and MLflow, created if its file is missing.

        Raises `ConfigError` for a file with other content, with which MLflow would require no login.
        """
        path = self.folder / LOGIN
        found = local.secret(path, local.new_login)
        if not all(found.partition(":")):
            raise ConfigError(
                f"{path} must contain user:password: delete it, `up` creates a new one"
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
        """Port of the first worker; further ones follow."""
        return self.settings.port + 8


def read_settings(folder: Path) -> StackSettings | None:
    """Settings of the first start; None before it. Raises `ConfigError` for a damaged file."""
    path = folder / "settings.json"
    try:
        return StackSettings.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path} cannot be read: delete it, and repeat the first --port and --postgres"
        ) from error


def choose_settings(folder: Path, port: int | None, postgres: bool) -> StackSettings:
    """The settings of the first start, or new ones; nothing is written (see `write_settings`).

    Raises `ConfigError` for options that contradict the existing settings.
    """
    known = read_settings(folder)
    if known is None:
        return StackSettings(port=port or _ports(), postgres=postgres)
    if port not in (None, known.port):
        raise ConfigError(
            f"{folder} uses the ports from {known.port}, and links contain them: omit --port, "
            "or choose another --folder"
        )
    if postgres and not known.postgres:
        raise ConfigError(
            f"the databases in {folder} are sqlite files: omit --postgres, "
            "or choose another --folder"
        )
    return known


def write_settings(layout: StackLayout) -> None:
    """Store the settings for later starts."""
    with written_beside(layout.folder / "settings.json") as unfinished:
        unfinished.write_text(layout.settings.model_dump_json())


def open_folder(folder: Path) -> Path:
    """The folder, created with mode 0700; raises `ConfigError` if that fails."""
    path = folder.resolve()
    if path.parent.name == local.DEFAULT_WORK:
        local.keep_private(path.parent)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be used for the servers' data ({error.strerror}): "
            "choose another --folder"
        ) from error
    return path


def ports_in_use(settings: StackSettings) -> tuple[int, ...]:
    """The ports of a stack with one worker."""
    block = range(settings.port, settings.port + 9)
    used = [port for port in block if settings.postgres or port != settings.port + 2]
    return (*used, *(port + 10_000 for port in range(settings.port + 3, settings.port + 8)))


def _ports() -> int:
    block = range(FIRST_PORT, FIRST_PORT + PORTS)
    default = all(is_free(port) and is_free(port + 10_000) for port in block)
    return FIRST_PORT if default else free_port(PORTS - 1)
