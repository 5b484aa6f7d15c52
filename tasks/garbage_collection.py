"""The store, swept."""

from prefect.artifacts import create_markdown_artifact

from dreambooth_core.config.flow_parameters import Cleaning
from dreambooth_core.storage.garbage_collection import DAY, SweepResult, sweep
from dreambooth_core.storage.stores import open_store
from tasks.stage import stage


@stage("sweep")
def sweep_store(cleaning: Cleaning) -> SweepResult:
    """What nothing needs; see `garbage_collection`."""
    return sweep(open_store(cleaning.storage), cleaning.days * DAY, cleaning.delete)


def publish_swept(swept: SweepResult) -> None:
    """Show the bytes, by what they are of."""
    create_markdown_artifact(as_markdown(swept), key="janitor")


def as_markdown(swept: SweepResult) -> str:
    """What went, or would go, and what stays."""
    did = "deleted" if swept.deleted else "could be deleted: nothing was, as `delete` is off"
    rows = [f"| {kind} | {size:,} |" for kind, size in swept.kinds.items()]
    return "\n".join(
        [
            f"# {swept.bytes:,} bytes in {swept.objects:,} objects {did}",
            "",
            "| kind | bytes |",
            "|---|---|",
            *rows,
            "",
            f"{swept.kept_bytes:,} bytes in {swept.kept_objects:,} objects stay.",
        ]
    )
