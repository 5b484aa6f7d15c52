"""Local servers of commands, and the vision-language model that a command uses."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.config import Config


@contextmanager
def services(config: "Config") -> Iterator[None]:
    """Servers of the config; with a local store those of a running `up` in the work folder."""
    from dreambooth_core.servers.local import local_services
    from dreambooth_core.servers.stack.supervisor import stack_environment

    local = config.storage.endpoint == "local"
    stack = stack_environment(config.paths.work / "up") if local else nullcontext()
    with stack, local_services(config):
        yield


def with_vision(config: "Config", own: "Config | None" = None) -> "Config":
    """`config` with the section `vision` of `own`, the config of --config, if that has a model.

    Raises `ConfigError` if neither has one.
    """
    if own is not None and own.vision.backend is not None:
        return config.model_copy(update={"vision": own.vision})
    if config.vision.backend is None:
        raise ConfigError(
            "no vision-language model is configured: set vision.backend, vision.model and, for a server, "
            "vision.url in a config, and give it with --config"
        )
    return config
