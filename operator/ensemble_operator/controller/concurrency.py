"""Several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable


async def gathered(most: int, jobs: Iterable[Awaitable[None]]) -> None:
    """Do all jobs, so many at once."""
    free = asyncio.Semaphore(most)

    async def one(job: Awaitable[None]) -> None:
        async with free:
            await job

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(one(job))


async def together(jobs: Iterable[Awaitable[None]]) -> None:
    """Do all jobs at once and see them all to their end, then raise the first of their errors."""
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
