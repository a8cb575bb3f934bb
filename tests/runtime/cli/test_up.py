"""`ensemblectl up` as people and scripts meet it: real processes, sockets and signals, on simulated devices."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import psutil
import pytest
import yaml
from onnx import TensorProto, helper

from ensemble_operator.cli import trying
from ensemble_operator.cli.preparing import prepare
from ensemble_operator.planner.given import given_plan
from ensemble_runtime.errors import EnsembleError

SECONDS_TO_START = 60
SECONDS_TO_STOP = 30

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}


@pytest.fixture
def ensemblectl(environment: dict[str, str]) -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ensemble_operator.cli.main", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=110)

    return run


def write_manifest(
    path: Path,
    *,
    simulated: bool,
    members: list[dict[str, object]],
    costs: Mapping[int, float] = {1: 0.002, 8: 0.002},
    serving: Mapping[str, object] = {},
) -> Path:
    """A manifest of members that take x (rows, 4) and put out y (rows, 4); simulated ones cost what is said."""
    spec = {
        "members": members,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [4]}],
        "combination": {"predictions": "Values"},
        "serving": {"drainMs": 1000, **serving},
        "devices": {"simulated": [{"type": "A100", "memoryMib": 1000}]} if simulated else {"kinds": ["CPU"]},
    }
    envelope = {"apiVersion": "ensembles.dev/v1alpha1", "metadata": {"name": "demo"}}
    documents = [envelope | {"kind": "InferenceEnsemble", "spec": spec}]
    for member in members if simulated else []:
        points = [{"batchSize": size, "seconds": cost, "memoryMib": 100} for size, cost in costs.items()]
        model = member["model"]
        assert isinstance(model, dict)
        profile = {"model": {"sha256": model["sha256"]}, "deviceType": "A100", "points": points}
        documents.append(envelope | {"kind": "ModelProfile", "spec": profile})
    path.write_text(yaml.safe_dump_all(documents))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    members: list[dict[str, object]] = [
        {"name": name, "model": {"uri": "https://nowhere/m", "format": "ONNX", "sha256": digit * 64}}
        for name, digit in (("a", "a"), ("b", "b"))
    ]
    return write_manifest(tmp_path / "demo.yaml", simulated=True, members=members)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """`ensemblectl up`, and all processes that it started."""

    def __init__(self, process: subprocess.Popen[str], port: int, said: str) -> None:
        self.process = process
        self.port = port
        self.said = said
        """On stderr, until it was ready."""
        self.url = f"http://127.0.0.1:{port}"
        self.family = psutil.Process(process.pid).children(recursive=True)

    def signalled(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS_TO_STOP)

    def left(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.family, timeout=SECONDS_TO_STOP)[1]


Up = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def up(environment: dict[str, str]) -> Up:
    @contextmanager
    def start(manifest: Path, *arguments: str) -> Iterator[Served]:
        port = free_port()
        command = [sys.executable, "-m", "ensemble_operator.cli.main", "up", str(manifest), "--port", str(port)]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            # as in a terminal: a shell's background jobs, and what they start, ignore SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            assert process.stderr is not None
            deadline, lines = time.monotonic() + SECONDS_TO_START, []
            while (line := process.stderr.readline()) and time.monotonic() < deadline:
                lines.append(line)
                if "curl" in line:
                    break
            else:
                pytest.fail(f"not ready: {''.join(lines)}")
            yield Served(process, port, "".join(lines))
        finally:
            process.kill()
            process.communicate()

    return start


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_serves_until_told_to_stop_and_leaves_nothing(up: Up, manifest: Path, number: int, code: int) -> None:
    with up(manifest) as served:
        assert len(served.family) >= 4  # supervisor, gateway, combiner, prediction
        assert served.signalled(number) == code
        assert served.left() == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", served.port)) != 0


def test_the_runtime_stops_when_the_command_line_is_killed(up: Up, manifest: Path) -> None:
    with up(manifest) as served:
        assert served.signalled(signal.SIGKILL) == -signal.SIGKILL
        assert served.left() == []


def test_what_is_served_can_be_used_by_the_other_commands(
    up: Up, ensemblectl: Run, manifest: Path, tmp_path: Path
) -> None:
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    np.save(tmp_path / "x.npy", x)
    with up(manifest, "-o", "json") as served:
        first = ensemblectl("predict", served.url, "--data", tmp_path / "x.npy", "-o", "json")
        again = ensemblectl("predict", manifest, "--port", served.port, "--data", tmp_path / "x.npy", "-o", "json")
        assert first.stdout == again.stdout
        outputs = json.loads(first.stdout)["outputs"]
        assert np.shape(outputs["y"]) == (10, 4)
        every = ensemblectl("predict", served.url, "--data", tmp_path / "x.npy", "--members", "-o", "json")
        outputs = json.loads(every.stdout)["outputs"]
        assert set(outputs) == {"y", "y@a", "y@b"}
        np.testing.assert_allclose(outputs["y"], np.mean([outputs["y@a"], outputs["y@b"]], axis=0), rtol=1e-6)
        saved = ensemblectl("predict", served.url, "--data", tmp_path / "x.npy", "--save", tmp_path / "y.npz")
        assert saved.stdout == ""
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], outputs["y"])

        bench = json.loads(ensemblectl("bench", served.url, "-c", 2, "-r", 4, "-s", 0.5, "-o", "json").stdout)
        assert bench["requests"] > 0
        assert bench["rowsPerSecond"] == pytest.approx(bench["requestsPerSecond"] * 4)
        assert served.signalled(signal.SIGTERM) == 0
        assert served.process.stdout is not None
        ready = json.loads(served.process.stdout.read())
        assert ready["url"] == served.url
        assert ready["plan"]["members"] == ["a", "b"]


def test_a_port_that_is_taken_is_refused_before_anything_starts(ensemblectl: Run, manifest: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ensemblectl("up", manifest, "--port", taken.getsockname()[1])
    assert done.returncode == 72
    assert done.stdout == ""
    assert "choose another --port" in done.stderr


def test_plans_are_tried_live_and_the_fastest_is_served(ensemblectl: Run, up: Up, tmp_path: Path) -> None:
    members: list[dict[str, object]] = [
        {"name": "a", "model": {"uri": "https://nowhere/m", "format": "ONNX", "sha256": "a" * 64}, "batchSizes": [8]}
    ]
    manifest = write_manifest(tmp_path / "one.yaml", simulated=True, members=members, costs={8: 0.05})
    done = ensemblectl("plan", manifest, "--measure", "-o", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["rate"] == pytest.approx(160)
    assert 0 < plan["measuredRate"] <= 176
    assert [t["digest"] for t in plan["tried"]] == [plan["digest"]]

    again = ensemblectl("plan", manifest, "-o", "json")
    assert json.loads(again.stdout)["measuredRate"] == plan["measuredRate"]
    with up(manifest, "-o", "json") as served:
        assert "plan --measure" in served.said
        assert served.signalled(signal.SIGTERM) == 0
        assert served.process.stdout is not None
        ready = json.loads(served.process.stdout.read())
    assert (ready["plan"]["digest"], ready["measuredRate"]) == (plan["digest"], plan["measuredRate"])


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are tried for less long."""
    monkeypatch.setattr(trying, "_SECONDS", 0.5)


