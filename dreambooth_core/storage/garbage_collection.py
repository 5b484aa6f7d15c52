"""Garbage collection of the store: mark and sweep.

Every shared object has a digest of 64 hex digits in its key, and a record that needs it contains the
digest in its text; so a record reaches all objects whose digests it contains. Roots are dataset
versions, everything outside `SWEPT`, such as registered versions, and all objects younger than the
grace; a lease is as young as its last heartbeat. The objects of one run, of one sampling job or of one
model's samples form a unit, kept or deleted together.

An old object is renewed when it is used (`blobs.RENEW_SECONDS`), and ages are checked again just
before deletion. Records are deleted first, and a blob only if no remaining record contains its digest.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from dreambooth_core.errors import ConfigError, NotFound
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import ListedObject, Store

_SHARED = ("blobs", "datasets", "images", "jobs", "noise", "report", "runs", "samples")
_OLD = ("orders",)  # sampling jobs of earlier versions
_EVALUATION = ("scores", "validate", "verdicts")
SWEPT = frozenset((*_SHARED, *_EVALUATION, *_OLD))
"""First segments of keys that may be deleted; all other objects are kept."""
NO_REFERENCES = frozenset(("costs", "reports"))
"""First segments of keys whose records are no references."""
DAY = 86_400.0
"""Seconds; the shortest grace."""

_DIGITS = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_UNIT = re.compile(r"(blobs/sha256/../../|(?:jobs|orders)/[^/]+/|[^/]+/)?[^/]+")


class SweepResult(Record):
    """Objects that nothing needs, and whether they were deleted."""

    deleted: bool
    objects: int
    """Number of unneeded objects."""
    bytes: int
    kinds: dict[str, int]
    """First segment of their keys -> bytes."""
    kept_objects: int
    kept_bytes: int


def sweep(store: Store, grace: float, delete: bool) -> SweepResult:
    """Find the unneeded objects older than `grace` seconds, and delete them if `delete`.

    Raises `ConfigError` for a grace below a day.
    """
    if grace < DAY:
        raise ConfigError(
            f"a grace of {grace:g} s could delete objects in use by a run: give at least a day, {DAY:g} s"
        )
    oldest = time.time() - grace
    objects = list(store.listed(""))
    units = _units(objects)
    reached = _reached(store, units, oldest)
    lost = [unit for unit in units if unit not in reached]
    gone = [one for unit in lost if not _is_blob(unit) for one in _in_order(units[unit])]
    if delete:
        gone = [one for one in gone if _deleted(store, one, oldest)]
    named = _named(store, objects, {one.key for one in gone})
    blobs = [
        one for unit in lost if _is_blob(unit) and not _tokens(unit) & named for one in units[unit]
    ]
    if delete:
        blobs = [one for one in blobs if _deleted(store, one, oldest)]
    return _result(objects, [*gone, *blobs], delete)


def _units(objects: Iterable[ListedObject]) -> dict[str, list[ListedObject]]:
    """Prefix of the keys -> the objects that are kept or deleted together."""
    units = defaultdict(list)
    for one in objects:
        match = _UNIT.match(one.key)
        units[match.group() if match else one.key].append(one)
    return dict(units)


def _reached(store: Store, units: Mapping[str, list[ListedObject]], oldest: float) -> set[str]:
    by_token = defaultdict(set)
    for unit in units:
        for token in _tokens(unit):
            by_token[token].add(unit)
    todo = [unit for unit, members in units.items() if _is_root(unit, members, oldest)]
    reached = set(todo)
    while todo:
        unit = todo.pop()
        for token in _references(store, units[unit]):
            new = by_token[token] - reached
            reached |= new
            todo.extend(new)
    return reached


def _is_root(unit: str, members: Iterable[ListedObject], oldest: float) -> bool:
    kind = unit.split("/")[0]
    version = kind == "datasets" and not unit.endswith(".json")  # an unnamed photo set
    return kind not in SWEPT or version or any(one.written > oldest for one in members)


def _references(store: Store, members: Iterable[ListedObject]) -> set[str]:
    """The digests that the records among these objects contain."""
    found: set[str] = set()
    for one in members:
        if one.key.endswith(".json") and one.key.split("/")[0] not in NO_REFERENCES:
            try:
                found |= _tokens(store.get(one.key).decode(errors="replace"))
            except NotFound:  # deleted meanwhile by another process
                continue
    return found


def _named(store: Store, objects: Iterable[ListedObject], gone: set[str]) -> set[str]:
    """The digests in all remaining records, including those written since the listing."""
    known = {one.key: one for one in objects}
    left = [one for one in (*known.values(), *store.listed("")) if one.key not in gone]
    return _references(store, {one.key: one for one in left if not _is_blob(one.key)}.values())


def _deleted(store: Store, one: ListedObject, oldest: float) -> bool:
    """Delete the object unless it was rewritten since the listing; whether it was deleted."""
    now = store.stat(one.key)
    if now is None or now.written > oldest:
        return False
    store.delete(one.key)
    return True


def _in_order(members: Iterable[ListedObject]) -> Iterator[ListedObject]:
    """Results and manifests first: without them the other objects are ignored."""
    return iter(sorted(members, key=lambda one: (not one.key.endswith(".json"), one.key)))


def _result(
    objects: Iterable[ListedObject], gone: Iterable[ListedObject], deleted: bool
) -> SweepResult:
    kinds: Counter[str] = Counter()
    lost = {one.key: one.size for one in gone}
    for key, size in lost.items():
        kinds[key.split("/")[0]] += size
    kept = [one for one in objects if one.key not in lost]
    return SweepResult(
        deleted=deleted,
        objects=len(lost),
        bytes=sum(lost.values()),
        kinds=dict(sorted(kinds.items())),
        kept_objects=len(kept),
        kept_bytes=sum(one.size for one in kept),
    )


def _tokens(text: str) -> set[str]:
    return set(_DIGITS.findall(text))


def _is_blob(unit: str) -> bool:
    return unit.startswith("blobs/")
