"""Runner of fuzz cases: each command in a forked process with its own folder, home and session.

The parent imports the libraries once, so that a case takes tenths of a second; it must not start
threads, since a fork copies only one.
"""

import atexit
import hashlib
import os
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.case import WORK, Case

MODULES = (
    "boto3",
    "encodings.idna",
    "encodings.utf_8_sig",
    "mlflow",
    "PIL.Image",
    "scipy.ndimage",
    "torch",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
    "dreambooth_core.cli.bench.dreambench",
    "dreambooth_core.cli.model_output",
    "dreambooth_core.cli.run_output",
    "dreambooth_core.registry.outputs",
    "dreambooth_core.batch_sampling.job",
    "dreambooth_core.batch_sampling.search",
    "dreambooth_core.evaluation.evaluate",
    "dreambooth_core.training.stage",
    "dreambooth_core.data.images",
    "dreambooth_core.reports.comparison",
    "dreambooth_core.vision.similarity",
    "dreambooth_core.data.versions",
    "dreambooth_core.storage.stores.file",
    "dreambooth_core.storage.stores.s3",
    "dreambooth_core.training.dry_step",
    "dreambooth_core.training.standalone",
    "dreambooth_core.registry.listing",
)
MAX_DATA = 3 * 2**30
"""Limit of a case's private memory in bytes; above it, the case gets MemoryError."""
MAX_DIGESTED = 50_000_000
"""Largest file in bytes whose content is compared; of larger ones, size and time are."""
CACHES = ("home/.cache/matplotlib", "home/.config/matplotlib")
"""Font caches, written by matplotlib's first import."""
NOBODY = "nobody"
SECRETS = ("AWS_", "MLFLOW_", "PREFECT_", "DREAMBOOTH_", "HF_", "RAY_", "WANDB_", "XDG_")


class Entry(NamedTuple):
    """State of a path, before or after the command."""

    kind: int
    size: int
    changed: int
    """mtime in ns; 0 for folders, whose time changes with their files."""
    content: str


class Ended(NamedTuple):
    """How a case's command ended."""

    code: int | None
    """None if it was killed at its time limit."""
    signal: int
    stdout: str
    stderr: str
    seconds: float
    memory: int
    """Peak resident memory of the largest process, in bytes."""
    changed: list[str]
    """Input paths that were changed or deleted."""
    appeared: list[str]
    """New paths outside of `paths.work`."""
    left_running: bool


def warm_up() -> None:
    """Import the commands' libraries."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in MODULES:
        import_module(name)


def perform(case: Case, folder: Path, patience: float = 1.0) -> Ended:
    """Write the input below `folder`, which must not exist, run the command, and compare the files.

    `patience`: factor on the case's time limit.
    """
    for name in ("cwd", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    os.chmod(folder, 0o755)
    case.build(folder / "cwd")
    if case.as_nobody:
        _chown(folder)
    before = _snapshot(folder)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(case, folder)
    status, usage = _await(child, case.seconds * patience)
    seconds = time.monotonic() - began
    left = _end_session(child)
    after = _snapshot(folder)
    changed = sorted(name for name, entry in before.items() if after.get(name) != entry)
    appeared = sorted(name for name in after.keys() - before.keys() if not _allowed(name, case))
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(
        code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=number,
        stdout=_text(folder / "stdout"),
        stderr=_text(folder / "stderr"),
        seconds=seconds,
        memory=usage.ru_maxrss * 1024,
        changed=changed,
        appeared=appeared,
        left_running=left,
    )


def _allowed(name: str, case: Case) -> bool:
    folders = [os.path.normpath(f"cwd/{path}") for path in (WORK, *case.writes)]
    inside = any(name == folder or name.startswith(f"{folder}/") for folder in folders)
    cached = any(name.startswith(folder) or folder.startswith(f"{name}/") for folder in CACHES)
    return inside or cached or name in ("stdout", "stderr")


def _run(case: Case, folder: Path) -> None:
    """Run the command in the child process; does not return."""
    code = 70
    try:
        os.setsid()
        environment = _environment(case.env, folder)
        _redirect(case, folder)
        os.chdir(folder / "cwd")
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA, MAX_DATA))
        if case.as_nobody and os.getuid() == 0:
            user = pwd.getpwnam(NOBODY)
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        if case.fresh:
            command = [sys.executable, "-m", "dreambooth_core.cli", *case.words]
            os.execve(sys.executable, command, environment)
        os.environ.clear()
        os.environ.update(environment)
        code = _main(case)
    except BaseException as error:
        os.write(2, f"the harness failed: {error!r}\n".encode(errors="replace"))
    finally:
        os._exit(code)


def _main(case: Case) -> int:
    """Run the command; returns the exit code of a new interpreter."""
    from dreambooth_core.cli import main

    atexit._clear()  # the parent's functions, one of which deletes its temporary folder
    sys.argv = ["dreambooth", *case.words]
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored while flushing sys.stdout: {error}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    return code


def _redirect(case: Case, folder: Path) -> None:
    """Set the child's standard streams."""
    null = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    errors = os.open(folder / "stderr", flags, 0o666)
    path = Path("/dev/full") if case.stdout == "full" else folder / "stdout"
    output = os.open(path, flags, 0o666)
    for number, descriptor in enumerate((null, output, errors)):
        os.dup2(descriptor, number)
    encoding = "ascii" if case.stdout == "ascii" else "utf-8"
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
    if case.stdout == "closed":
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]


def _environment(changes: Mapping[str, str | None], folder: Path) -> dict[str, str]:
    """Environment of a case, without the machine's services and credentials."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(SECRETS)}
    plain |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.getcwd(),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    given = {
        k: str(folder / "cwd" / v[2:]) if v and v.startswith("./") else v
        for k, v in changes.items()
    }
    return {k: v for k, v in {**plain, **given}.items() if v is not None}


def _await(child: int, seconds: float) -> tuple[int, resource.struct_rusage]:
    """Exit status and usage; the child's session is killed at the time limit."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > deadline:
            _kill(child)
            return os.wait4(child, 0)[1:]
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _end_session(leader: int) -> bool:
    """Whether a process of the case's group is left a second after its leader; it is killed."""
    for _ in range(20):
        try:
            os.killpg(leader, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.05)
    _kill(leader)
    return True


def _kill(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(leader, signal.SIGKILL)


def _snapshot(folder: Path) -> dict[str, Entry]:
    """State of every path below the folder; links, pipes and devices are not opened."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder / "cwd" / WORK:
            folders[:], files = [], []
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = _entry(path)
    excluded = ("stdout", "stderr", f"cwd/{WORK}")
    return {name: entry for name, entry in found.items() if name not in excluded}


def _entry(path: str) -> Entry:
    state = os.lstat(path)
    changed = 0 if stat.S_ISDIR(state.st_mode) else state.st_mtime_ns
    content = ""
    if stat.S_ISLNK(state.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(state.st_mode) and state.st_size <= MAX_DIGESTED:
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    size = 0 if stat.S_ISDIR(state.st_mode) else state.st_size
    return Entry(state.st_mode, size, changed, content)


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(5_000_000).decode("utf-8", "replace")


def _chown(folder: Path) -> None:
    if os.getuid() != 0:
        return
    user = pwd.getpwnam(NOBODY)
    os.chown(folder, user.pw_uid, user.pw_gid)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(os.path.join(parent, name), user.pw_uid, user.pw_gid)


def clear(folder: Path) -> None:
    """Delete a case's folder, also without permissions on its input."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # paths above the length limit
        subprocess.run(["rm", "-rf", str(folder)], check=False)