def trials(manifest: Path, *sizes: int) -> list[trying.Trial]:
    """Tries plans of one member on one device, at these batch sizes."""
    prepared = prepare(manifest, [])
    plans = [given_plan(prepared.problem, {("local", "sim0", "a"): size}) for size in sizes]
    return trying.try_plans(prepared, plans)


def test_a_plan_that_fails_does_not_keep_the_others_from_being_tried(
    briefly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A batch of 8 takes longer than a member is given, which only shows when it is served."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    members: list[dict[str, object]] = [
        {"name": "a", "model": {"uri": "https://nowhere/m", "format": "ONNX", "sha256": "a" * 64}}
    ]
    limit = {"memberTimeoutMs": 300}
    costs = {1: 0.01, 8: 1.0}
    manifest = write_manifest(tmp_path / "one.yaml", simulated=True, members=members, costs=costs, serving=limit)
    failed, tried = trials(manifest, 8, 1)
    assert failed.rate == 0 and failed.failure
    assert f"plan {failed.plan.digest}: {failed.failure}" in capfd.readouterr().err
    assert tried.rate > 0 and tried.failure is None
    with pytest.raises(EnsembleError):
        trials(manifest, 8)


def write_model(path: Path) -> str:
    """An ONNX model that doubles its input; returns its digest."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return sha256(path.read_bytes()).hexdigest()


def test_a_real_model_is_measured_once_and_served(ensemblectl: Run, up: Up, tmp_path: Path) -> None:
    digest = write_model(tmp_path / "double.onnx")
    member: dict[str, object] = {"name": "double", "model": {"uri": "file://./double.onnx", "format": "ONNX"}}
    member["batchSizes"] = [1, 4]
    manifest = write_manifest(tmp_path / "real.yaml", simulated=False, members=[member])
    profiled = ensemblectl("profile", manifest, "-o", "json")
    assert profiled.returncode == 0, profiled.stderr
    (profile,) = json.loads(profiled.stdout)
    assert profile["spec"]["model"]["sha256"] == digest
    assert profile["spec"]["deviceType"] == "cpu-1"
    assert [point["batchSize"] for point in profile["spec"]["points"]] == [1, 4]
    assert all(point["seconds"] > 0 for point in profile["spec"]["points"])
    assert ensemblectl("profile", manifest, "-o", "json").stdout == profiled.stdout

    (tmp_path / "x.json").write_text("[[1, 2, 3, 4]]")
    with up(manifest) as served:
        answer = ensemblectl("predict", served.url, "--data", tmp_path / "x.json", "-o", "json")
        assert json.loads(answer.stdout)["outputs"]["y"] == [[2, 4, 6, 8]]


class Store(SimpleHTTPRequestHandler):
    """A folder over HTTP, which counts what it is asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Store, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Store, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def on_a_terminal(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run `ensemblectl` with a terminal for stderr; returns the exit code, and what was shown there."""
    terminal, stderr = pty.openpty()
    command = [sys.executable, "-m", "ensemble_operator.cli.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
    os.close(stderr)
    shown = b""
    with suppress(OSError):  # what Linux says when nobody has the terminal open any more
        while part := os.read(terminal, 1 << 16):
            shown += part
    os.close(terminal)
    return process.wait(110), shown.decode()


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])
def test_a_download_is_shown_on_a_terminal_and_happens_once(
    environment: dict[str, str], store: str, tmp_path: Path, pinned: bool
) -> None:
    digest = write_model(tmp_path / "double.onnx")
    model = {"uri": f"{store}/double.onnx", "format": "ONNX"} | ({"sha256": digest} if pinned else {})
    members: list[dict[str, object]] = [{"name": "double", "model": model, "batchSizes": [1]}]
    manifest = write_manifest(tmp_path / "far.yaml", simulated=False, members=members)
    code, shown = on_a_terminal(environment, "plan", str(manifest), "-o", "json")
    assert code == 0, shown
    assert "fetching" in shown and "double" in shown
    assert Store.asked == ["/double.onnx"]


def test_pairs_that_the_plan_puts_together_are_measured_once(ensemblectl: Run, tmp_path: Path) -> None:
    write_model(tmp_path / "double.onnx")
    model = {"uri": "file://./double.onnx", "format": "ONNX"}
    members: list[dict[str, object]] = [
        {"name": f"m{i}", "model": model, "batchSizes": [1], "weight": 1 + i}
        for i in range(len(os.sched_getaffinity(0)) + 1)
    ]
    manifest = write_manifest(tmp_path / "real.yaml", simulated=False, members=members)
    profiled = ensemblectl("profile", manifest, "--pairs", "-o", "json")
    assert profiled.returncode == 0, profiled.stderr
    factors = [other["factor"] for profile in json.loads(profiled.stdout) for other in profile["spec"]["interference"]]
    assert factors and all(0.05 <= factor <= 20 for factor in factors)
    assert ensemblectl("profile", manifest, "-o", "json").stdout == profiled.stdout


def test_a_model_that_is_missing_ends_it_with_the_runtimes_words(ensemblectl: Run, tmp_path: Path) -> None:
    member: dict[str, object] = {"name": "m", "model": {"uri": "file://./none.onnx", "format": "ONNX"}}
    manifest = write_manifest(tmp_path / "real.yaml", simulated=False, members=[member])
    done = ensemblectl("plan", manifest)
    assert done.returncode == 66
    assert str(tmp_path / "none.onnx") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_another_ends_it_before_it_is_loaded(ensemblectl: Run, tmp_path: Path) -> None:
    digest = write_model(tmp_path / "double.onnx")
    pinned = {"uri": "file://./double.onnx", "format": "ONNX", "sha256": "0" * 64}
    manifest = write_manifest(tmp_path / "real.yaml", simulated=False, members=[{"name": "m", "model": pinned}])
    done = ensemblectl("up", manifest, "--port", free_port())
    assert done.returncode == 67
    assert digest in done.stderr
    assert "0" * 64 in done.stderr
