"""The runtime's one-shot commands, run for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_operator.inventory.runtime_command import RuntimeCommandError, records


def test_a_failure_bears_the_runtimes_own_words_and_exit_code(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(RuntimeCommandError) as caught:
        list(records("serve", str(config)))
    assert caught.value.exit_code == 65
    assert "members" in str(caught.value)
    assert "ensemble-runtime: " not in str(caught.value)


def test_a_command_that_is_not_known_is_a_failure_too() -> None:
    with pytest.raises(RuntimeCommandError) as caught:
        list(records("dance"))
    assert caught.value.exit_code == 2
    assert "dance" in str(caught.value)
