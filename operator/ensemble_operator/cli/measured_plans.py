"""The plans that `plan --measure` found to be the fastest, kept beside the profiles for when the same is asked again.

A plan is kept under a hash of all that it depends on: members, their digests and profiles, what is served and how, and
the devices. Whatever changes of these, the next plan is made by prediction, as if nothing had been measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import to_json

from ensemble_operator.api.objective import Goal
from ensemble_operator.cli.output import figure, note
from ensemble_operator.cli.preparing import Prepared
from ensemble_operator.profiles.store import default_root, replace_file
from ensemble_runtime.config import BatchSize, Schema
from ensemble_runtime.errors import EnsembleError

if TYPE_CHECKING:
    from ensemble_operator.planner.plan import Plan

_SERVED = {"members", "inputs", "outputs", "combination", "objective", "serving"}


@dataclass(frozen=True)
class Measured:
    """A plan, and what it was seen to reach."""

    plan: Plan
    rate: float
    """Rows per second."""


class _Cell(Schema):
    node: str
    device: str
    member: str
    batch_size: BatchSize


class _Kept(Schema):
    rate: float
    split: tuple[str, ...] | None
    """Members that use both devices of a pair; None where no pair is a device."""
    cells: tuple[_Cell, ...]


def keep(prepared: Prepared, measured: Measured) -> bool:
    """Note a plan as the one to serve; returns whether it was: only where the fastest is what the manifest asks for."""
    plan = measured.plan
    if plan.problem.objective.goal is not Goal.THROUGHPUT:
        return False
    cells = tuple(_Cell(node=d.node, device=d.name, member=name, batch_size=batch) for d, name, batch in plan.cells)
    split = tuple(sorted(plan.problem.split)) if plan.problem.companions else None
    path = _path(prepared)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, _Kept(rate=measured.rate, split=split, cells=cells).model_dump_json(by_alias=True))
    except OSError as error:
        note(f"the plan cannot be kept: {error.strerror}: {error.filename}")
        return False
    return True


def kept(prepared: Prepared) -> Measured | None:
    """The plan that was the fastest when `--measure` asked the same, which is told on stderr; None if it never did."""
    from ensemble_operator.planner.given import given_plan
    from ensemble_operator.planner.pairs import with_pairs

    path = _path(prepared)
    try:
        noted = _Kept.model_validate_json(path.read_bytes())
        problem = prepared.problem
        if noted.split is not None:
            problem = with_pairs(problem, frozenset(noted.split)) or problem
        cells = {(cell.node, cell.device, cell.member): cell.batch_size for cell in noted.cells}
        found = Measured(given_plan(problem, cells), noted.rate)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, EnsembleError) as error:
        note(f"the plan that was measured earlier cannot be used ({path}): {str(error).splitlines()[0]}")
        return None
    note(
        f"plan {found.plan.digest}, which `ensemblectl plan --measure` found to be the fastest: "
        f"{figure(found.rate)} rows/s measured"
    )
    return found


def _path(prepared: Prepared) -> Path:
    return default_root().parent / "plans" / f"{hashlib.sha256(to_json(_facts(prepared))).hexdigest()}.json"


def _facts(prepared: Prepared) -> list[Any]:
    """All that a plan, and what it reaches, depends on."""
    problem = prepared.problem
    return [
        prepared.ensemble.spec.model_dump(mode="json", include=_SERVED),
        sorted(prepared.digests.items()),
        problem.devices,
        [sorted(profiles.items()) for member in problem.members for profiles in (member.profiles, member.pairs)],
        sorted(problem.interference.items()),
    ]
