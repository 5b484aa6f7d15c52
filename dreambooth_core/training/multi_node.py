"""An attempt on several machines: `python -m dreambooth_core.training.multi_node SPEC.json`.

A Ray placement group puts an actor on each of `compute.nodes` machines; each actor runs torchrun
with its machine's ranks in a work folder of its own. This process forwards a stop request to them
and copies rank 0's progress, curves and result to the spec's folder. If a machine dies, it ends the
others and reports status `lost`; the stage then starts the next attempt from the last checkpoint in
the store.
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
from dreambooth_core.storage.blobs import get_blob, put_folder
from dreambooth_core.storage.records import Blob
from dreambooth_core.storage.stores import open_store, written_beside
from dreambooth_core.training import checkpoints, launcher
from dreambooth_core.training.spec import (
    GRACE_SECONDS,
    PROGRESS_FILES,
    VALIDATION,
    AttemptResult,
    TrainingSpec,
    read_record,
    write_record,
)

POLL_SECONDS = 0.2
END_SECONDS = 60.0
"""Limit for all machines to end after the first has ended."""
Files = Mapping[str, tuple[int, bytes]]
"""Path below the run's folder -> modification time in ns, and content."""


class NodeTask(NamedTuple):
    """Arguments of one machine's torchrun."""

    node: int
    nodes: int
    ranks: int
    """On this machine."""
    first: str
    """ADDRESS:PORT of node 0's torchrun."""


class NodeResult(NamedTuple):
    """Result of one machine's torchrun."""

    status: int
    log_tail: str
    weights: dict[str, Blob]
    """Path -> blob in the store; on node 0 after a completed training, else empty."""


