"""One name for a GPU model, whoever writes it."""

from __future__ import annotations

import re

_SEPARATORS = re.compile(r"[^A-Za-z0-9_.:-]+")


def device_type(product: str) -> str:
    """The canonical name: ``NVIDIA A100-SXM4-40GB`` and ``NVIDIA-A100-SXM4-40GB`` are the same."""
    return _SEPARATORS.sub("-", product).strip("-")
