"""What the supervisor keeps in mind of the processes that it looks after."""

from __future__ import annotations

from ensemble_runtime.pipeline.lives import EarlyDeaths, Life


def test_a_process_that_dies_before_the_forge_has_told_of_it_is_dead() -> None:
    lives, deaths = {"0": Life(asked=True), "1": Life(asked=True)}, EarlyDeaths()
    deaths.note(7, 9, lives)
    for role, pid, status in (("0", 8, None), ("1", 7, 9)):
        lives[role].begin(pid)
        assert deaths.of(pid, lives) == status


def test_an_adopted_orphan_is_not_taken_for_a_later_process_of_its_pid() -> None:
    lives, deaths = {"0": Life(asked=False)}, EarlyDeaths()
    deaths.note(7, 9, lives)
    lives["0"].asked = True
    deaths.note(8, 9, lives)  # of whom nobody knows yet that it is an orphan
    lives["0"].begin(7)
    assert deaths.of(7, lives) is None
    lives["0"].begin(8)
    assert deaths.of(8, lives) is None
