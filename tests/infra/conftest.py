"""Fixtures of the tests of infra/: its files, tools for their formats, a real S3 server with roles."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def infra() -> Path:
    return ROOT / "infra"


@pytest.fixture(scope="session")
def documents() -> Callable[[Path], list[dict[str, Any]]]:
    """The YAML documents of a file."""
    return lambda path: list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def tool() -> Callable[..., str]:
    """Function that runs a program of this environment and returns its output; fails if the program does."""

    def run(name: str, *arguments: str | Path) -> str:
        program = Path(sys.executable).with_name(name)
        done = subprocess.run(
            [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def built(tool: Callable[..., str], infra: Path) -> dict[str, list[dict[str, Any]]]:
    """Manifests built by kustomize, per overlay, and of the Ray cluster."""
    folders = {"production": "overlays/production", "trial": "overlays/trial", "ray": "ray"}
    return {
        name: list(yaml.safe_load_all(tool("kubectl", "kustomize", infra / "kubernetes" / folder)))
        for name, folder in folders.items()
    }


class RoleServer(NamedTuple):
    """A SeaweedFS with the identities of Compose."""

    url: str
    keys: dict[str, dict[str, str]]
    """Role -> environment variables with its keys, as read by boto."""

    def client(self, role: str) -> Any:
        from boto3.session import Session
        from botocore.config import Config

        names = ("aws_access_key_id", "aws_secret_access_key")
        pair = {name: self.keys[role][name.upper()] for name in names}
        quick = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3})
        session = Session(**pair, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url, config=quick)


@pytest.fixture(scope="session")
def clients(s3_with_roles: RoleServer) -> dict[str, Any]:
    """A boto3 client per role."""
    return {role: s3_with_roles.client(role) for role in s3_with_roles.keys}


@pytest.fixture(scope="session")
def s3_with_roles(infra: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoleServer]:
    from dreambooth_core.servers.process import Server, claimed, running

    folder = tmp_path_factory.mktemp("identities")
    secrets = _secrets(infra, folder)
    identities = [infra / "storage/identities.sh", infra / "storage/policies", secrets]
    made = subprocess.run(["sh", *identities], check=True, capture_output=True)
    (folder / "s3.json").write_bytes(made.stdout)
    (folder / "data").mkdir()

    roles = ["admin", *(path.stem for path in (infra / "storage/policies").glob("*.json"))]
    keys = {role: _pair(secrets / f"s3_{role}") for role in roles}

    def answers(port: int) -> bool:
        try:
            admin = RoleServer(f"http://127.0.0.1:{port}", keys).client("admin")
            return bool(admin.list_buckets())
        except Exception:
            return False

    def command(port: int) -> list[str]:
        names = ("s3", "master", "volume", "filer", "admin")
        return [
            *(str(Path(sys.executable).with_name("weed")), f"-logdir={folder}", "mini"),
            *(f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-{name}.port={port + index}" for index, name in enumerate(names)),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *("-master.telemetry=false", f"-s3.config={folder / 's3.json'}"),
            *(f"-s3.localSocket={folder / 's'}", "-bucket=dreambooth,mlflow"),
        ]

    env = {"HOME": str(folder), "GOMEMLIMIT": "300MiB"}
    server = Server("SeaweedFS", command, answers, env, folder, 60.0, neighbours=4)
    with claimed(folder) as lock, running(server, lock) as port:
        yield RoleServer(f"http://127.0.0.1:{port}", keys)


def _pair(file: Path) -> dict[str, str]:
    pairs = (line.split(" = ") for line in file.read_text().splitlines()[1:])
    return {"AWS_DEFAULT_REGION": "us-east-1", **{name.upper(): value for name, value in pairs}}


def _secrets(infra: Path, folder: Path) -> Path:
    """Folder with the secrets created by `make-secrets.sh`."""
    script = folder / "make-secrets.sh"
    script.write_bytes((infra / "compose/make-secrets.sh").read_bytes())
    subprocess.run(["sh", script], check=True)
    return folder / "secrets"
