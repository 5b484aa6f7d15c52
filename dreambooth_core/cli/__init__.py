"""`dreambooth`: what a person types. stdout holds what was asked for, stderr everything else.

`--help` must answer at once, so nothing heavy is imported before a command needs it. A new group of
commands is one file here with an `app`, named below.
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
from dreambooth_core.cli import approvals, config, datasets, models, sample, servers, training
from dreambooth_core.cli.bench import command as bench
from dreambooth_core.config.old_keys import OldKeyWarning
from dreambooth_core.errors import DreamBoothError, StageFailed, one_line

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A few photos of a subject in, a measured and registered image model out.",
    epilog="Exit codes: 0 done, 2 bad config or arguments, 3 photos refused, 4 a stage failed, "
    "75 stopped and resumable.",
)
for commands in (training, models, approvals, sample, servers):
    app.add_typer(commands.app)
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.add_typer(datasets.app, name="dataset")


def main() -> NoReturn:
    """Entry point: turns errors into one sentence on stderr and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    if not debug:
        _quiet()
    _print_what_stdout_can_show()
    try:
        sys.exit(_perform(arguments))
    except typer.Abort:  # the end of input, or Ctrl-C, at a question
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if said := _sentence(error):
            print(f"Error: {said}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 4))


def _perform(arguments: list[str]) -> int | None:
    """Run the command to its end, with what it has printed handed over; its exit code, if it has one."""
    try:
        code: int | None = app(arguments, prog_name="dreambooth", standalone_mode=False)
        return code
    finally:
        try:
            if sys.stdout is not None:  # as it is where the caller has closed it
                sys.stdout.flush()
        except OSError as error:
            # Python would flush once more at its end, and tell of it in words of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if error.errno != errno.EPIPE:
                raise


def _print_what_stdout_can_show() -> None:
    """Characters that stdout's encoding lacks are printed as ?, where Python would raise."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and all logs.")] = False,
) -> None:
    """`main` has taken it out of the arguments already: it may stand anywhere."""


def _sentence(error: Exception) -> str:
    """Empty for a group of commands without one, whose help was printed."""
    from dreambooth_core.config.credentials import without_password

    if isinstance(error, TyperException):
        return _of_arguments(error)
    text = without_password(one_line(error))
    if isinstance(error, DreamBoothError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return one_line(StageFailed(_of_the_system(error)))
    kind = type(error).__name__
    return f"{kind}: {text} (not foreseen; --debug shows where)" if text else kind


def _of_the_system(error: OSError) -> str:
    """The sentence for what the operating system refuses: a full disk, missing rights, no such file."""
    if error.filename is None:
        full = error.errno == errno.ENOSPC
        where = "stdout or a file" if full else "a file or a connection"
        return f"{where} cannot be used: {error.strerror}; check free space, rights and connections"
    return f"{error.filename} cannot be used: {error.strerror}; check the path, its rights and free space"


def _of_arguments(error: TyperException) -> str:
    """What is wrong with the words on the command line, and which help lists the right ones."""
    text = one_line(TyperException(error.format_message())).rstrip(".")
    command = getattr(getattr(error, "ctx", None), "command_path", "dreambooth")
    return f"{text}; `{command} --help` lists what it takes" if text else ""


def _quiet() -> None:
    """Libraries' logs and warnings are for --debug; Prefect still keeps its own in its database."""
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
    """One line on stderr, without the place in our code."""
    console.say(f"warning: {message}")
