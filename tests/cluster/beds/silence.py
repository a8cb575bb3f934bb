"""Nothing comes from a range of addresses, and what is sent there gets lost: as when their machine is off."""

from __future__ import annotations

import subprocess


def fall_silent(addresses: str) -> None:
    """From now on, nobody hears of these addresses."""
    for rule in _rules(addresses):
        subprocess.run(["iptables", "--wait", "--table", "raw", "--insert", "PREROUTING", *rule], check=True)
    # When the pods' own routes are gone, what is sent to them is lost on its way instead of being refused.
    subprocess.run(["ip", "route", "replace", addresses, "dev", "lo"], check=True)


def speak_again(addresses: str) -> None:
    """As before `fall_silent`; fine where that was not called."""
    for rule in _rules(addresses):
        subprocess.run(["iptables", "--wait", "--table", "raw", "--delete", "PREROUTING", *rule], capture_output=True)
    subprocess.run(["ip", "route", "delete", addresses, "dev", "lo"], capture_output=True)


def _rules(addresses: str) -> list[list[str]]:
    return [[way, addresses, "--jump", "DROP"] for way in ("--source", "--destination")]
