"""The images: locked libraries, Dockerfile, and secrets from files."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

LOCKS = ("cpu", "cuda", "services")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    """Version per library, by normalised name."""
    found = PIN.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[._-]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("name", LOCKS)
class TestLock:
    def test_every_library_has_a_hash(self, infra: Path, name: str) -> None:
        text = (infra / f"image/requirements/{name}.txt").read_text()
        entries = re.split(r"\n(?=\S)", text.strip())
        libraries = [entry for entry in entries if not entry.startswith("--")]
        assert len(libraries) > 100
        for entry in libraries:
            assert PIN.match(entry), entry[:80]
            assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry[:80]

    def test_versions_are_those_of_the_constraints(self, infra: Path, name: str) -> None:
        locked = pins(infra / f"image/requirements/{name}.txt")
        tested = pins(infra.parent / "constraints.txt")
        shared = locked.keys() & tested.keys()
        assert len(shared) > 100
        for library in shared:
            assert locked[library].split("+")[0] == tested[library], library

    def test_every_requirement_is_locked(self, infra: Path, name: str) -> None:
        wanted = (infra / f"image/requirements/{name}.in").read_text().splitlines()
        script = (infra / "image/lock.sh").read_text()
        [arguments] = re.findall(rf"^lock {name}\b(.*)", script, re.MULTILINE)
        if name != "services":
            assert "pyproject.toml" in arguments
            project = tomllib.loads((infra.parent / "pyproject.toml").read_text())["project"]
            extras = {"heic", "trackers", *(["gpu"] if name == "cuda" else [])}
            assert {*re.findall(r"--extra (\w+)", arguments)} == extras
            wanted += project["dependencies"]
            wanted += [one for extra in extras for one in project["optional-dependencies"][extra]]
        names = re.findall(r"^([A-Za-z][\w.-]*)", "\n".join(wanted), re.MULTILINE)
        assert {re.sub(r"[._-]+", "-", each).lower() for each in names} <= pins(
            infra / f"image/requirements/{name}.txt"
        ).keys()


def test_cpu_image_has_no_cuda_library(infra: Path) -> None:
    cpu = pins(infra / "image/requirements/cpu.txt")
    assert cpu["torch"].endswith("+cpu")
    assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))]
    assert "torch" not in pins(infra / "image/requirements/services.txt")


def test_dockerfile(tool: Callable[..., str], infra: Path) -> None:
    tool("hadolint", infra / "image/Dockerfile")


def test_images_run_unprivileged_and_install_only_locked_wheels(infra: Path) -> None:
    text = (infra / "image/Dockerfile").read_text()
    stages = {
        stage.split(" AS ")[1].split()[0]: stage
        for stage in re.split(r"^FROM ", text, flags=re.M)[1:]
    }
    for final in ("worker", "services"):
        assert "\nUSER 10001:10001\n" in stages[final]
    for install in re.findall(r"pip install (.+)", text):
        assert "--require-hashes --only-binary :all:" in install or "--no-deps" in install
    assert not re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN)", text, re.MULTILINE)


def test_build_context_is_an_allow_list_with_all_copied_files(infra: Path) -> None:
    ignored = (infra / "image/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = re.findall(
        r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", (infra / "image/Dockerfile").read_text(), re.M
    )
    sources = {source for line in copied for source in line.split()}
    named = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert sources
    for source in sources:
        assert any(source == name or source.startswith(f"{name}/") for name in named), source


class TestSecretsFromFiles:
    def run(self, infra: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        script = infra / "image/with-secrets.sh"
        command = ["sh", script, "sh", "-c", 'printf "%s|" "$A_KEY"; env | grep -c __FILE']
        env = {"PATH": os.environ["PATH"], **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def test_file_becomes_a_variable(self, infra: Path, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("se cr$et'\"\n")
        done = self.run(infra, A_KEY__FILE=str(tmp_path / "key"))
        assert done.stdout == "se cr$et'\"|0\n"

    @pytest.mark.parametrize("content", [None, "", "\n"])
    def test_missing_or_empty_secret_prevents_the_start(
        self, infra: Path, tmp_path: Path, content: str | None
    ) -> None:
        if content is not None:
            (tmp_path / "key").write_text(content)
        done = self.run(infra, A_KEY__FILE=str(tmp_path / "key"))
        assert (done.returncode, done.stdout) == (78, "")
        assert "A_KEY__FILE" in done.stderr


def test_services_image_has_all_files_of_the_exporter(infra: Path, tmp_path: Path) -> None:
    text = (infra / "image/Dockerfile").read_text().split("AS services\n")[1]
    copied = re.findall(r"^COPY (dreambooth_core/.*) (dreambooth_core/\S*)$", text, re.MULTILINE)
    for names, folder in copied:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names.split():
            (tmp_path / folder / Path(name).name).write_bytes((infra.parent / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_core.servers.metrics_exporter", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {"prometheus-client"} <= pins(infra / "image/requirements/services.txt").keys()
