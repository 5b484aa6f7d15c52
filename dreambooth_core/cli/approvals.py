"""`dreambooth approve`, `dreambooth reject`: decide a flow run that waits for approval.

The question is stored in Prefect's server, hence the import of a task inside the command. In the folder of
a running `dreambooth up`, its server and login are used.
"""

from typing import Annotated, Literal

import typer

app = typer.Typer()

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the waiting flow run.")]
By = Annotated[
    str | None, typer.Option(help="Name of the person who decides; default: the current user.")
]


@app.command()
def approve(
    run: Run,
    reason: Annotated[str, typer.Option(help="Reason; required if the gate did not promote.")] = "",
    by: By = None,
) -> None:
    """Approve a waiting promotion: its version becomes champion."""
    _decide(run, "approve", reason, by)


@app.command()
def reject(run: Run, reason: Annotated[str, typer.Option(help="Reason.")], by: By = None) -> None:
    """Reject a waiting promotion."""
    _decide(run, "reject", reason, by)


def _decide(run: str, decision: Literal["approve", "reject"], reason: str, by: str | None) -> None:
    from dreambooth_core.servers.stack.supervisor import stack_environment
    from dreambooth_core.storage.records import current_user

    with stack_environment():
        from tasks.approval import Approval, answer_run

        answer = Approval(decision=decision, reason=reason, by=by or current_user())
        print(f"{answer_run(run, answer)} is resumed")
