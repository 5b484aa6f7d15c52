"""What README and docs/ tell people to type, to read and to believe is there."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dreambooth_core import plugins
from dreambooth_core.config import (
    ADAPTERS,
    INVERSIONS,
    Config,
    Method,
    load_config,
    overlaid,
    recipe_file,
    recipe_names,
)
from dreambooth_core.config.reference import reference
from dreambooth_core.diffusion import families
from dreambooth_core.diffusion.families import load_family
from tests.conftest import LONGEST

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FEATURES, RECIPES = ROOT / "docs/features.md", ROOT / "docs/recipes.md"
LEAST: dict[str, Any] = {"name": "docs", "subject": {"images": "photos", "class_noun": "dog"}}
"""What a part of a config is laid over."""


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(language: str, *pages: Path) -> list[Any]:
    """The fenced blocks of a language, each named by its page and place."""
    return [
        pytest.param(block, id=f"{page.stem}-{place}")
        for page in pages
        for place, block in enumerate(
            re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)
        )
    ]


COMMANDS = [
    shlex.split(line, comments=True)
    for block in blocks("sh", README, *PAGES[2:])
    for line in block.values[0].splitlines()
    if line.strip()
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_exists_with_its_options(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        makefile = text(ROOT / "Makefile")
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


def config_of(document: dict[str, Any]) -> Config:
    return Config.model_validate(overlaid(LEAST, document))


@pytest.mark.parametrize("block", blocks("yaml", *PAGES))
def test_config_is_one_that_its_family_takes(block: str) -> None:
    config = config_of(yaml.safe_load(block))
    families.check(load_family(config.model.family), config)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_one_that_its_family_takes(name: str) -> None:
    config = recipe(name)
    families.check(load_family(config.model.family), config)
    assert name in (f"{config.model.family}-{config.train.method}", "small_world-lora")


def test_shipped_config_is_one() -> None:
    load_config(ROOT / "examples/small_world/config.yaml")


def test_the_page_of_all_keys_is_generated_from_the_schema() -> None:
    assert text(ROOT / "docs/configuration.md") == reference()


def rows(page: Path) -> list[list[str]]:
    """The cells of all tables' rows, heads included."""
    lines = [line for line in text(page).splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line
    ]


def recipe(name: str) -> Config:
    return config_of(yaml.safe_load(text(recipe_file(name))))


def as_row(name: str, config: Config) -> list[str]:
    """The row of a recipe in the table of recipes, without its sources."""
    train, prior, method = config.train, config.prior, config.train.method
    kind = (
        "prediction" if config.prior_target == "prediction" else f"{prior.num_class_images} images"
    )
    moves = "yes" if families.trained_encoders(load_family(config.model.family), config) else "no"
    until = f" until {train.text_encoder_until}" if train.text_encoder_until < 1 else ""
    shift = f", shift {config.loss.timestep_shift:g}" if config.loss.timestep_shift != 1 else ""
    only_tokens = method == "textual_inversion"
    rate = config.textual_inversion.learning_rate if only_tokens else train.learning_rate
    return [
        f"[`{name}`](../{recipe_file(name).relative_to(ROOT).as_posix()})",
        f"`{config.model.family}`",
        method,
        f"{rate:g}",
        str(train.steps),
        f"{train.batch_size} x {train.gradient_accumulation_steps}",
        f"{config.adapter.rank} / {config.adapter.alpha:g}" if method in ADAPTERS else "-",
        f"{kind}, weight {prior.loss_weight:g}" if prior.enabled else "off",
        f"tokens{until}" if method in INVERSIONS else moves,
        f"{config.loss.timestep_sampling}{shift}",
        f"{config.sampler.guidance_scale:g}",
    ]


def test_table_of_recipes_agrees_with_the_files() -> None:
    listed = [row[:-1] for row in rows(RECIPES) if row[0].startswith("[")]
    assert sorted(listed) == sorted(as_row(name, recipe(name)) for name in recipe_names())


def test_the_sources_of_a_recipe_are_those_of_its_row() -> None:
    links = dict(re.findall(r"^\[(\d+)\]: (\S+)$", text(RECIPES), re.MULTILINE))
    for row in rows(RECIPES)[1:]:
        file = text(recipe_file(re.findall(r"`(.*?)`", row[0])[0]))
        for number in re.findall(r"\[(\d+)\]", row[-1]):
            assert f"# Source: {links[number]}\n" in file


