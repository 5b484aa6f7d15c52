"""What the tests of infra/ share: its files, the tools that know their formats, a real S3 server."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    """Runs a program of this environment; its output, which is shown when it fails."""

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
    """What kustomize makes of each overlay, and of the Ray cluster."""
    folders = {"production": "overlays/production", "trial": "overlays/trial", "ray": "ray"}
    return {
        name: list(yaml.safe_load_all(tool("kubectl", "kustomize", infra / "kubernetes" / folder)))
        for name, folder in folders.items()
    }


@pytest.fixture(scope="session")
def clients(infra: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A boto3 client per role, of a SeaweedFS with identities as Compose gives it."""
    from boto3.session import Session
    from botocore.config import Config

    from dreambooth_core.servers import Server, claimed, running

    folder = tmp_path_factory.mktemp("identities")
    secrets = _secrets(infra, folder)
    identities = [infra / "storage/identities.sh", infra / "storage/policies", secrets]
    made = subprocess.run(["sh", *identities], check=True, capture_output=True)
    (folder / "s3.json").write_bytes(made.stdout)
    (folder / "data").mkdir()

    def client(role: str, port: int) -> Any:
        pair = dict(
            line.split(" = ") for line in (secrets / f"s3_{role}").read_text().splitlines()[1:]
        )
        quick = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3})
        url = f"http://127.0.0.1:{port}"
        return Session(**pair, region_name="us-east-1").client("s3", endpoint_url=url, config=quick)

    def answers(port: int) -> bool:
        try:
            return bool(client("admin", port).list_buckets())
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
    roles = ["admin", *(path.stem for path in (infra / "storage/policies").glob("*.json"))]
    with claimed(folder) as lock, running(server, lock) as port:
        yield {role: client(role, port) for role in roles}


def _secrets(infra: Path, folder: Path) -> Path:
    """The secrets that a first `make-secrets.sh` makes, in a folder of their own."""
    script = folder / "make-secrets.sh"
    script.write_bytes((infra / "compose/make-secrets.sh").read_bytes())
    subprocess.run(["sh", script], check=True)
    return folder / "secrets"
