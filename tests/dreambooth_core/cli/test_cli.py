"""The command line in a separate process: stdout, stderr and exit code."""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import DatasetRefused


def dreambooth(*words, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dreambooth_core.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def config_file(tiny_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json")))
    return path


def soft_captions(folder: Path) -> set[tuple[str, str, str]]:
    """Write captions and masks with every soft finding; returns the expected findings."""
    (folder / "0.txt").write_text("a robot on the grass")
    (folder / "1.txt").write_text(" \n")
    (folder / "2.txt").write_text("{subject} at sea")
    table = (
        '{"file_name": "2.png", "text": "sks {class_noun}"}\n{"file_name": "x.png", "text": "sks"}'
    )
    (folder / "metadata.jsonl").write_text(table)
    (folder / "3.caption").write_text("sks robot")
    (folder / "9.txt").write_text("sks robot")
    (folder / "9.mask.png").write_bytes(b"")
    names = ("0.txt", "1.txt", "2.txt", "metadata.jsonl", "3.caption", "9.txt")
    return {("soft", name, "caption") for name in names} | {("soft", "9.mask.png", "ignored")}


def hard_captions(folder: Path) -> set[tuple[str, str, str]]:
    """Write captions and masks with every hard finding; returns the expected findings."""
    os.mkfifo(folder / "0.txt")
    (folder / "1.txt").symlink_to("/dev/zero")
    with (folder / "2.txt").open("wb") as file:
        file.truncate(100_000_000)
    (folder / "3.txt").write_bytes(b"sks caf\xe9")
    (folder / "metadata.jsonl").write_text("no json")
    Image.new("L", (32, 16), 255).save(folder / "0.mask.png")
    (folder / "1.mask.png").write_bytes(b"no image")
    names = ("0.txt", "1.txt", "2.txt", "3.txt", "metadata.jsonl")
    masks = {("hard", "0.mask.png", "mask"), ("hard", "1.mask.png", "not an image")}
    return {("hard", name, "caption") for name in names} | masks | {("hard", "1.txt", "link")}


def is_one_sentence(text: str) -> bool:
    return text.startswith("Error: ") and text.count("\n") == 1 and "Traceback" not in text


def test_help_is_fast():
    """Measured in CPU time, which other programs on the machine do not change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = dreambooth("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "validate" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8


def test_help_imports_nothing_heavy():
    script = (
        "import sys, dreambooth_core.cli; "
        "print(*{n.split('.')[0] for n in sys.modules} "
        "& {'torch','prefect','mlflow','boto3','numpy','PIL','pydantic','diffusers'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "nowhere.yaml"),
        ("nonsense",),
        ("validate", "nowhere"),
        ("sample", "x", "--prompt", "y", "--work", "nowhere"),
        ("compare", "nowhere", "nowhere"),
        ("run", "/dev/zero"),
    ],
)
def test_bad_arguments_exit_with_2(words, tmp_path):
    done = dreambooth(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "no file may be left"


def test_a_wrong_value_is_named(config_file):
    done = dreambooth("run", config_file, "--set", "train.steps=0")
    assert done.returncode == 2
    assert is_one_sentence(done.stderr)
    assert "train.steps" in done.stderr


def test_debug_shows_the_traceback(config_file):
    done = dreambooth("run", config_file, "--set", "train.steps=0", "--debug")
    assert "Traceback" in done.stderr


def test_schema_and_shown_config(config_file, tiny_config):
    schema = json.loads(dreambooth("config", "schema").stdout)
    assert schema["properties"]["train"]
    assert schema["$defs"]["Train"]["properties"]["steps"]
    shown = dreambooth("config", "show", config_file, "--set", "seed=7").stdout
    assert Config.model_validate(yaml.safe_load(shown)) == tiny_config.model_copy(
        update={"seed": 7}
    )


class TestValidate:
    def test_good_photos(self, tiny_config):
        done = dreambooth("validate", tiny_config.subject.images, "--resolution", "32", "--json")
        assert done.returncode == 0
        found = json.loads(done.stdout)
        assert found["refused"] is False
        assert len(found["accepted"]) == 4

    def test_refused_photos_exit_with_3(self, tiny_config):
        (tiny_config.subject.images / "0.png").write_bytes(b"no image")
        done = dreambooth("validate", tiny_config.subject.images, "--resolution", "32", "--json")
        assert done.returncode == 3
        assert is_one_sentence(done.stderr)
        found = json.loads(done.stdout)
        assert found["refused"] is True
        assert {"level", "file", "check", "measure", "limit", "remedy"} <= set(found["findings"][0])

    @pytest.mark.parametrize("spoil", [soft_captions, hard_captions])
    def test_findings_equal_those_of_a_run(self, spoil, config_file, tiny_config, file_store):
        folder = tiny_config.subject.images
        expected = spoil(folder)
        try:
            found = ingest(tiny_config, file_store)[0].validation.findings
        except DatasetRefused as refused:
            found = refused.findings
        assert expected <= {(one.level, one.file, one.check) for one in found}
        in_json = [one.model_dump(mode="json") for one in found]
        options = ("--resolution", 32, "--identifier", "sks", "--class", "robot")
        for words in (options, ("--config", config_file)):
            done = dreambooth("validate", folder, *words, "--json")
            assert json.loads(done.stdout)["findings"] == in_json
            assert done.returncode == (3 if any(one.level == "hard" for one in found) else 0)


class TestDryRun:
    def test_the_plan_writes_no_file(self, config_file, tiny_config):
        done = dreambooth("run", config_file, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        assert Config.model_validate(printed["config"]) == tiny_config
        assert "6 steps" in printed["plan"]["train"]
        assert printed["plan"]["priors"].startswith("2 class images of base ")
        assert not tiny_config.paths.work.exists()

    def test_no_class_images_are_planned_for_prior_target_prediction(self, config_file):
        words = "train.method=lora", "prior.target=prediction", "prior.num_class_images=100"
        changes = [part for word in words for part in ("--set", word)]
        done = dreambooth("run", config_file, "--dry-run", "--json", *changes)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["plan"]["priors"].startswith("no class images")

    def test_memory_is_planned_for_another_gpu(self, config_file):
        done = dreambooth("train", config_file, "--dry-run", "--gpu", 24, "--json")
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)["memory"]
        assert plan["limit"] == 24 * 2**30
        assert {"images", "training", "sampling"} <= plan["stages"].keys()
        assert plan["stages"]["sampling"]["host"] > plan["stages"]["sampling"]["total"] / 2
        assert dreambooth("train", config_file, "--gpu", 24).returncode == 2

    def test_refused_photos_exit_with_3(self, config_file, tiny_config):
        for path in tiny_config.subject.images.iterdir():
            path.write_bytes(b"no image")
        done = dreambooth("run", config_file, "--dry-run")
        assert done.returncode == 3
        assert is_one_sentence(done.stderr)


class TestStandardOutput:
    """Limited encodings, full disks and closed pipes."""

    WORDS = (("--help",), ("families",), ("config", "schema"))

    @pytest.mark.parametrize("words", WORDS)
    def test_output_is_ascii(self, words):
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "dreambooth_core.cli", *words]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode("ascii")
        assert done.stderr == b""

    def test_characters_outside_the_encoding_are_replaced(self, config_file):
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "dreambooth_core.cli", "config", "show", str(config_file)]
        command += ["--json", "--set", "subject.class_noun=Bär"]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["subject"]["class_noun"] == "B?r"

    @pytest.mark.parametrize("words", WORDS)
    def test_a_full_stdout_exits_with_4(self, words):
        command = [sys.executable, "-m", "dreambooth_core.cli", *words]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 4
        assert is_one_sentence(done.stderr)
        assert "stdout" in done.stderr

    def test_a_closed_pipe_is_no_error(self):
        command = f"{sys.executable} -m dreambooth_core.cli config schema | head -n 1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.stdout == "{\n"
        assert done.stderr == ""


@pytest.mark.parametrize("ignored", [False, True], ids=["a closed terminal", "nohup"])
def test_sighup_stops_a_run_unless_ignored(ignored):
    code = (
        "import os, signal; from dreambooth_core.cli.signals import interruptible\n"
        "with interruptible(): os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    )
    began = signal.SIG_IGN if ignored else signal.SIG_DFL
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=partial(signal.signal, signal.SIGHUP, began),
        capture_output=True,
        text=True,
    )
    assert (done.stdout == "goes on\n") == (done.returncode == 0) == ignored
    assert ("Preempted" in done.stderr) != ignored
