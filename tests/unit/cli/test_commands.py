"""The command line as a process: data on stdout, words on stderr, exit codes that tell what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ensemble_operator.api.manifest import load_profiles

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_plan_as_json_is_one_document(ensemblectl: Run, manifest: Path) -> None:
    done = ensemblectl("plan", manifest, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["members"] == ["big", "small"]
    assert [device["name"] for device in plan["devices"]] == ["sim0", "sim1", "sim2", "sim3"]
    assert plan["baselineRate"] == pytest.approx(200)  # big, 8 rows in 0.04 s, on one device
    assert plan["rate"] == pytest.approx(640)  # r/200 + r/800 device-seconds a second on 4 devices
    assert plan["gain"] == pytest.approx(3.2)


def test_plan_as_yaml_says_the_same(ensemblectl: Run, manifest: Path) -> None:
    as_yaml, as_json = (ensemblectl("plan", manifest, "-o", form).stdout for form in ("yaml", "json"))
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


def test_plan_as_a_table_names_devices_members_and_gain(ensemblectl: Run, manifest: Path) -> None:
    table = ensemblectl("plan", manifest).stdout
    figures = ("640 rows/s", "200 rows/s", "3.20x", "of the best possible")
    for word in ("sim0", "sim3", "big", "small", "bottleneck", *figures):
        assert word in table


def test_the_same_manifest_gives_the_same_bytes(ensemblectl: Run, manifest: Path) -> None:
    assert ensemblectl("plan", manifest, "-o", "json").stdout == ensemblectl("plan", manifest, "-o", "json").stdout


def test_plan_as_a_table_gives_reasons(ensemblectl: Run, manifest: Path) -> None:
    table = ensemblectl("plan", manifest).stdout
    assert "600 of 1,000" in table
    assert "without it the rate falls by 25.0%" in table
    assert "one more A100: 800 rows/s, +25.0%" in table


def test_what_if_answers_for_devices_that_are_not_there(ensemblectl: Run, manifest: Path) -> None:
    plan = json.loads(ensemblectl("plan", manifest, "--what-if", "devices=+2xA100", "-o", "json").stdout)
    assert len(plan["devices"]) == 6
    assert plan["rate"] == pytest.approx(960)
    none = ensemblectl("plan", manifest, "--what-if", "devices=-1xT4")
    assert none.returncode == 65
    assert "T4" in none.stderr


def test_a_page_holds_the_plan_and_needs_nothing_else(ensemblectl: Run, manifest: Path, tmp_path: Path) -> None:
    done = ensemblectl("plan", manifest, "--html", tmp_path / "plan.html", "-o", "json")
    page = (tmp_path / "plan.html").read_text()
    assert json.loads(done.stdout)["digest"] in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert ensemblectl("plan", manifest, "--html", tmp_path / "no" / "plan.html").returncode == 65


def test_profiles_as_yaml_can_be_given_back(ensemblectl: Run, manifest: Path, tmp_path: Path) -> None:
    text = ensemblectl("profile", manifest, "-o", "yaml").stdout
    assert [profile.spec.model.sha256[0] for profile in load_profiles(text)] == ["a", "b"]
    (tmp_path / "profiles.yaml").write_text(text)
    bare = tmp_path / "bare.yaml"
    bare.write_text(manifest.read_text().split("---")[0])
    planned = ensemblectl("plan", bare, "--profiles", tmp_path / "profiles.yaml", "-o", "json")
    assert planned.stdout == ensemblectl("plan", manifest, "-o", "json").stdout


def test_profiles_as_a_table_have_a_line_a_point(ensemblectl: Run, manifest: Path) -> None:
    lines = [line.split() for line in ensemblectl("profile", manifest).stdout.splitlines()]
    assert ["big", "A100", "8", "40", "200", "600"] in lines


def test_a_wrong_manifest_gets_one_line_a_fault_and_starts_nothing(ensemblectl: Run, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("ONNX", "Onnx").replace("name: small, model", "name: big, model"))
    for command in ("plan", "profile", "up"):
        done = ensemblectl(command, manifest)
        assert done.returncode == 65
        assert done.stdout == ""
        first, second = done.stderr.splitlines()
        assert first.startswith(f"ensemblectl: {manifest}:6: spec.members[0].model.format: got 'Onnx', expected one of")
        assert second.startswith(f"{manifest}:7: spec.members[1].model.format: got 'Onnx', expected one of")


def test_a_member_without_profile_is_named(ensemblectl: Run, manifest: Path) -> None:
    manifest.write_text("---".join(manifest.read_text().split("---")[:2]))
    done = ensemblectl("plan", manifest)
    assert done.returncode == 65
    assert "spec.members[1]: no profile of 'small'" in done.stderr


def test_members_that_do_not_fit_say_by_how_much(ensemblectl: Run, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("memoryMib: 1000", "memoryMib: 450"))
    done = ensemblectl("plan", manifest)
    assert done.returncode == 70
    assert "big" in done.stderr
    assert "50 MiB" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan"], 2, "Missing argument"),
        (["plan", "x.yaml", "-o", "xml"], 2, "xml"),
        (["dance"], 2, "dance"),
        (["bench", "http://127.0.0.1:9", "--connections", "0"], 2, "connections"),
        (["plan", "x.yaml", "--what-if", "devices=2xA100"], 2, "expected e.g. devices=+2xA100"),
        (["plan", "x.yaml", "--what-if", "+2xA100"], 2, "expected e.g. devices=+2xA100"),
        (["plan", "x.yaml", "--what-if", "devices=+1xA", "--measure"], 2, "cannot be measured"),
        (["plan", "none.yaml"], 65, "none.yaml: No such file"),
        (["plan", "/"], 65, "/: Is a directory"),
        (["bench", "http://127.0.0.1:9"], 74, "no server answers at http://127.0.0.1:9"),
        (["bench", "127.0.0.1:8000"], 65, "expected http://HOST:PORT or the file of a manifest"),
        (["bench", "ftp://host"], 65, "expected http://HOST:PORT"),
        (["predict", "http://127.0.0.1:9", "--data", "none.npy"], 65, "none.npy: No such file"),
        (["predict", "http://127.0.0.1:9", "--data", "rows.csv"], 65, "expected a file named .npy, .npz or .json"),
    ],
)
def test_what_went_wrong_is_told_in_words_and_by_exit_code(
    ensemblectl: Run, arguments: list[str], code: int, words: str
) -> None:
    done = ensemblectl(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "plan", "profile", "predict", "bench"])
def test_help_teaches_by_example(ensemblectl: Run, command: str) -> None:
    done = ensemblectl(command, "--help")
    assert done.returncode == 0
    assert "Examples" in done.stdout
    assert f"ensemblectl {command} " in done.stdout


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, ensemble_operator.cli.main\n"
        "heavy = {'torch', 'scipy', 'numpy', 'pydantic', 'yaml', 'rich', 'kopf', 'kubernetes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_planning_never_imports_torch(manifest: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ensemble_operator.cli.plan import show_plan\n"
        "from ensemble_operator.cli.output import Output\n"
        "choices = {'measure': False, 'seconds': 60, 'change': {}, 'page': None, 'output': Output.JSON}\n"
        f"show_plan(Path({str(manifest)!r}), [], **choices)\n"
        "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path).returncode == 0
