from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from ensemble_operator.cli.partition import _compared
from ensemble_operator.cli.partition_chart import gantt
from ensemble_operator.cli.partition_page import page

Run = Callable[..., subprocess.CompletedProcess[str]]

SIMULATED = ("--simulated-gpu", "speedup=4,launchUs=0,latencyUs=1", "--devices", "gpu,cpu")
"""Plans with one core, which every machine has."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two layers of LSTM over 16 steps of 8 features; the number of rows is open."""
    random = np.random.default_rng(0)

    def weights(layer: int, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            random.normal(size=shape).astype(np.float32), f"w{layer}_{len(shape)}{shape[-1]}"
        )

    initializers, nodes, x = [numpy_helper.from_array(np.array([1]), "axis")], [], "x"
    for layer in range(2):
        own = [weights(layer, 1, 64, 8), weights(layer, 1, 64, 16), weights(layer, 1, 128)]
        own[0] = own[0] if layer == 0 else weights(7, 1, 64, 16)
        initializers += own
        names = [w.name for w in own]
        nodes.append(helper.make_node("LSTM", [x, *names], [f"y{layer}"], name=f"layer{layer}", hidden_size=16))
        nodes.append(helper.make_node("Squeeze", [f"y{layer}", "axis"], [f"s{layer}"], name=f"squeeze{layer}"))
        x = f"s{layer}"
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, "rows", 8])],
        [helper.make_tensor_value_info("s1", TensorProto.FLOAT, [16, "rows", 16])],
        initializers,
    )
    path = tmp_path / "stack.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_json_tells_the_schedule_the_baselines_and_the_curve(ensemblectl: Run, model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.html"
    done = ensemblectl("partition", model, *SIMULATED, "--shape", "x=16,1,8", "-o", "json", "--html", picture)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["simulated"] is True
    assert [device["kind"] for device in found["devices"]] == ["Simulated", "CPU"]
    assert set(found["placement"]["device"].values()) <= {0, 1}
    alone = [base["makespanMs"] for base in found["baselines"]]
    assert found["choice"]["makespanMs"] <= min(alone)
    sizes = [point["scarceBytes"] for point in found["curve"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    html = picture.read_text()
    assert html.count("<rect") == len(found["bars"])
    assert not re.search(r"<script|https?://|src=", html)


def test_memory_moves_everything_off_when_there_is_time(ensemblectl: Run, model: Path) -> None:
    options = ("--shape", "x=16,1,8", "--objective", "memory", "--latency-ms", 10_000, "-o", "yaml")
    done = ensemblectl("partition", model, *SIMULATED, *options)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert found["choice"]["scarceBytes"] == 0
    assert found["choice"]["otherBytes"] > 0


def test_a_person_sees_bars_and_both_devices_alone(ensemblectl: Run, model: Path) -> None:
    done = ensemblectl("partition", model, *SIMULATED, "--shape", "x=16,1,8")
    assert done.returncode == 0, done.stderr
    for word in ("all on gpu", "all on cpu0", "chosen", "crossing", "█", "Memory on gpu", "is simulated"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--objective", "memory"), 2, "needs"),
        (("--devices", "cpu"), 2, "expected two"),
        (("--devices", "tpu,cpu"), 69, "there is no device 'tpu' here"),
        ((*SIMULATED, "--simulated-gpu", "fast"), 65, "--simulated-gpu: got 'fast'"),
        ((*SIMULATED, "--shape", "x=a"), 65, "--shape: got 'x=a'"),
        ((*SIMULATED, "--shape", "z=4"), 65, "no input is named z"),
        (SIMULATED, 65, "input 'x' has shape [16, rows, 8]; say how large it is"),
        (
            (*SIMULATED, "--shape", "x=16,1,8", "--objective", "memory", "--latency-ms", "0.001"),
            70,
            "quickest schedule takes",
        ),
    ],
)
def test_what_is_wrong_is_told(
    ensemblectl: Run, model: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    done = ensemblectl("partition", model, *options)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model_is_refused(ensemblectl: Run, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no")
    assert ensemblectl("partition", tmp_path / "no.onnx", *SIMULATED).returncode == 68
    assert ensemblectl("partition", tmp_path / "absent.onnx", *SIMULATED).returncode == 66


FOUND = {
    "objective": "Latency",
    "batchSize": 1,
    "simulated": False,
    "devices": [{"name": "<gpu>", "kind": "GPU", "type": "A"}, {"name": "cpu0", "kind": "CPU", "type": "cpu-1"}],
    "choice": {"makespanMs": 10.0, "scarceBytes": 2**20, "otherBytes": 0, "busyMs": [10.0, 5.0], "timeSteps": 4},
    "baselines": [None, {"makespanMs": 12.0, "scarceBytes": 0, "otherBytes": 2**20, "timeSteps": None}],
    "curve": [{"makespanMs": 10.0, "scarceBytes": 2**20}, {"makespanMs": 12.0, "scarceBytes": 0}],
    "bars": [
        {"name": "lstm<1>", "device": 0, "startMs": 0.0, "endMs": 10.0},
        {"name": "lstm<2>", "device": 1, "startMs": 5.0, "endMs": 10.0},
    ],
    "transfers": [{"name": "t", "bytes": 4, "from": 0, "startMs": 4.0, "endMs": 5.0}],
}


def test_where_neither_device_takes_all_of_a_model_nothing_is_compared_with_one() -> None:
    """As with a GPU that is too small, and an operator that cores do not compute."""
    alone = {"makespanMs": 6.0}
    found = {"choice": {"makespanMs": 2.0}, "measuredMs": 3.0, "baselines": [None, alone]}
    assert _compared(found) == ["3.00x of the quicker device alone", "run as chosen: 3 ms, 2.00x"]
    found["baselines"] = [None, None]
    assert _compared(found) == ["neither device takes all of it", "run as chosen: 3 ms"]


def test_bars_are_as_long_as_they_take() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(gantt(FOUND))
    first, second, crossing = console.export_text().splitlines()[:3]
    assert first.count("█") + first.count("▐") == 100
    assert second.count("█") + second.count("▐") == 50
    assert crossing.count("█") + crossing.count("▐") == 10
    assert "100%" in first and "50%" in second


def test_names_cannot_break_out_of_the_page() -> None:
    html = page("<b>x</b>", FOUND | {"gap": {"fraction": 0.012, "proven": False}})
    assert "1.20% above the best that was found." in html
    assert "<b>" not in html
    assert "lstm<1>" not in html
    assert "lstm&lt;1&gt;" in html
