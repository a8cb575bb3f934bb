"""The editions of an ensemble: which one was good, which one is given up, and which are still kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Decision
from ensemble_operator.controller.edition_record import EditionRecord
from ensemble_operator.controller.progress import Progress
from ensemble_operator.manifests.edition import Failure, asked_hash, edition_hash, edition_object
from ensemble_operator.manifests.objects import Object, Owner

_KEPT = 3
"""Editions that have served which are kept besides the present one."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What to change in the history."""

    write: tuple[Object, ...] = ()
    strike: tuple[EditionRecord, ...] = ()
    """Those to delete."""


def last_good(editions: Iterable[EditionRecord], but: str) -> EditionRecord | None:
    """The latest edition that has served, other than this one."""
    served = [e for e in editions if e.served and e.edition != but]
    return max(served, key=lambda e: (e.ordinal, e.edition), default=None)


def given_up(editions: Iterable[EditionRecord], edition: str, spec: EnsembleSpec) -> Failure | None:
    """Why an edition is not to be tried; None where it is."""
    failures = [e.failure for e in editions if e.edition == edition and e.failure is not None]
    return next((f for f in failures if f.asked == asked_hash(spec)), None)


def entries(
    owner: Owner, spec: EnsembleSpec, decision: Decision, editions: Iterable[EditionRecord], progress: Progress
) -> Entries:
    """What to write down, and what to strike out.

    Args:
        owner: The ensemble.
        spec: The spec that is carried out.
        decision: What was decided about it.
        editions: What was written down of it before.
        progress: How far the pods of the present edition are.
    """
    written = sorted(editions, key=lambda e: (-e.ordinal, e.edition))
    if decision.suspended:  # who takes an ensemble up again means that it is to be tried again
        return Entries(strike=tuple(e for e in written if not e.served))
    if decision.dry or not decision.plans:
        return Entries()
    present = edition_hash(spec, decision.digests)
    mine = next((e for e in written if e.edition == present), None)
    others = [e for e in written if e.edition != present]
    kept = [e for e in others if e.served][:_KEPT]
    kept += [e for e in others if decision.retreat is not None and e.edition == decision.retreat.edition]
    strike = tuple(e for e in others if e not in kept)
    if decision.retreat is not None:
        return Entries(strike=strike)
    asked = asked_hash(spec)
    if mine is not None and (_over(mine.failure, asked) or any(e.ordinal > mine.ordinal for e in kept)):
        return Entries(strike=(*strike, mine))  # it is tried anew: what it did once says nothing about that
    served = progress.complete or (mine is not None and mine.served)
    failure = mine.failure if mine is not None and not served else None
    if progress.late is not None and not served and failure is None and last_good(others, present) is not None:
        failure = Failure(asked, progress.late)
    if mine is not None and (mine.served, mine.failure) == (served, failure):
        return Entries(strike=strike)
    ordinal = mine.ordinal if mine is not None else 1 + max((e.ordinal for e in written), default=0)
    body = edition_object(owner, spec, decision.digests, ordinal, served=served, failure=failure)
    return Entries((body,), strike)


def _over(failure: Failure | None, asked: str) -> bool:
    """Whether it failed while something else was asked for."""
    return failure is not None and failure.asked != asked
