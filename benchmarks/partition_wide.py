"""The same as `partition.py` for models that are wide: two directions, an encoder and a decoder, several branches."""

from __future__ import annotations

from common import Effort, Report, main
from partition import measured
from recurrent_models import wide


def partition_wide(effort: Effort) -> Report:
    """Every wide model of the list: times of all sides in turn, and what they come to."""
    return measured(wide(), effort)


if __name__ == "__main__":
    main(partition_wide, seconds=0.25)
