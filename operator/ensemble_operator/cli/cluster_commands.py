"""The commands that look into a cluster, for `ensemblectl` and for `kubectl ensemble`."""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_operator.cli.output import Output

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; by default that of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig; by default the current one.")]
Form = Annotated[Output, typer.Option("--output", "-o", help="A table for people, JSON or YAML for programs.")]


def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="An ensemble; without it all.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    output: Form = Output.TABLE,
) -> None:
    """Show how ensembles of a cluster fare: conditions, devices, predicted and observed rate, last failure.

    [bold]Examples[/]

        ensemblectl status

        ensemblectl status digits -n vision -o json
    """
    from ensemble_operator.cli.cluster import connect
    from ensemble_operator.cli.cluster_status import show_status

    show_status(connect(context, namespace), name, output)


def inventory(context: Context = None, output: Form = Output.TABLE) -> None:
    """Show what a cluster has for ensembles: devices of every node, who holds them, and what is not offered, and why.

    Needs leave to read nodes and the pods of all namespaces. A static inventory is not looked at.
    """
    from ensemble_operator.cli.cluster import connect
    from ensemble_operator.cli.cluster_inventory import show_inventory

    show_inventory(connect(context, None), output)


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An ensemble.")],
    namespace: Namespace = None,
    context: Context = None,
    output: Form = Output.TABLE,
) -> None:
    """Show the plan that an ensemble of a cluster runs, with its reasons, and why what waits is waiting."""
    from ensemble_operator.cli.cluster import connect
    from ensemble_operator.cli.cluster_explain import show_explanation

    show_explanation(connect(context, namespace), name, output)


def add_to(app: typer.Typer) -> None:
    """Make these commands commands of an application."""
    for command in (status, inventory, explain):
        app.command()(command)
