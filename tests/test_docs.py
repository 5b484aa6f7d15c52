"""What the README tells people to type and to read is there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dreambooth_core.config import Config, load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_exists_with_its_options(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[0]}:.*##", makefile, re.MULTILINE)
        return
    assert program.endswith("dreambooth")
    import typer.main

    from dreambooth_core.cli import app

    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= known


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_example_is_a_config(block: str) -> None:
    assert Config.model_validate(yaml.safe_load(block)).subject.class_noun == "dog"


def test_shipped_config_is_one() -> None:
    load_config(ROOT / "examples/small_world/config.yaml")


def test_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    parent, named = Path(), []
    for line in tree.strip().splitlines():
        name, _, phrase = line.strip().partition("  ")
        indent = len(line) - len(line.lstrip())
        files = [part for part in re.split(r",\s*", name) if part]
        if indent == 0:
            parent = Path(name) if name.endswith("/") else Path()
        named += [parent / part if indent else Path(part) for part in files]
        named += [parent / part for part in re.findall(r"\b[a-z_]+\.py\b", phrase) if indent]
    missing = [path for path in named if not list(ROOT.glob(f"{path}")) and not _deeper(path)]
    assert missing == []


def _deeper(path: Path) -> bool:
    return any(ROOT.glob(f"{path.parent}/*/{path.name}"))


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []
