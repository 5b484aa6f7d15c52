"""An attempt whose ranks stand on several machines.

`python -m dreambooth_core.training.multi_node SPEC.json` starts it.

A placement group of Ray's puts an actor on each of `compute.nodes` machines, and each actor runs its
machine's part of one torchrun, in a work folder of its own. This process stands for the ranks: it
hands on the order to stop, and leaves in the spec's folder what the first rank leaves in its own. Where
a machine dies it ends all others' parts and says so; the parent starts the next attempt, from the
last checkpoint in the store.
"""

import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_core.config.compute import Compute, paths_here
from dreambooth_core.errors import DreamBoothError, StageFailed, one_line
from dreambooth_core.runtime.engines.ray import cluster
from dreambooth_core.runtime.processes import last_lines, supervised
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Blob
from dreambooth_core.storage.stores import open_store, written_beside
from dreambooth_core.training import checkpoints, launcher
from dreambooth_core.training.spec import (
    GRACE_SECONDS,
    VALIDATION,
    AttemptResult,
    TrainingSpec,
    read_record,
    write_record,
)

LOOK_SECONDS = 0.2
END_SECONDS = 60.0
"""In which all machines end once one has: what has not is dead, or Ray finds out that it is."""
Files = Mapping[str, tuple[int, bytes]]
"""Name of a file below the run's folder -> when it was written, in ns, and what it holds."""


class NodeTask(NamedTuple):
    """A machine's part."""

    number: int
    machines: int
    ranks: int
    """Of this machine."""
    first: str
    """ADDRESS:PORT of the first machine's torchrun."""


class NodeResult(NamedTuple):
    """How a machine's part ended."""

    status: int
    said: str
    """The end of its log."""
    weights: dict[str, Blob]
    """Of the first machine, when training is done: file -> blob in the store."""


class NodeActor:
    """The actor: what one machine does. Its three methods run side by side."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._stop = threading.Event()

    def address(self) -> str:
        """ADDRESS:PORT where this machine can be asked by the others."""
        import ray

        own = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((own, 0))
            return f"{own}:{free.getsockname()[1]}"

    def train(self, document: str, post: NodeTask) -> NodeResult:
        """This machine's part of the spec, to its end."""
        try:
            spec = self._settled(TrainingSpec.model_validate_json(document))
            return self._trained(spec, post)
        except DreamBoothError as error:
            return NodeResult(1, str(error), {})

    def _trained(self, spec: TrainingSpec, post: NodeTask) -> NodeResult:
        own, log = self.address().rpartition(":")[0], spec.folder / "train.log"
        log.unlink(missing_ok=True)
        where = (post.ranks, post.number, post.machines, post.first)
        with supervised(
            launcher.command_on(spec.folder / "spec.json", *where),
            env=launcher.environment_on(post.ranks, own),
            log=log,
            grace=GRACE_SECONDS,
        ) as ranks:
            while ranks.poll() is None:
                if self._stop.wait(LOOK_SECONDS):
                    ranks.terminate()
                    self._stop.clear()
        outcome = read_record(spec.folder / "result.json", AttemptResult)
        done = post.number == 0 and outcome is not None and outcome.status == "done"
        weights = _put(spec) if done else {}
        return NodeResult(ranks.returncode, last_lines(log), weights)

    def told(self, known: Mapping[str, int]) -> Files:
        """What has changed of that which the parent looks at, since `known`."""
        if self._folder is None:
            return {}
        names = ("progress.json", "course.json", "result.json")
        paths = [
            *(self._folder / name for name in names),
            *self._folder.glob(f"{VALIDATION}/*.png"),
        ]
        found = {}
        for path in paths:
            with suppress(FileNotFoundError):
                name, when = path.relative_to(self._folder).as_posix(), path.stat().st_mtime_ns
                if known.get(name) != when:
                    found[name] = (when, path.read_bytes())
        return found

    def stop(self) -> None:
        """End in order: save, if all others do."""
        self._stop.set()

    def _settled(self, spec: TrainingSpec) -> TrainingSpec:
        """The spec as it is here, with nothing of an earlier attempt beside it.

        Raises `StageFailed` without the checkpoint to go on from.
        """
        paths = paths_here(spec.config.paths)
        folder = paths.work / "runs" / spec.folder.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("progress.json", "course.json", "result.json"):
            (folder / name).unlink(missing_ok=True)
        resume, saved = None, folder / "checkpoints"
        # what an earlier attempt has left here may be further than what all machines go on from
        shutil.rmtree(saved, ignore_errors=True)
        if spec.resume is not None:
            store = open_store(spec.config.storage)
            resume = checkpoints.fetch_step(store, spec.prefix, saved, spec.resume_step)
            if resume is None:
                raise StageFailed(
                    f"the checkpoint of step {spec.resume_step} has gone from {spec.prefix} of the "
                    "store: run again"
                )
        config = spec.config.model_copy(update={"paths": paths})
        here = spec.model_copy(update={"config": config, "folder": folder, "resume": resume})
        write_record(folder / "spec.json", here)
        self._folder = folder
        return here


