"""What crosses between the host's memory and a GPU's in a batch, and when: told once for each shape, before any batch.

ONNX Runtime copies an input to the device that reads it when it is bound, not when it is computed with: so a run on a
GPU is bound to the GPU's own memory, and what comes from the host is copied there before the run that first reads it.
Each byte goes up once, however many runs read it: an input when the batch begins, what the other device makes as soon
as the GPU's process hears of it, though behind what is needed first. It comes down once, right after the run that made
it; what only the GPU writes and reads never crosses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.partition.memory import Span
from ensemble_runtime.partition.runs import Run

GPU = 0
"""The device whose runs are looked at; the other one's memory is the host's."""


@dataclass(frozen=True)
class Visit:
    """A run on the GPU."""

    on_host: frozenset[str]
    """The inputs that are read in the host's memory; all others, and all outputs, are in the GPU's."""
    reads_host: bool
    """Whether a run on the GPU makes one of these, which has to have come down before."""
    before: int
    """How many of all copies to the GPU are queued before it."""
    needs: int
    """How many of them must have arrived; 0: no more than for the runs before it."""
    behind: int
    """How many are queued right behind it: what came with it, and is for later runs."""
    down: tuple[Span, ...]
    """To be copied to the host afterwards."""


@dataclass(frozen=True)
class Crossings:
    """What crosses in a program."""

    visits: Mapping[int, Visit]
    """By run."""
    up: tuple[Span, ...]
    """To be copied to the GPU in each batch, in this order."""
    begin: int
    """How many of these when a batch begins."""
    once: tuple[Span, ...]
    """What never changes, to be copied to the GPU before the first batch."""
    places: tuple[Span, ...]
    """What has to lie together in the GPU's memory; no byte is in two of them."""


def crossings(
    runs: Sequence[Run],
    span: Callable[[str], Span],
    on_host: Mapping[int, Collection[str]],
    given: Iterable[str],
    taken: Iterable[str],
) -> Crossings:
    """Tell what crosses.

    Args:
        runs: In the order in which one device alone could compute them.
        span: Where a tensor is.
        on_host: By run on the GPU, the inputs that its session reads in the host's memory all the same, such as shapes.
        given: Tensors that the host writes before each batch.
        taken: Tensors that the host reads after each batch.

    Raises:
        ModelInvalidError: Tensors lie so that they cannot be on a GPU.
    """
    own = [i for i, run in enumerate(runs) if run.device == GPU]
    others = [run for run in runs if run.device != GPU]
    reads = {i: [x for x in runs[i].inputs if x not in on_host[i]] for i in own}
    here = _by_buffer(span(x) for i in own for x in reads[i])
    host = [*taken, *(x for run in others for x in run.inputs), *(x for i in own for x in on_host[i])]
    elsewhere = _by_buffer(map(span, host))
    # What a batch begins with goes up as a whole: one copy is quicker than one for each of its parts.
    begins = {span(x).buffer for x in given}
    whole = {name: _hull(here[name]) for name in begins.intersection(here) if len(_places(here[name])) == 1}
    made_elsewhere = {span(y).buffer for run in others for y in run.outputs}
    present: dict[str, list[Span]] = {}
    touched: list[Span] = []
    left: dict[str, list[Span]] = {}
    once: list[Span] = []
    # By when they can go up (None: when a batch begins, or before a run), the run that needs them first, and what.
    up: list[tuple[int | None, int, Span]] = []
    came = _came(runs, span)
    there: dict[int, tuple[bool, tuple[Span, ...]]] = {}
    for i in own:
        for x in reads[i]:
            wanted = whole.get(span(x).buffer, span(x))
            for lacking in _without(wanted, present.setdefault(wanted.buffer, [])):
                if wanted.buffer in begins:
                    up.append((None, i, lacking))
                elif wanted.buffer in made_elsewhere:
                    up.append((came(lacking), i, lacking))
                else:
                    once.append(lacking)
                present[wanted.buffer].append(lacking)
            touched.append(wanted)
        for made in map(span, runs[i].outputs):
            present.setdefault(made.buffer, []).append(made)
            touched.append(made)
        down = tuple(y for y in map(span, runs[i].outputs) if y.size and _overlaps(y, elsewhere))
        there[i] = any(_overlaps(span(x), left) for x in on_host[i]), down
        for made in down:
            left.setdefault(made.buffer, []).append(made)
    order = sorted(up, key=lambda copy: (-1 if copy[0] is None else copy[0], copy[1]))
    visits, awaited = {}, 0
    for i in own:
        needed = max((count for count, copy in enumerate(order, 1) if copy[1] == i), default=0)
        visits[i] = Visit(
            on_host=frozenset(on_host[i]),
            reads_host=there[i][0],
            before=sum(when is None or when < i or (when, first) == (i, i) for when, first, _ in order),
            needs=needed if needed > awaited else 0,
            behind=sum(when is None or when <= i for when, _, _ in order),
            down=there[i][1],
        )
        awaited = max(awaited, needed)
    places = (place for spans in _by_buffer(touched).values() for place in _places(spans))
    begin = sum(when is None for when, _, _ in order)
    return Crossings(visits, tuple(copy[2] for copy in order), begin, tuple(once), tuple(places))


def _came(runs: Sequence[Run], span: Callable[[str], Span]) -> Callable[[Span], int]:
    """Tells before which run on the GPU it is known that the other device has made something."""
    made = [(i, span(y)) for i, run in enumerate(runs) if run.device != GPU for y in run.outputs]
    gates, known = [], -1
    for i, run in enumerate(runs):
        if run.device == GPU:
            known = max(known, -1 if run.waits is None else run.waits)
            gates.append((known, i))

    def came(wanted: Span) -> int:
        last = max(i for i, x in made if _overlaps(x, {wanted.buffer: [wanted]}))
        return next(i for known, i in gates if known >= last)

    return came


_LOAD = 16
"""Bytes that a thread of a GPU loads at once. Kernels may rely on tensors that begin at a multiple, as all do that ONNX
Runtime allocates; one that begins elsewhere ends the process's use of the GPU."""


def _places(spans: Sequence[Span]) -> list[Span]:
    """Some tensors of a buffer as one place, or a place for each where one would not begin as kernels want it.

    Raises:
        ModelInvalidError: Some lie within others, and not as kernels want it.
    """
    hull = _hull(spans)
    apart = sorted({span for span in spans if span.size}, key=lambda span: span.start)
    if all((span.start - hull.start) % _LOAD == 0 for span in apart):
        return [hull]
    if any(after.start < before.stop for before, after in pairwise(apart)):
        raise ModelInvalidError(f"a part of '{hull.buffer}' begins where no kernel of a GPU can be sure to read it")
    return apart


def _by_buffer(spans: Iterable[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.buffer, []).append(span)
    return found


def _hull(spans: Sequence[Span]) -> Span:
    """The bytes of one buffer from the first of some spans to the last."""
    return Span(spans[0].buffer, min(s.start for s in spans), max(s.stop for s in spans))


def _overlaps(span: Span, others: Mapping[str, Sequence[Span]]) -> bool:
    return any(s.start < span.stop and span.start < s.stop for s in others.get(span.buffer, ()))


def _without(span: Span, others: Iterable[Span]) -> list[Span]:
    """What of a span is in none of some others of the same buffer."""
    found, start = [], span.start
    for other in sorted(others, key=lambda s: s.start):
        if other.start > start:
            found.append(Span(span.buffer, start, min(other.start, span.stop)))
        start = max(start, other.stop)
    found.append(Span(span.buffer, start, span.stop))
    return [s for s in found if s.size > 0]
