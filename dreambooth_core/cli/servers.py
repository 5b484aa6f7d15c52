"""Commands on the local servers of a team: `up`, `down`, `doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth_core.cli.options import AsJson
from dreambooth_core.errors import StageFailed

if TYPE_CHECKING:
    from dreambooth_core.servers.stack.settings import StackLayout
    from dreambooth_core.servers.stack.supervisor import StackState

app = typer.Typer()

Folder = Annotated[Path, typer.Option(help="Folder of the servers' data and state.")]
FOLDER = Path(".dreambooth/up")


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    postgres: Annotated[
        bool,
        typer.Option("--postgres", help="Databases in an installed PostgreSQL instead of sqlite."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=1024, max=45_000, help="First of 16 adjacent ports; default: 14200, if free."
        ),
    ] = None,
    folder: Folder = FOLDER,
    project: Annotated[Path, typer.Option(help="Folder with prefect.yaml.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Start S3, MLflow, Prefect and a worker on this machine, and keep them running until Ctrl-C.

    Servers that an earlier `up` left running are taken over.
    """
    from dreambooth_core.cli.server_output import show_stack
    from dreambooth_core.servers.stack import settings as place
    from dreambooth_core.servers.stack import supervisor

    home = place.open_folder(folder)
    login = home / place.LOGIN
    running = supervisor.stack_state(home)
    if running is not None:
        show_stack(running, login, as_json)
        return
    settings = place.choose_settings(home, port, postgres)
    stack = place.StackLayout(home, settings, project.resolve())
    if detach:
        show_stack(_in_background(stack), login, as_json)
        return
    with supervisor.claimed(home) as ours:
        if not ours:
            raise StageFailed(f"{home} is being started or stopped by another process: try again")
        supervisor.supervise(stack, _log, lambda state: show_stack(state, login, as_json))


@app.command()
def down(folder: Folder = FOLDER) -> None:
    """Stop the servers of `up` in order, also if its supervisor was killed."""
    from dreambooth_core.servers.stack import supervisor

    count = supervisor.stop_stack(folder.resolve())
    print(f"{count} processes stopped" if count else "nothing was running")


@app.command()
def doctor(
    folder: Folder = FOLDER,
    config: Annotated[
        Path | None, typer.Option(help="A run's config, whose store is checked.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, ports, disk, memory, GPU, credentials, clocks and servers, with remedies.

    Checks the servers that the environment names, else those of `up`. Exit code 1 if a check fails.
    """
    from dreambooth_core.cli.server_output import show_findings
    from dreambooth_core.config import load_config
    from dreambooth_core.servers.doctor import examine

    store = load_config(config).storage if config is not None else None
    found = examine(folder.resolve(), store)
    show_findings(found, as_json)
    if any(finding.level == "broken" for finding in found):
        raise typer.Exit(1)


def _log(sentence: str) -> None:
    from datetime import datetime

    typer.echo(f"{datetime.now():%H:%M:%S} {sentence}", err=True)


def _in_background(stack: "StackLayout") -> "StackState":
    """Start the supervisor as a separate process and wait until all services are ready.

    Raises `StageFailed` with the end of its log if it ends before.
    """
    import subprocess
    import sys
    import time

    from dreambooth_core.runtime.processes import end_of
    from dreambooth_core.servers.stack import supervisor

    log = stack.folder / "logs" / "up.log"
    log.parent.mkdir(exist_ok=True)
    words = ["--folder", str(stack.folder), "--project", str(stack.project)]
    words += ["--port", str(stack.settings.port)]
    words += ["--postgres"] if stack.settings.postgres else []
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dreambooth_core.cli", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while process.poll() is None:
        state = supervisor.stack_state(stack.folder)
        if state is not None and state.supervisor == process.pid and state.ready:
            return state
        time.sleep(0.1)
    raise StageFailed(f"the servers are not up; {end_of(log)}")
