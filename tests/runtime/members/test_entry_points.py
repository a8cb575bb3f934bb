"""`python -m ensemble_runtime devices | fetch | profile`, as the planner calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble_runtime.config import Device, Member, ModelSource
from ensemble_runtime.devices.local import discover
from ensemble_runtime.errors import DigestMismatchError, ModelInvalidError, OutOfMemoryError
from ensemble_runtime.measuring import Measured, Subject
from ensemble_runtime.members.storage import fetch
from ensemble_runtime.report import unpack

MIB = 2**20
COMMAND = [sys.executable, "-m", "ensemble_runtime", "--log-level", "WARNING"]


def run(*arguments, document=None):
    return subprocess.run(
        [*COMMAND, *arguments],
        input=None if document is None else json.dumps(document),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines(finished):
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.fixture
def request_for(core, onnx_mlp, tmp_path):
    """A profile request; models by member name."""

    def make(batch_sizes=(1, 4), device=core, classes=3, features=4, **models):
        members = [
            {"name": name, "model": {"uri": path.as_uri(), "format": "ONNX"}}
            for name, path in (models or {"m": onnx_mlp()}).items()
        ]
        return {
            "members": members,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [features]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [classes]}],
            "devices": [device.model_dump(mode="json", by_alias=True)],
            "batchSizes": list(batch_sizes),
        }

    return make


WIDE = 2**22
"""Elements of a row of the wide model: 16 MiB."""


@pytest.fixture
def wide(tmp_path):
    """A model that adds a weight to each of very many elements, so that memory is what it needs."""
    weights = np.ones((1, WIDE), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDE])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_devices_are_those_that_discovery_finds():
    (found,) = lines(run("devices", "--cores-per-device", "1"))
    assert [Device(**device).cores for device in found] == [device.cores for device in discover(1)]


def test_fetch_tells_path_digest_and_size(request_for, onnx_mlp, tmp_path):
    path = onnx_mlp()
    request = request_for(m=path)
    (record,) = lines(run("fetch", "/dev/stdin", document={"members": request["members"]}))
    assert record.keys() == {"member", "path", "sha256", "size"}
    assert (record["member"], record["path"], record["size"]) == ("m", str(path), path.stat().st_size)
    assert lines(run("fetch", "/dev/stdin", document=request)) == [record]


def test_profile_tells_progress_and_results(request_for, onnx_mlp):
    records = lines(run("profile", "/dev/stdin", document=request_for((4, 1), a=onnx_mlp(), b=onnx_mlp())))
    progress = [record for record in records if "done" in record]
    results = [record for record in records if "digest" in record]
    assert [(p["member"], p["batchSize"], p["done"]) for p in progress] == [
        *(("a", 1, 0), ("a", 4, 1), ("a", 0, 2)),
        *(("b", 1, 2), ("b", 4, 3), ("b", 0, 4)),
    ]
    assert all(p["deviceType"] == "cpu-1" and p["total"] == 4 for p in progress)
    # Of each member first what was seen at once, then what it came to after several looks.
    assert [result["batchSize"] for result in results] == [1, 4, 1, 4] * 2
    assert all(result["precision"] == "FP32" and len(result["digest"]) == 64 for result in results)
    assert all(0 < result["seconds"] < 1 for result in results)
    assert all(0 < result["memoryBytes"] < 64 * MIB < result["baselineBytes"] + 64 * MIB for result in results)


def test_profile_of_a_slot_leaves_its_records_for_kubernetes(request_for, onnx_mlp, tmp_path):
    slot = Device(name="cpu3", kind="CPU", type="cpu-1", memory_bytes=1)
    message = tmp_path / "termination-log"
    command = ("profile", "--termination-message", str(message), "/dev/stdin")
    records = lines(run(*command, document=request_for((1, 4), device=slot, m=onnx_mlp())))
    assert unpack(message.read_text()) == [record for record in records if "digest" in record][2:]


def test_partition_of_slots_leaves_the_profile_of_the_pair_for_kubernetes(onnx_mlp, tmp_path):
    """Under a quota the slots get no cores of their own, and computing goes on all the same."""
    slots = [Device(name=f"cpu{i}", kind="CPU", type="cpu-1", memory_bytes=1) for i in (0, 1)]
    document = {
        "member": {"name": "m", "model": {"uri": onnx_mlp().as_uri(), "format": "ONNX"}},
        "devices": [slot.model_dump(mode="json", by_alias=True, exclude_defaults=True) for slot in slots],
        "batchSizes": [1, 4],
        "chart": False,
    }
    message = tmp_path / "termination-log"
    records = lines(run("partition", "--termination-message", str(message), "/dev/stdin", document=document))
    kept = unpack(message.read_text())
    assert [record["batchSize"] for record in kept] == [1, 4]
    for whole, record in zip(records, kept, strict=True):
        assert record.items() <= whole.items() and record["deviceType"] == "cpu-1:cpu-1"
        assert record["memoryBytes"] + record["secondBytes"] > 0 < record["seconds"] < 1


def test_a_failure_leaves_its_reason_for_kubernetes(request_for, tmp_path):
    message = tmp_path / "termination-log"
    command = ("profile", "--termination-message", str(message), "/dev/stdin")
    finished = run(*command, document=request_for(m=tmp_path / "absent.onnx"))
    assert finished.returncode == 66
    assert finished.stderr.splitlines()[-1] == f"ensemble-runtime: {message.read_text()}"


def test_profiled_bytes_are_the_weights_and_the_working_memory(request_for, wide):
    request = request_for((1, 8), classes=WIDE, features=WIDE, m=wide)
    _, _, one, many = [record for record in lines(run("profile", "/dev/stdin", document=request)) if "digest" in record]
    row = 4 * WIDE
    assert one["memoryBytes"] >= 3 * row, "weights, input and output"
    assert many["memoryBytes"] >= 17 * row, "weights, inputs and outputs"
    assert many["memoryBytes"] <= 64 * row
    assert many["seconds"] > one["seconds"]


def test_a_file_that_is_overwritten_while_it_is_measured_is_not_measured_under_its_old_digest(
    core, spec, onnx_mlp, tmp_path
):
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_mlp().read_bytes())
    member = Member(name="m", model=ModelSource(uri=path.as_uri(), format="ONNX"))
    subject = Subject(member, fetch(member.model, tmp_path / "cache"), (spec("x", 4),), (spec("y", 3),), 1)
    path.write_bytes(onnx_mlp(classes=5).read_bytes())
    measured = Measured(subject, core)
    with pytest.raises(DigestMismatchError, match="was overwritten"):
        measured.loaded()
    measured.end()


@pytest.fixture
def exploding(tmp_path):
    """A model that needs two to the power of its rows bytes: hardly any for 4 rows, 32 PiB for 55."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Pow", ["two", "rows"], ["bytes"]),
        helper.make_node("ConstantOfShape", ["bytes"], ["filled"], value=numpy_helper.from_array(np.zeros(1, np.int8))),
        helper.make_node("ReduceMax", ["filled"], ["nothing"], keepdims=0),
        helper.make_node("Cast", ["nothing"], ["zero"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "exploding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(2, np.int64), "two")],
    )
    path = tmp_path / "exploding.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_sizes_for_which_a_model_finds_no_memory_are_left_out(request_for, exploding, onnx_mlp):
    request = request_for((1, 4, 55, 56), features=3, m=exploding, n=onnx_mlp(features=3))
    finished = run("profile", "/dev/stdin", document=request)
    results = [record for record in lines(finished) if "digest" in record]
    assert [result["batchSize"] for result in results] == [1, 4, 1, 4, *(1, 4, 55, 56) * 2]
    assert "member 'm': fails on made-up rows (x [55, 3], batch first)" in finished.stderr
    assert "larger batches are not measured" in finished.stderr


def test_a_model_for_whose_smallest_batch_there_is_no_memory_has_the_code_of_lacking_memory(request_for, exploding):
    finished = run("profile", "/dev/stdin", document=request_for((55,), features=3, m=exploding))
    assert finished.returncode == OutOfMemoryError.exit_code, finished.stderr


@pytest.fixture
def profiling(request_for, wide, tmp_path):
    """A running profile command whose first batch size is measured, and the processes that it measures in."""
    (tmp_path / "request.json").write_text(json.dumps(request_for((1, 16, 32), classes=WIDE, features=WIDE, m=wide)))
    command = [*COMMAND, "profile", str(tmp_path / "request.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "digest" not in process.stdout.readline():
            assert process.poll() is None
        measuring = psutil.Process(process.pid).children()
        assert measuring
        yield process, measuring
        process.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has none beside it")
def test_the_core_sets_beside_a_measured_one_are_busy_and_end_with_the_command(request_for, onnx_mlp, core):
    one, other = sorted(os.sched_getaffinity(0))[:2]
    beside = core.model_copy(update={"name": "cpu1", "cores": (other,)})
    peers = [device.model_dump(mode="json", by_alias=True) for device in (core, beside)]
    request = request_for((1, 2, 4, 8), m=onnx_mlp()) | {"peers": peers}
    command = [*COMMAND, "profile", "/dev/stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        while "digest" not in process.stdout.readline():
            assert process.poll() is None
        measuring = {tuple(child.cpu_affinity()): child for child in psutil.Process(process.pid).children()}
        assert measuring.keys() == {(one,), (other,)}
        before = measuring[other,].cpu_times().user
        while "digest" not in process.stdout.readline():
            assert process.poll() is None
        assert measuring[other,].cpu_times().user > before
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(measuring.values(), timeout=30)
        assert not alive


def test_a_peer_that_cannot_compute_is_done_without(request_for, onnx_mlp, core):
    absent = core.model_copy(update={"name": "cpu1", "cores": (100_000,)})
    request = request_for((1,), m=onnx_mlp()) | {"peers": [absent.model_dump(mode="json", by_alias=True)]}
    finished = run("profile", "/dev/stdin", document=request)
    assert any("digest" in record for record in lines(finished))
    assert "measured without a load on cpu1" in finished.stderr


def test_a_size_that_the_measuring_process_does_not_survive_is_left_out(profiling):
    process, measuring = profiling
    for child in measuring:
        child.kill()
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "most likely for lack of memory; larger batches are not measured" in errors
    assert not any("digest" in line and '"batchSize": 32' in line for line in rest.splitlines())


def test_the_measuring_process_ends_with_the_command(profiling):
    process, measuring = profiling
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(measuring, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"batchSizes": [0]}, 65, "batchSizes[0]: "),
        ({"devices": []}, 65, "devices: "),
        ({"surprise": 1}, 65, "surprise: "),
        ({"outputs": [{"name": "y", "datatype": "FP32", "shape": [7]}]}, 68, "member 'm': output 'y' has shape [1, 3]"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_in_one_line_a_fault(request_for, change, code, message):
    finished = run("profile", "/dev/stdin", document=request_for() | change)
    assert finished.returncode == code
    assert finished.stderr.startswith("ensemble-runtime: ")
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_missing_model_and_a_missing_core_have_codes_of_their_own(request_for, core, tmp_path):
    assert run("profile", "/dev/stdin", document=request_for(m=tmp_path / "none.onnx")).returncode == 66
    absent = core.model_copy(update={"cores": (100_000,)})
    assert run("profile", "/dev/stdin", document=request_for(device=absent)).returncode == 69


def test_there_is_nothing_to_measure_on_a_simulated_device(request_for):
    device = Device(name="s0", kind="Simulated", type="sim", memory_bytes=1)
    finished = run("profile", "/dev/stdin", document=request_for(device=device))
    assert finished.returncode == 65
    assert "a simulated device states its seconds" in finished.stderr


@pytest.mark.parametrize(("text", "message"), [("{", "Invalid JSON"), ("{}", "members: Field required")])
def test_a_document_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    finished = run("serve", str(tmp_path / "config.json"))
    assert finished.returncode == 65
    assert message in finished.stderr


def test_a_document_that_is_not_there(tmp_path):
    start = time.monotonic()
    finished = run("serve", str(tmp_path / "none.json"))
    assert finished.returncode == 65
    assert "No such file" in finished.stderr
    assert time.monotonic() - start < 30


def pairs_request(request_for, device, **models):
    plain = request_for(device=device, **models)
    names = [member["name"] for member in plain["members"]]
    del plain["devices"], plain["batchSizes"]
    sizes = dict.fromkeys(names, 4)
    return plain | {"device": device.model_dump(mode="json", by_alias=True), "batchSizes": sizes, "pairs": [names]}


def test_a_pair_is_measured_side_by_side(request_for, core, onnx_mlp):
    request = pairs_request(request_for, core, a=onnx_mlp(), b=onnx_mlp())
    (record,) = lines(run("interference", "/dev/stdin", document=request))
    assert (record["member"], record["otherMember"], record["deviceType"]) == ("a", "b", core.type)
    # Two small models on one core: neither can gain by the other's company, and the caches hold both.
    assert 0.05 < record["factor"] < 2


def test_a_pair_on_a_simulated_device_is_refused(request_for, onnx_mlp):
    device = Device(name="s", kind="Simulated", type="t", memory_bytes=1)
    finished = run(
        "interference", "/dev/stdin", document=pairs_request(request_for, device, a=onnx_mlp(), b=onnx_mlp())
    )
    assert finished.returncode == 65 and "nothing to measure" in finished.stderr


def test_a_pair_of_which_one_cannot_be_loaded_is_refused(request_for, core, onnx_mlp, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    finished = run("interference", "/dev/stdin", document=pairs_request(request_for, core, a=onnx_mlp(), b=broken))
    assert finished.returncode == ModelInvalidError.exit_code, finished.stderr
    assert "broken" in finished.stderr or "'b'" in finished.stderr
