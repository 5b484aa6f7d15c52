"""The Prefect server: whether it is well, and of the version of our client."""

from collections.abc import Iterator
from importlib.metadata import version

from dreambooth_core.stack.asking import ask, is_well
from dreambooth_core.stack.doctor import NOTHING_UP, Finding, Site


def check(site: Site) -> Iterator[Finding]:
    """One finding."""
    if site.prefect is None:
        yield Finding(check="prefect", level="skipped", sentence=NOTHING_UP)
        return
    if not is_well(f"{site.prefect}/api/health"):
        sentence = (
            f"no good answer from {site.prefect}: start `dreambooth up` again, or see its log"
        )
        yield Finding(check="prefect", level="broken", sentence=sentence)
        return
    answer = ask(f"{site.prefect}/api/admin/version")
    told, ours = answer.document() if answer else None, version("prefect")
    if told == ours:
        sentence = f"{site.prefect} is well and of our version {ours}"
        yield Finding(check="prefect", level="ok", sentence=sentence)
    else:
        sentence = (
            f"{site.prefect} is of version {told}, the client of {ours}: install the server's with "
            "pip, or restart the server (`dreambooth down`, `dreambooth up`)"
        )
        yield Finding(check="prefect", level="warning", sentence=sentence)
