"""Fixtures of the cases, whose bases are built on first use."""

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from dreambooth_core.diffusion import families
from dreambooth_core.diffusion.families import Family, Parts, load_family
from tests.dreambooth_core.diffusion.families.cases import CASES, COPY, ORIGINAL, Case, builder


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the copied file, added to the families package."""
    folder = tmp_path_factory.mktemp("families")
    shutil.copy(Path(families.__path__[0]) / f"{ORIGINAL}.py", folder / f"{COPY}.py")
    families.__path__.append(str(folder))
    yield folder
    families.__path__.remove(str(folder))
    sys.modules.pop(f"{families.__name__}.{COPY}", None)


@pytest.fixture(scope="module")
def build(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    @cache
    def case(name: str, variant: str) -> Case:
        module, folder = builder(name), tmp_path_factory.mktemp(name) / "base"
        options = module.VARIANTS[variant] if variant else {}
        return Case(name, variant, module.build(folder, **options))

    return case


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
def case(request: pytest.FixtureRequest, build: Callable[..., Case]) -> Case:
    return build(*request.param)


@pytest.fixture(scope="module")
def family(case: Case) -> Family:
    return load_family(case.name)


@pytest.fixture(scope="module")
def frozen(case: Case) -> Parts:
    """Loaded parts, shared by tests that do not change them."""
    return case.load()
