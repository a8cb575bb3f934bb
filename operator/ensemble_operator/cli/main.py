"""The entry point of `ensemblectl`: every command with its help. What they do is imported only when they are called."""

from __future__ import annotations

import math
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ensemble_operator.cli.cluster_commands import add_to
from ensemble_operator.cli.output import Output, note
from ensemble_runtime.errors import EnsembleError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Serve an ensemble of deep networks from one manifest.\n\n"
        "`ensemblectl plan FILE` shows who would run where, `ensemblectl up FILE` serves it, `ensemblectl predict` and "
        "`ensemblectl bench` use it. `status`, `inventory` and `explain` look into a cluster. Data goes to stdout, "
        "progress and messages to stderr.\n\n"
        "Exit codes: 0 done, 2 wrong usage, 65 wrong manifest or data, 66 to 73 as the runtime's (model, digest, "
        "format, device, memory, shared memory, port, start), 74 no server, 76 refused by the server, 78 no usable "
        "kubeconfig, 130 Ctrl-C."
    ),
)


class Split(StrEnum):
    """What a partition is to be best at: `config.PartitionObjective`, which is too heavy to import for `--help`."""

    LATENCY = "Latency"
    MEMORY = "Memory"


Manifest = Annotated[Path, typer.Argument(metavar="FILE", help="The manifest: an InferenceEnsemble in YAML.")]
Address = Annotated[
    str,
    typer.Argument(
        metavar="FILE|URL",
        help="http://HOST:PORT of a server, with /v2/models/NAME behind it where it serves several; or the manifest of "
        "an ensemble that is being served on this machine, at --port.",
    ),
]
ProfileFiles = Annotated[
    list[Path] | None,
    typer.Option("--profiles", metavar="FILE", help="ModelProfiles besides those in the manifest; may be repeated."),
]
Port = Annotated[int, typer.Option("--port", min=1, max=65_535, help="Port of 127.0.0.1.")]
Form = Annotated[Output, typer.Option("--output", "-o", help="A table for people, JSON or YAML for programs.")]


@app.command()
def up(
    file: Manifest,
    port: Port = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    profiles: ProfileFiles = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the runtime's own log on stderr.")] = False,
    output: Form = Output.TABLE,
) -> None:
    """Serve an ensemble on this machine until Ctrl-C.

    Checks the manifest, fetches the models, measures what is not known of their cost, plans, starts the runtime, and
    says when it is ready and how to send a request. What `plan --measure` found to be the fastest is served as it was
    measured.

    [bold]Examples[/]

        ensemblectl up ensemble.yaml

        ensemblectl up ensemble.yaml --port 9000 -v
    """
    from ensemble_operator.cli.up import serve

    sys.exit(serve(file, host, port, profiles or [], verbose=verbose, output=output))


@app.command()
def plan(
    file: Manifest,
    profiles: ProfileFiles = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Try the best three plans live; `plan` and `up` then use the fastest.")
    ] = False,
    what_if: Annotated[
        str,
        typer.Option(
            metavar="devices=+NxTYPE",
            help="Plan as if there were N more (or with - fewer) devices of a type; several with commas between.",
        ),
    ] = "",
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="End the search after so many seconds with the best so far; it may find less then."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the plan as one HTML page with charts.")] = None,
    output: Form = Output.TABLE,
) -> None:
    """Show which device would run which member at which batch size, and how fast that is.

    The same input gives the same plan, however long that takes; --seconds or Ctrl-C end the search with the best plan
    so far. Simulated devices (`spec.devices.simulated`) need neither models nor hardware: their costs stand in
    ModelProfile documents.

    With --measure and objective Throughput, the fastest is kept under ~/.cache/ensembles (or $XDG_CACHE_HOME), and is
    what `plan` shows and `up` serves until the manifest, a model, a profile or a device changes.

    [bold]Examples[/]

        ensemblectl plan ensemble.yaml

        ensemblectl plan ensemble.yaml --measure

        ensemblectl plan ensemble.yaml --seconds 5

        ensemblectl plan ensemble.yaml --what-if devices=+2xA100,-1xcpu-1 --html plan.html

        ensemblectl plan ensemble.yaml -o json | jq .rate
    """
    from ensemble_operator.cli.plan import show_plan

    change = _device_changes(what_if)
    if measure and change:
        raise typer.BadParameter(
            "devices that are not there cannot be measured; leave out --measure", param_hint="--what-if"
        )
    limit = math.inf if seconds is None else seconds
    show_plan(file, profiles or [], measure=measure, seconds=limit, change=change, page=html, output=output)


@app.command()
def profile(
    file: Manifest,
    profiles: ProfileFiles = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again what was measured before.")] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Also how members get along that the plan puts together on a device.")
    ] = False,
    output: Form = Output.TABLE,
) -> None:
    """Measure what each member costs on each type of device here, at each batch size.

    Results are kept under ~/.cache/ensembles (or $XDG_CACHE_HOME) and used by `plan` and `up`. JSON and YAML give
    ModelProfile documents, which can be edited, put into a manifest or given to --profiles.

    [bold]Examples[/]

        ensemblectl profile ensemble.yaml

        ensemblectl profile ensemble.yaml --pairs

        ensemblectl profile ensemble.yaml --refresh -o yaml > profiles.yaml
    """
    from ensemble_operator.cli.profile import show_profiles

    show_profiles(file, profiles or [], refresh=refresh, pairs=pairs, output=output)


