"""`ensemblectl up`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble_operator.cli.fetching import fetch_missing, loaded_by
from ensemble_operator.cli.measured_plans import kept
from ensemble_operator.cli.output import Output, emit, note
from ensemble_operator.cli.planning import best_plans, plan_table
from ensemble_operator.cli.preparing import prepare
from ensemble_operator.cli.runtime_process import RuntimeProcess, Stopped, require_free_port, stopped_by_sigterm
from ensemble_operator.manifests.runtime_config import runtime_config
from ensemble_runtime.config import Listen, RuntimeConfig


def serve(file: Path, host: str, port: int, profiles: Sequence[Path], *, verbose: bool, output: Output) -> int:
    """Serve a manifest until Ctrl-C, SIGTERM or the runtime's end; returns the exit code.

    Raises:
        EnsembleError: Something is wrong or missing, and nothing was started; or the runtime could not start.
    """
    require_free_port(host, port)
    with stopped_by_sigterm():
        try:
            prepared = prepare(file, profiles)
            measured = kept(prepared)
            plan, rate = (measured.plan, measured.rate) if measured else (best_plans(prepared.problem)[0], None)
            config = runtime_config(prepared.ensemble, prepared.digests, plan, Listen(host=host, port=port))
            if output is Output.TABLE:
                emit(output, None, lambda: plan_table(plan, rate))
            fetch_missing(loaded_by(prepared.ensemble, prepared.digests, plan))
            with RuntimeProcess(config, log_level="INFO" if verbose else "WARNING") as runtime:
                runtime.wait_until_ready()
                if output is not Output.TABLE:
                    document = {"url": runtime.url, "plan": plan.document()}
                    emit(output, document | ({"measuredRate": rate} if rate else {}), lambda: "")
                note(_greeting(config, runtime.url))
                runtime.wait()
                return 0
        except Stopped:
            return 0


def _greeting(config: RuntimeConfig, url: str) -> str:
    return "\n".join(
        [
            "",
            f"'{config.name}' is ready at {url} (Ctrl-C stops it). In another terminal:",
            f"  ensemblectl bench {url}",
            f"  ensemblectl predict {url} --data ROWS.npy",
            f"  curl -s {url}/v2/models/{config.name}/infer -d '{_example(config)}'",
        ]
    )


def _example(config: RuntimeConfig) -> str:
    """A request in JSON, its data left for the user to fill in."""
    import json

    inputs = [
        {"name": t.name, "datatype": t.datatype.value, "shape": [1, *t.shape], "data": ["..."]} for t in config.inputs
    ]
    return json.dumps({"inputs": inputs}).replace('"..."', "...")
