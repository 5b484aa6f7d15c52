"""The MLflow server: whether it is well, and of the version of our client."""

from collections.abc import Iterator
from importlib.metadata import version

from dreambooth_core.stack.asking import ask, is_well
from dreambooth_core.stack.doctor import NOTHING_UP, Finding, Site


def check(site: Site) -> Iterator[Finding]:
    """One finding."""
    if site.mlflow is None:
        yield Finding(check="mlflow", level="skipped", sentence=NOTHING_UP)
        return
    if not is_well(f"{site.mlflow}/health"):
        sentence = f"no good answer from {site.mlflow}: start `dreambooth up` again, or see its log"
        yield Finding(check="mlflow", level="broken", sentence=sentence)
        return
    answer = ask(f"{site.mlflow}/version")
    told, ours = answer.body.decode() if answer else None, version("mlflow")
    if told == ours:
        sentence = f"{site.mlflow} is well and of our version {ours}"
        yield Finding(check="mlflow", level="ok", sentence=sentence)
    else:
        sentence = (
            f"{site.mlflow} is of version {told}, the client of {ours}: install the server's with "
            "pip, or restart the server (`dreambooth down`, `dreambooth up`)"
        )
        yield Finding(check="mlflow", level="warning", sentence=sentence)