@app.command()
def partition(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The model.")],
    objective: Annotated[
        Split,
        typer.Option(case_sensitive=False, help="The least time, or the least memory on the first device in time."),
    ] = Split.LATENCY,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", min=0.001, help="Most that a batch may take; Memory needs it.")
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="A,B", help="Two devices: gpu, cpu, or names such as cpu0; the scarce one first.")
    ] = "cpu,cpu",
    simulated_gpu: Annotated[
        str | None,
        typer.Option(
            "--simulated-gpu",
            metavar="COSTS",
            help="The first device is a GPU that is not there, e.g. speedup=8,LSTM=3,launchUs=8,latencyUs=15,"
            "gibPerSecond=12: times faster than a core, by operator type, and what launches and copies cost.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=65_536, help="Rows of a batch.")] = 1,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=N,N", help="An input's shape, where the model leaves more open than the rows."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the schedule as one HTML page with charts.")] = None,
    output: Form = Output.TABLE,
) -> None:
    """Show how two devices would share one recurrent ONNX model, operator by operator.

    Measures every operator on both, opens recurrent layers into chunks of time steps that overlap, and schedules them.
    Either device alone is shown beside it, with the curve of memory on the first device against latency.

    [bold]Examples[/]

        ensemblectl partition model.onnx

        ensemblectl partition model.onnx --objective memory --latency-ms 20 --simulated-gpu speedup=4

        ensemblectl partition model.onnx --devices gpu,cpu --shape x=1,64,256 --html partition.html
    """
    from ensemble_operator.cli.partition import Question, shapes, show_partition
    from ensemble_runtime.config import Partition, PartitionObjective

    if objective is Split.MEMORY and latency_ms is None:
        raise typer.BadParameter("objective Memory needs --latency-ms", param_hint="--objective")
    names = devices.split(",")
    if len(names) != 2:
        raise typer.BadParameter(f"got '{devices}', expected two, e.g. gpu,cpu", param_hint="--devices")
    wanted = Partition(objective=PartitionObjective[objective.name], latency_ms=latency_ms)
    question = Question(file, wanted, (names[0], names[1]), simulated_gpu, rows, shapes(shape or []))
    show_partition(question, html=html, output=output)


@app.command()
def predict(
    address: Address,
    data: Annotated[
        Path,
        typer.Option(help="Rows: .npy (one input), .npz (an array an input), or .json (a list, or lists by input)."),
    ],
    port: Port = 8000,
    rows: Annotated[int, typer.Option(min=1, max=65_536, help="Most rows of one request.")] = 256,
    members: Annotated[bool, typer.Option("--members", help="Also what each member put out.")] = False,
    disagreement: Annotated[bool, typer.Option("--disagreement", help="Also how much the members disagree.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the outputs to an .npz instead of stdout.")] = None,
    output: Form = Output.TABLE,
) -> None:
    """Predict the rows of a file with an ensemble that is being served.

    [bold]Examples[/]

        ensemblectl predict ensemble.yaml --data images.npy

        ensemblectl predict http://127.0.0.1:8000 --data rows.json -o json

        ensemblectl predict http://127.0.0.1:8000 --data rows.npz --members --save outputs.npz
    """
    from ensemble_operator.cli.predict import show_predictions

    wanted = {name: True for name, flag in (("return_members", members), ("disagreement", disagreement)) if flag}
    show_predictions(address, port, data, rows_per_request=rows, parameters=wanted, save=save, output=output)


@app.command()
def bench(
    address: Address,
    port: Port = 8000,
    connections: Annotated[int, typer.Option("--connections", "-c", min=1, max=4096, help="Requests in flight.")] = 16,
    rows: Annotated[int, typer.Option("--rows", "-r", min=1, max=65_536, help="Rows of each request.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, max=3600, help="How long to measure.")] = 5.0,
    output: Form = Output.TABLE,
) -> None:
    """Put load on an ensemble that is being served, and report throughput and latency.

    Each connection sends its next request when it has the answer to the last. A fifth of the time is added before, to
    warm up. Rows are random.

    [bold]Examples[/]

        ensemblectl bench http://127.0.0.1:8000

        ensemblectl bench http://127.0.0.1:8000 -c 8 -r 64 -s 10 -o json
    """
    from ensemble_operator.cli.bench import show_load

    show_load(address, port, connections=connections, rows=rows, seconds=seconds, output=output)


add_to(app)


def _device_changes(text: str) -> dict[str, int]:
    """`devices=+2xA100,-1xT4` as numbers by type."""
    found = [re.fullmatch(r"([+-]\d{1,4})x(\S+)", part) for part in text.removeprefix("devices=").split(",") if part]
    if text and (not text.startswith("devices=") or not found or not all(found)):
        raise typer.BadParameter(f"got '{text}', expected e.g. devices=+2xA100,-1xT4", param_hint="--what-if")
    return {match[2]: int(match[1]) for match in found if match}


def run(application: typer.Typer, name: str) -> None:
    """Run an application; failures are told in one line and an exit code."""
    try:
        application()
    except EnsembleError as error:
        note(f"{name}: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Run `ensemblectl`."""
    run(app, "ensemblectl")


if __name__ == "__main__":
    main()