class NodeActor:
    """Ray actor of one machine; its methods run concurrently."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._stop = threading.Event()

    def address(self) -> str:
        """This machine's address and a free port, as ADDRESS:PORT."""
        import ray

        own = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((own, 0))
            return f"{own}:{free.getsockname()[1]}"

    def train(self, document: str, task: NodeTask) -> NodeResult:
        """Run this machine's ranks of the spec to their end."""
        try:
            spec = self._prepared(TrainingSpec.model_validate_json(document))
            return self._run(spec, task)
        except DreamBoothError as error:
            return NodeResult(1, str(error), {})

    def _run(self, spec: TrainingSpec, task: NodeTask) -> NodeResult:
        own, log = self.address().rpartition(":")[0], spec.folder / "train.log"
        log.unlink(missing_ok=True)
        arguments = (task.ranks, task.node, task.nodes, task.first)
        with supervised(
            launcher.node_command(spec.folder / "spec.json", *arguments),
            env=launcher.node_environment(task.ranks, own),
            log=log,
            grace=GRACE_SECONDS,
        ) as ranks:
            while ranks.poll() is None:
                if self._stop.wait(POLL_SECONDS):
                    ranks.terminate()
                    self._stop.clear()
        result = read_record(spec.folder / "result.json", AttemptResult)
        weights = {}
        if task.node == 0 and result is not None and result.status == "done":
            weights = put_folder(open_store(spec.config.storage), spec.folder / "weights")
        return NodeResult(ranks.returncode, last_lines(log), weights)

    def changed_files(self, known: Mapping[str, int]) -> Files:
        """Progress, curves, result and contact sheets that differ from `known`, path -> time in ns."""
        if self._folder is None:
            return {}
        paths = [
            *(self._folder / name for name in PROGRESS_FILES),
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
        """Send SIGTERM to the ranks, which then save a checkpoint and end."""
        self._stop.set()

    def _prepared(self, spec: TrainingSpec) -> TrainingSpec:
        """The spec with this machine's paths, in a folder without an earlier attempt's files.

        Raises `StageFailed` if the checkpoint to resume from is missing.
        """
        paths = paths_here(spec.config.paths)
        folder = paths.work / "runs" / spec.folder.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in PROGRESS_FILES:
            (folder / name).unlink(missing_ok=True)
        resume, saved = None, folder / "checkpoints"
        # local checkpoints may be newer than the one that all machines resume from
        shutil.rmtree(saved, ignore_errors=True)
        if spec.resume is not None:
            store = open_store(spec.config.storage)
            resume = checkpoints.fetch_step(store, spec.prefix, saved, spec.resume_step)
            if resume is None:
                raise StageFailed(
                    f"the checkpoint of step {spec.resume_step} is missing in {spec.prefix} of the "
                    "store: run again"
                )
        config = spec.config.model_copy(update={"paths": paths})
        local = spec.model_copy(update={"config": config, "folder": folder, "resume": resume})
        write_record(folder / "spec.json", local)
        self._folder = folder
        return local


class _Nodes:
    """The actors of an attempt and their pending results."""

    def __init__(self, ray: Any, actors: list[Any], spec: TrainingSpec) -> None:
        self._ray, self._actors, self._spec = ray, actors, spec
        self._known: dict[str, int] = {}
        config = spec.config
        first = ray.get(actors[0].address.remote())
        ranks, document = _ranks(spec), spec.model_dump_json()
        self._pending = {
            actor.train.remote(document, NodeTask(node, config.compute.nodes, ranks, first)): node
            for node, actor in enumerate(actors)
        }

    def poll(self) -> dict[int, NodeResult]:
        """Results of nodes that ended since the last call; raises Ray's error if one died."""
        ready, _ = self._ray.wait([*self._pending], num_returns=1, timeout=POLL_SECONDS)
        return {self._pending.pop(each): self._ray.get(each) for each in ready}

    @property
    def running(self) -> bool:
        return bool(self._pending)

    def stop(self) -> None:
        for actor in self._actors:
            actor.stop.remote()

    def copy_files(self, *, result: bool = False) -> None:
        """Copy changed files of node 0 to the spec's folder; the result file only if `result`."""
        found: Files = self._ray.get(self._actors[0].changed_files.remote(self._known))
        for name, (when, data) in found.items():
            if name != "result.json" or result:
                with written_beside(self._spec.folder / name) as temporary:
                    temporary.write_bytes(data)
                self._known[name] = when

    def shut_down(self) -> None:
        """Stop nodes that are still running, and wait; removing their placement group kills the rest."""
        with suppress(self._ray.exceptions.RayError):
            self.stop()
            if self._pending:
                left = [*self._pending]
                self._ray.wait(left, num_returns=len(left), timeout=GRACE_SECONDS + 5)


def main(arguments: list[str]) -> int:
    """Train the spec; the result file is the same as that of an attempt on one machine."""
    from dreambooth_core.training import multi_node

    spec = read_record(Path(arguments[0]), TrainingSpec) if len(arguments) == 1 else None
    if spec is None:
        print("usage: python -m dreambooth_core.training.multi_node SPEC.json", file=sys.stderr)
        return 2
    # through the import: actors unpickle classes by module name, which in this process is __main__
    result = multi_node.run(spec)
    if result is not None:
        write_record(spec.folder / "result.json", result)
    return 0


def run(spec: TrainingSpec) -> AttemptResult | None:
    """Train on all machines; None if rank 0 wrote the result file, or no rank did."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        with cluster() as ray, _actors(ray, spec.config.compute, _ranks(spec), stop) as actors:
            try:
                return _wait(_Nodes(ray, actors, spec), spec, stop)
            except ray.exceptions.RayActorError as error:
                print(f"a machine died: {one_line(error)}")
                return AttemptResult(attempt=spec.attempt, status="lost")
    except DreamBoothError as error:
        return AttemptResult(attempt=spec.attempt, status="failed", message=str(error))


def _wait(nodes: _Nodes, spec: TrainingSpec, stop: threading.Event) -> AttemptResult | None:
    ends: dict[int, NodeResult] = {}
    stopped, since = False, 0.0
    try:
        while nodes.running:
            ends |= nodes.poll()
            if not stopped and (stop.is_set() or (spec.folder / "stop").exists()):
                nodes.stop()
                stopped = True
            nodes.copy_files()
            since = since or (time.monotonic() if ends else 0.0)
            if since and time.monotonic() - since > END_SECONDS:
                node, ended = min(ends.items())
                raise StageFailed(
                    f"machine {node} ended with status {ended.status}, and others did not within "
                    f"{END_SECONDS:g} s; its log ends: {ended.log_tail}"
                )
    finally:
        nodes.shut_down()
    for node, ended in sorted(ends.items()):
        print(f"machine {node} ended with status {ended.status}\n{ended.log_tail}")
    _download_weights(spec, ends[0].weights)
    nodes.copy_files(result=True)
    return None


@contextmanager
def _actors(ray: Any, compute: Compute, ranks: int, stop: threading.Event) -> Iterator[list[Any]]:
    """An actor on each machine; raises `StageFailed` if the cluster has no resources in time."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share = {"CPU": ranks, **({"GPU": ranks} if compute.gpu else {})}
    group = placement_group([share] * compute.nodes, strategy="STRICT_SPREAD")
    try:
        deadline, ready = time.monotonic() + 60 * compute.startup_timeout_minutes, [group.ready()]
        while not ray.wait(ready, timeout=POLL_SECONDS)[0]:
            if stop.is_set() or time.monotonic() > deadline:
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
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, node)
            ).remote()
            for node in range(compute.nodes)
        ]
    finally:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(group)


def _ranks(spec: TrainingSpec) -> int:
    return spec.config.train.num_processes // spec.config.compute.nodes


def _download_weights(spec: TrainingSpec, weights: Mapping[str, Blob]) -> None:
    store = open_store(spec.config.storage)
    for name, blob in weights.items():
        with written_beside(spec.folder / "weights" / name) as temporary:
            temporary.write_bytes(get_blob(store, blob))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