class _Crew:
    """All machines of an attempt, as this process sees them."""

    def __init__(self, ray: Any, machines: list[Any], spec: TrainingSpec) -> None:
        self._ray, self._machines, self._spec = ray, machines, spec
        self._known: dict[str, int] = {}
        config = spec.config
        first = ray.get(machines[0].address.remote())
        ranks, document = _ranks(spec), spec.model_dump_json()
        self._working = {
            machine.train.remote(
                document, NodeTask(number, config.compute.nodes, ranks, first)
            ): number
            for number, machine in enumerate(machines)
        }

    def look(self) -> dict[int, NodeResult]:
        """Machines whose part has ended since; raises Ray's error where one is dead."""
        ready, _ = self._ray.wait([*self._working], num_returns=1, timeout=LOOK_SECONDS)
        return {self._working.pop(answer): self._ray.get(answer) for answer in ready}

    @property
    def works(self) -> bool:
        return bool(self._working)

    def stop(self) -> None:
        for machine in self._machines:
            machine.stop.remote()

    def tell(self, *, result: bool = False) -> None:
        """Leave in our folder what the first machine has left; the result when all else is there."""
        found: Files = self._ray.get(self._machines[0].told.remote(self._known))
        for name, (when, data) in found.items():
            if name != "result.json" or result:
                with written_beside(self._spec.folder / name) as beside:
                    beside.write_bytes(data)
                self._known[name] = when

    def end(self) -> None:
        """Nobody works any more: those that are left end by order, or by force."""
        with suppress(self._ray.exceptions.RayError):
            self.stop()
            if self._working:
                left = [*self._working]
                self._ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS + 5)


def main(arguments: list[str]) -> int:
    """Have the spec trained; what came of it stands in its result file, as after an attempt here."""
    from dreambooth_core.training import multi_node

    spec = read_record(Path(arguments[0]), TrainingSpec) if len(arguments) == 1 else None
    if spec is None:
        print("usage: python -m dreambooth_core.training.multi_node SPEC.json", file=sys.stderr)
        return 2
    # not this module's own: the machines know it by its name, which here is __main__
    outcome = multi_node.lead(spec)
    if outcome is not None:
        write_record(spec.folder / "result.json", outcome)
    return 0


def lead(spec: TrainingSpec) -> AttemptResult | None:
    """Train on all machines; None when the ranks' own result is there, or there is none."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        with cluster() as ray, _placed(ray, spec.config.compute, _ranks(spec), asked) as machines:
            try:
                return _led(_Crew(ray, machines, spec), spec, asked)
            except ray.exceptions.RayActorError as error:
                print(f"a machine was lost: {one_line(error)}")
                return AttemptResult(attempt=spec.attempt, status="lost")
    except DreamBoothError as error:
        return AttemptResult(attempt=spec.attempt, status="failed", message=str(error))


def _led(crew: _Crew, spec: TrainingSpec, asked: threading.Event) -> AttemptResult | None:
    ends: dict[int, NodeResult] = {}
    told, since = False, 0.0
    try:
        while crew.works:
            ends |= crew.look()
            if not told and (asked.is_set() or (spec.folder / "stop").exists()):
                crew.stop()
                told = True
            crew.tell()
            since = since or (time.monotonic() if ends else 0.0)
            if since and time.monotonic() - since > END_SECONDS:
                number, ended = min(ends.items())
                raise StageFailed(
                    f"machine {number} has ended with status {ended.status}, and others have not "
                    f"within {END_SECONDS:g} s; its log ends: {ended.said}"
                )
    finally:
        crew.end()
    for number, ended in sorted(ends.items()):
        print(f"machine {number} ended with status {ended.status}\n{ended.said}")
    _bring(spec, ends[0].weights)
    crew.tell(result=True)
    return None


@contextmanager
def _placed(ray: Any, compute: Compute, ranks: int, asked: threading.Event) -> Iterator[list[Any]]:
    """An actor on each machine; raises `StageFailed` when the cluster has no room for them in time."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share = {"CPU": ranks, **({"GPU": ranks} if compute.gpu else {})}
    group = placement_group([share] * compute.nodes, strategy="STRICT_SPREAD")
    try:
        deadline, ready = time.monotonic() + 60 * compute.startup_timeout_minutes, [group.ready()]
        while not ray.wait(ready, timeout=LOOK_SECONDS)[0]:
            if asked.is_set() or time.monotonic() > deadline:
                needs = " and ".join(f"{need} {name}" for name, need in share.items())
                raise StageFailed(
                    f"the Ray cluster had no {compute.nodes} machines with {needs} each within "
                    f"compute.startup_timeout_minutes {compute.startup_timeout_minutes:g}: start them, or "
                    "set compute.nodes"
                )
        actor = ray.remote(num_cpus=ranks, num_gpus=ranks if compute.gpu else 0, max_concurrency=3)(
            NodeActor
        )
        yield [
            actor.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number)
            ).remote()
            for number in range(compute.nodes)
        ]
    finally:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(group)


def _ranks(spec: TrainingSpec) -> int:
    return spec.config.train.num_processes // spec.config.compute.nodes


def _put(spec: TrainingSpec) -> dict[str, Blob]:
    store, folder = open_store(spec.config.storage), spec.folder / "weights"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): put_blob(store, path) for path in paths}


def _bring(spec: TrainingSpec, weights: Mapping[str, Blob]) -> None:
    store = open_store(spec.config.storage)
    for name, blob in weights.items():
        with written_beside(spec.folder / "weights" / name) as beside:
            beside.write_bytes(get_blob(store, blob))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
