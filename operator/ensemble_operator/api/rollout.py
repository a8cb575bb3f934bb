"""How a changed ensemble takes the place of the one that serves, and whose devices it may take."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from ensemble_runtime.config import Schema


class Mode(StrEnum):
    """Whether a plan is carried out."""

    SERVE = "Serve"
    PLAN_ONLY = "PlanOnly"


class Preemption(StrEnum):
    """Whose devices an ensemble may take when none are free."""

    NEVER = "Never"
    LOWER_PRIORITY = "LowerPriority"


class Strategy(StrEnum):
    """What happens to the pods that serve when their ensemble or its plan changes."""

    ROLLING_UPDATE = "RollingUpdate"
    RECREATE = "Recreate"
    ON_DELETE = "OnDelete"


class Rollout(Schema):
    """How a change is carried out."""

    strategy: Strategy = Field(
        Strategy.ROLLING_UPDATE,
        description=(
            "RollingUpdate: the new pods start beside the old, which go when the new are ready. "
            "Recreate: the old go first. OnDelete: new ones start where somebody deletes old ones."
        ),
    )
    progress_timeout_seconds: int = Field(
        900,
        ge=1,
        le=86_400,
        description=(
            "A change of which no pod becomes ready for so long is given up: what served before serves on, or again."
        ),
    )
