"""The command `dreambooth`. Results go to stdout, everything else to stderr.

Heavy libraries are imported inside the commands, so that `--help` is fast. A new group of commands is one
file with an `app`, added below.
"""

import errno
import logging
import os
import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from dreambooth_core import console
from dreambooth_core.cli import (
    approvals,
    config,
    datasets,
    documents,
    models,
    prompts,
    questions,
    sample,
    servers,
    starting,
    training,
    vision,
)
from dreambooth_core.cli.bench import command as bench
from dreambooth_core.errors import DreamBoothError, OldKeyWarning, StageFailed, one_line

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="DreamBooth fine-tuning: from photos of a subject to an evaluated, registered image model.",
    epilog="Exit codes: 0 done, 2 bad config or arguments, 3 photos refused, 4 a stage failed, "
    "75 stopped and resumable.",
)
for commands in (training, starting, models, questions, approvals, sample, servers):
    app.add_typer(commands.app)
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
datasets.app.add_typer(documents.app)
app.add_typer(datasets.app, name="dataset")
app.add_typer(prompts.app, name="prompts")
app.add_typer(vision.app, name="vision")


def main() -> NoReturn:
    """Entry point; prints errors as one sentence on stderr and sets the exit code."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    if not debug:
        _quiet()
    _replace_unencodable()
    try:
        sys.exit(_run(arguments))
    except typer.Abort:  # end of input or Ctrl-C at a prompt
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if message := _message(error):
            print(f"Error: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 4))


def _run(arguments: list[str]) -> int | None:
    """Run the command and flush stdout; returns the command's exit code, if any."""
    try:
        code: int | None = app(arguments, prog_name="dreambooth", standalone_mode=False)
        return code
    finally:
        try:
            if sys.stdout is not None:  # None if the caller closed it
                sys.stdout.flush()
        except OSError as error:
            # Python flushes again on exit and would print its own message
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if error.errno != errno.EPIPE:
                raise


def _replace_unencodable() -> None:
    """Print characters that stdout's encoding lacks as ? instead of raising."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dreambooth {version('dreambooth-factory')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and all logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="The version.")
    ] = False,
) -> None:
    """Listed in the help only: `main` removes it from the arguments, at any position."""


def _message(error: Exception) -> str:
    """Message for an error; empty if help was printed instead."""
    from dreambooth_core.config.credentials import without_password

    if isinstance(error, TyperException):
        return _usage_message(error)
    text = without_password(one_line(error))
    if isinstance(error, DreamBoothError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return one_line(StageFailed(_os_message(error)))
    kind = type(error).__name__
    return f"{kind}: {text} (unexpected; --debug shows the traceback)" if text else kind


def _os_message(error: OSError) -> str:
    """Message for an error of the operating system, such as a full disk or missing rights."""
    if error.filename is None:
        full = error.errno == errno.ENOSPC
        where = "stdout or a file" if full else "a file or a connection"
        return f"{where} cannot be used: {error.strerror}; check free space, rights and connections"
    return f"{error.filename} cannot be used: {error.strerror}; check the path, its rights and free space"


def _usage_message(error: TyperException) -> str:
    """Message for wrong arguments, with the command whose help lists the valid ones."""
    text = one_line(TyperException(error.format_message())).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "dreambooth")
    return f"{text}; `{command} --help` lists its arguments" if text else ""


def _quiet() -> None:
    """Hide logs and warnings of libraries; Prefect still stores its logs in its database."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=OldKeyWarning)
    warnings.showwarning = _show_warning
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name, value in {
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line on stderr, without file and line."""
    console.say(f"warning: {message}")
