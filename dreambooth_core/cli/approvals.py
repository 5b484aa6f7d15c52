"""`dreambooth approve`, `dreambooth reject`: a word for a flow run that waits for one.

They import a task, inside the command: it is Prefect's server that holds the question. In the folder
of a running `dreambooth up` that is its server, with its login.
"""

from typing import Annotated, Literal

import typer

app = typer.Typer()

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the flow run that waits.")]
By = Annotated[str | None, typer.Option(help="Who decides; the user of this machine otherwise.")]


@app.command()
def approve(
    run: Run,
    reason: Annotated[str, typer.Option(help="Why, when the gate has not said promote.")] = "",
    by: By = None,
) -> None:
    """Let a promotion that waits for a person put its version into service."""
    _answer(run, "approve", reason, by)


@app.command()
def reject(run: Run, reason: Annotated[str, typer.Option(help="Why.")], by: By = None) -> None:
    """Refuse the version of a promotion that waits for a person."""
    _answer(run, "reject", reason, by)


def _answer(run: str, decision: Literal["approve", "reject"], reason: str, by: str | None) -> None:
    from dreambooth_core.servers.stack.supervisor import stack_environment
    from dreambooth_core.storage.records import current_user

    with stack_environment():
        from tasks.approval import Approval, answer_run

        answer = Approval(decision=decision, reason=reason, by=by or current_user())
        print(f"{answer_run(run, answer)} goes on")
