"""Kubernetes' quantities, such as 250m, 1.5, 16Gi or 1e3, as whole numbers."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache

_FORM = re.compile(r"([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|(n|u|m|k|Ki|Mi|Gi|Ti|Pi|Ei|M|G|T|P|E))?")
_SCALE = {
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in zip(range(-3, 0), "num", strict=True)},
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("kMGTPE", 1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


@lru_cache(maxsize=4096)
def whole(text: str | int, *, per: int = 1) -> int:
    """A quantity as a whole number, rounded up as Kubernetes does.

    Args:
        text: The quantity; some serialisers write plain numbers as such.
        per: Parts of one: 1000 gives the thousandths that CPUs are counted in.

    Raises:
        ValueError: It is no quantity.
    """
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise ValueError(f"got '{text}', expected a quantity such as 250m, 2 or 16Gi")
    digits, exponent, suffix = match.groups()
    return math.ceil(Decimal(digits + (exponent or "")) * (_SCALE[suffix] if suffix else 1) * per)
