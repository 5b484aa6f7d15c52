"""What MLflow has, where people delete what they like at any time."""

from collections.abc import Callable
from typing import Any, TypeVar

from dreambooth_core import console

T = TypeVar("T")


def found(ask: Callable[[], T]) -> T | None:
    """MLflow's answer; None when it has no such thing, or has it no more."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def has_version(client: Any, name: str, version: str) -> bool:
    return found(lambda: client.get_model_version(name, version)) is not None


def has_run(client: Any, run: str) -> bool:
    """Whether there is a registered version's run, which is taken out of MLflow's bin if it is there:
    what the version is worth stands in it.
    """
    known = found(lambda: client.get_run(run))
    if known is not None and known.info.lifecycle_stage == "deleted":
        client.restore_run(run)
        console.say(f"run {run} of {known.info.run_name} was deleted in MLflow: it is restored")
    return known is not None
