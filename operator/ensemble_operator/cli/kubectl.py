"""The entry point of `kubectl ensemble`: the commands that look into a cluster."""

from __future__ import annotations

import typer

from ensemble_operator.cli.cluster_commands import add_to
from ensemble_operator.cli.main import run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look at the ensembles of a cluster.",
)
add_to(app)


def main() -> None:
    """Run `kubectl ensemble`."""
    run(app, "kubectl ensemble")


if __name__ == "__main__":
    main()
