"""What nothing needs any more: mark what can be reached, sweep what is old and was not reached.

Everything in the store that is shared has a digest of 64 hex digits in its key, and whatever needs
it has the same digits in its text. So a record reaches all whose digits it holds, more rather than
less. It begins at the roots: versions of datasets, registered versions with all their records, and
whatever is younger than the grace, an order, a result, a checkpoint, or a lease, which is as young
as its holder's last beat. Objects of one run, of one order, or drawn by one model live and die
together.

Whoever relies on something old makes it young (`blobs.RENEW_SECONDS`), and an object's age is looked
at once more before it goes. Records go first; a blob only when none of those that are left names it.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from dreambooth_core.errors import ConfigError, NotFound
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import ListedObject, Store

_SHARED = ("blobs", "datasets", "images", "noise", "orders", "report", "runs", "samples")
_JUDGED = ("scores", "validate", "verdicts")
SWEPT = frozenset((*_SHARED, *_JUDGED))
"""First words of keys below which there may be garbage; all else stays for good."""
SILENT = frozenset(("costs", "reports"))
"""First words of keys of what stays and keeps nothing else."""
DAY = 86_400.0
"""Seconds; the shortest grace."""

_DIGITS = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_UNIT = re.compile(r"(blobs/sha256/../../|orders/[^/]+/|[^/]+/)?[^/]+")


class SweepResult(Record):
    """What a janitor found; deleted, unless it only looked."""

    deleted: bool
    objects: int
    """That were not needed."""
    bytes: int
    kinds: dict[str, int]
    """First word of their keys -> bytes."""
    kept_objects: int
    kept_bytes: int


def sweep(store: Store, grace: float, delete: bool) -> SweepResult:
    """Find what nothing needs and is older than `grace` seconds; and delete it, if that is wished.

    Raises `ConfigError` for a grace below a day.
    """
    if grace < DAY:
        raise ConfigError(
            f"a grace of {grace:g} s could take what a run is using: give a day at least"
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
    return _told(objects, [*gone, *blobs], delete)


def _units(objects: Iterable[ListedObject]) -> dict[str, list[ListedObject]]:
    """What lives and dies together, by the beginning of the keys."""
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
    waiting = [unit for unit, members in units.items() if _is_root(unit, members, oldest)]
    reached = set(waiting)
    while waiting:
        unit = waiting.pop()
        for token in _said(store, units[unit]):
            new = by_token[token] - reached
            reached |= new
            waiting.extend(new)
    return reached


def _is_root(unit: str, members: Iterable[ListedObject], oldest: float) -> bool:
    kind = unit.split("/")[0]
    version = kind == "datasets" and not unit.endswith(".json")  # a set without a name does
    return kind not in SWEPT or version or any(one.written > oldest for one in members)


def _said(store: Store, members: Iterable[ListedObject]) -> set[str]:
    """The digests that the records among them hold."""
    found: set[str] = set()
    for one in members:
        if one.key.endswith(".json") and one.key.split("/")[0] not in SILENT:
            try:
                found |= _tokens(store.get(one.key).decode(errors="replace"))
            except NotFound:  # deleted meanwhile, by its owner
                continue
    return found


def _named(store: Store, objects: Iterable[ListedObject], gone: set[str]) -> set[str]:
    """The digests that any record holds which is left, also one that came meanwhile."""
    known = {one.key: one for one in objects}
    left = [one for one in (*known.values(), *store.listed("")) if one.key not in gone]
    return _said(store, {one.key: one for one in left if not _is_blob(one.key)}.values())


def _deleted(store: Store, one: ListedObject, oldest: float) -> bool:
    """Whether it went; what was written again since it was listed stays."""
    now = store.stat(one.key)
    if now is None or now.written > oldest:
        return False
    store.delete(one.key)
    return True


def _in_order(members: Iterable[ListedObject]) -> Iterator[ListedObject]:
    """Results and manifests first: without them the rest does not count."""
    return iter(sorted(members, key=lambda one: (not one.key.endswith(".json"), one.key)))


def _told(
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
