"""Python and all libraries, against the project's version ranges."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

PROJECT = "dreambooth-factory"


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result per library that is missing or outside its range, else one."""
    try:
        project = metadata(PROJECT)
    except PackageNotFoundError:
        sentence = f"{PROJECT} is not installed: run `make install`, or `pip install -e .`"
        yield CheckResult(check="versions", level="broken", sentence=sentence)
        return
    pythons = SpecifierSet(project["Requires-Python"])
    needed = [Requirement(line) for line in project.get_all("Requires-Dist") or ()]
    wrong: list[str] = [
        *([] if platform.python_version() in pythons else [_python(str(pythons))]),
        *filter(None, map(_wrong, needed)),
    ]
    for sentence in wrong:
        yield CheckResult(check="versions", level="broken", sentence=sentence)
    if not wrong:
        sentence = f"Python {platform.python_version()} and {len(needed)} libraries are in range"
        yield CheckResult(check="versions", level="ok", sentence=sentence)


def _python(wanted: str) -> str:
    return f"Python is {platform.python_version()}, not {wanted}: create .venv with another Python"


def _wrong(need: Requirement) -> str | None:
    """The problem with a library, or None; libraries of extras may be missing."""
    is_extra = need.marker is not None and "extra" in str(need.marker)
    if need.marker is not None and not is_extra and not need.marker.evaluate():
        return None
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return None if is_extra else f"{need.name} is not installed: run `make install`"
    if need.specifier.contains(found, prereleases=True):
        return None
    return f"{need.name} is {found}, not {need.specifier}: run `make install`"