def test_every_family_and_every_method_has_a_recipe() -> None:
    found = {tuple(name.split("-")) for name in recipe_names()}
    for family in plugins.names(families.__name__):
        assert {(family, "full"), (family, "lora")} <= found
    assert {method for _, method in found} == set(get_args(Method))


def test_the_recipe_that_was_run_is_the_shipped_config() -> None:
    name = "small_world-lora"
    shipped = load_config(ROOT / "examples/small_world/config.yaml")
    assert as_row(name, recipe(name)) == as_row(name, shipped)
    assert [row for row in rows(RECIPES) if "run here" in row[-1]] == [
        [*as_row(name, shipped), "**run here**"]
    ]


@cache
def functions_of(file: Path) -> frozenset[str]:
    """Names of the test functions in a file, those of its classes included."""
    found = ast.walk(ast.parse(text(file)))
    return frozenset(node.name for node in found if isinstance(node, ast.FunctionDef))


PROOFS = dict[str, tuple[str, str]](
    (label, (file, name))
    for label, file, name in re.findall(
        r'^\[([\w-]+)\]: \.\./(tests/\S+\.py) "::(\w+)"$', text(FEATURES), re.MULTILINE
    )
)
"""Label of a link -> file and name of a test."""
NAMED = sorted(
    {*PROOFS.values()}
    | {found for page in PAGES for found in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text(page))}
)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_test_is_there(file: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions_of(ROOT / file)


def test_every_yes_leads_to_its_test_and_no_other_cell_does() -> None:
    ours = [row[-1] for row in rows(FEATURES) if row[-1] != "here"]
    assert len(ours) > 50
    for cell in ours:
        labels = re.findall(r"\]\[([\w-]+)\]", cell)
        assert bool(labels) == (cell.split(":")[0] != "no"), cell
        assert set(labels) <= PROOFS.keys()
    used = re.findall(r"\]\[([\w-]+)\]", text(FEATURES))
    assert PROOFS.keys() == set(used)


def test_tree_names_what_is_there() -> None:
    tree = text(ROOT / "docs/architecture.md").split("## The tree")[1].split("```")[1]
    parent, named = Path(), []
    for line in tree.strip().splitlines():
        name, _, phrase = line.strip().partition("  ")
        indent = len(line) - len(line.lstrip())
        files = [part for part in re.split(r",\s*", name) if part]
        if indent == 0:
            parent = Path(name) if name.endswith("/") else Path()
        named += [parent / part if indent else Path(part) for part in files]
        named += [parent / part for part in re.findall(r"\b[a-z_0-9]+\.py\b", phrase) if indent]
    missing = [path for path in named if not list(ROOT.glob(f"{path}")) and not _deeper(path)]
    assert missing == []
    home = ROOT / "dreambooth_core"
    core = {path for path in home.glob("[a-z]*") if path.suffix in ("", ".py")}
    core |= {path.parent for path in home.rglob("*/__init__.py")}
    assert {path.name for path in core} - {path.name for path in named} == set()


def test_the_pages_of_the_index_are_those_that_are_there() -> None:
    index = text(ROOT / "docs/README.md")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages


def test_every_file_of_a_call_chain_is_there() -> None:
    """Lines of docs/architecture.md such as `training/stage.py train`."""
    page = text(ROOT / "docs/architecture.md").split("## A photo's way")[1]
    chains = re.findall(r"^ *([a-z_]+/[\w/]+\.py)(?: (\w+))?", page, re.MULTILINE)
    assert len(chains) > 25
    for file, name in chains:
        found = next(
            (
                ROOT / home / file
                for home in ("", "dreambooth_core")
                if (ROOT / home / file).is_file()
            ),
            None,
        )
        assert found is not None, file
        assert not name or re.search(rf"^(def|class) {name}\b", text(found), re.MULTILINE), (
            file,
            name,
        )


def _deeper(path: Path) -> bool:
    return any(ROOT.glob(f"{path.parent}/*/{path.name}"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    inline = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text(page))
    defined = re.findall(r"^\[[^\]]+\]: (\S+)", text(page), re.MULTILINE)
    targets = [target for target in inline + defined if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_longest_files_of_tests_exist() -> None:
    missing = [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
    assert missing == []
