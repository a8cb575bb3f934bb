"""Archives that would run code from the file while they are loaded.

Each is made from a real export by changing one record. What would run leaves a file behind, so that a check that does
not stop it shows; the same archives, with leave given, show that the threat is real.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from ensemble_runtime.config import ModelFormat
from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.torch_export import check_export
from ensemble_runtime.members.torch_graph import quiet

EXPORT = ModelFormat.TORCH_EXPORT


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("clean") / "model.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(nn.Linear(4, 3).eval(), (torch.ones(2, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.fixture
def trace(tmp_path):
    """What the code in an archive would leave behind."""
    return tmp_path / "it-ran"


@pytest.fixture
def changed(clean, tmp_path):
    """The clean archive with some records changed by functions, and others added."""

    def make(changes=(), added=(), root_added=()):
        path = tmp_path / "changed.pt2"
        changes, root = dict(changes), None
        with zipfile.ZipFile(clean) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                root, _, inner = name.partition("/")
                change = changes.pop(inner, lambda content: content)
                new.writestr(name, change(old.read(name)))
            for name, content in dict(added).items():
                new.writestr(f"{root}/{name}", content)
            for name, content in dict(root_added).items():
                new.writestr(name, content)
        assert not changes, f"no record {changes}"
        return path

    return make


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_json(change):
    """A change of a JSON record as a change of its bytes."""

    def apply(content):
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


def first_size(document):
    return document["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"]


def test_a_clean_archive_passes(clean, changed, loaded, spec):
    loaded(clean, [spec("x", 4)], [spec("p", 3)], EXPORT)
    loaded(changed(), [spec("x", 4)], [spec("p", 3)], EXPORT)


def test_pickled_example_inputs(changed, loaded, spec, trace):
    path = changed({"data/sample_inputs/model.pt": lambda _: pickled(((Touch(trace),), {}))})
    with pytest.raises(ModelInvalidError, match=r"sample_inputs/model\.pt cannot be read.*`model\.allowPickle: true`"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert not trace.exists()
    loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT, allow_pickle=True)
    assert trace.exists()


def test_a_pickled_weight(changed, loaded, spec, trace):
    def pickle_it(config):
        config["config"]["weight"]["use_pickle"] = True

    path = changed(
        {
            "data/weights/model_weights_config.json": in_json(pickle_it),
            "data/weights/weight_0": lambda _: pickled([Touch(trace), torch.ones(3, 4)]),
        }
    )
    with pytest.raises(ModelInvalidError, match="'weight' is a pickled object"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert not trace.exists()


def test_a_pickled_constant(changed, loaded, spec, trace):
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    path = changed(
        {"data/constants/model_constants_config.json": in_json(lambda config: config["config"].update(c=payload))},
        {"data/constants/opaque_obj_0": pickle.dumps(Touch(trace))},
    )
    with pytest.raises(ModelInvalidError, match="'c' is a pickled object"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert not trace.exists()


def test_a_shape_expression_that_is_code(changed, loaded, spec, trace):
    code = f"__import__('pathlib').Path({str(trace)!r}).touch() or Symbol('s77', positive=True, integer=True)"
    path = changed({"models/model.json": in_json(lambda document: first_size(document).update(expr_str=code))})
    with pytest.raises(ModelInvalidError, match=r"the shape expression .* is more than arithmetic"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert not trace.exists()
    loaded(path, [spec("x", 4)], [spec("p", 3)], EXPORT, allow_pickle=True)
    assert trace.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(-2), Pow(Symbol('s0'), Integer(2)))",
        "Max(1, FloorDiv(s77 + 3, 2))",
        "Eq(s0, 3) & (s1 >= 4)",
    ],
)
def test_arithmetic_is_no_code(changed, expression):
    path = changed({"models/model.json": in_json(lambda document: first_size(document).update(expr_str=expression))})
    check_export(path, allow_pickle=False)


@pytest.mark.parametrize(
    "expression",
    [
        *("eval('s0')", "exit", "S.__class__", "Symbol('__import__')", "Symbol('a b')", "Add(*[1])(2)"),
        *("lambda: 1", "s0[0]", "(" * 500, "[x for x in y]", "f'{x}'", ""),
    ],
)
def test_anything_beyond_arithmetic_is(changed, expression):
    path = changed({"models/model.json": in_json(lambda document: first_size(document).update(expr_str=expression))})
    with pytest.raises(ModelInvalidError, match="more than arithmetic"):
        check_export(path, allow_pickle=False)


@pytest.mark.parametrize(
    "target", ["torch.load", "torch.ops.load_library", "torch.hub.load", "#x:y", "_operator.__call__"]
)
def test_a_call_of_anything_but_an_operator(changed, target):
    def retarget(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(ModelInvalidError, match="which is no registered operator"):
        check_export(changed({"models/model.json": in_json(retarget)}), allow_pickle=False)


def test_a_name_that_is_code(changed, trace):
    def rename(document):
        document["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "x, y=open('it-ran', 'w')"

    with pytest.raises(ModelInvalidError, match="is no name of a value"):
        check_export(changed({"models/model.json": in_json(rename)}), allow_pickle=False)


def test_native_code(changed):
    path = changed(added={"data/aotinductor/model/kernel.so": b"\x7fELF"})
    with pytest.raises(ModelInvalidError, match=r"holds native code \(data/aotinductor/model/kernel\.so\)"):
        check_export(path, allow_pickle=False)


def test_the_older_layout_beside_the_newer_one(changed):
    with pytest.raises(ModelInvalidError, match="mixes two archive layouts"):
        check_export(changed(root_added={"version": "8.20"}), allow_pickle=False)


def test_the_older_layout_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "5.1")
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(ModelInvalidError, match=r"saved by torch 2\.7 or older; export it again"):
        check_export(tmp_path / "old.pt2", allow_pickle=True)


def test_torchscript_never_reaches_pythons_unpickler(loaded, spec, tmp_path, trace):
    path, evil = tmp_path / "model.pt", tmp_path / "evil.pt"
    with quiet():
        torch.jit.save(torch.jit.script(nn.Linear(4, 3).eval()), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(Touch(trace), 2) if name.endswith("/data.pkl") else old.read(name))
    with pytest.raises(ModelInvalidError, match="cannot be loaded by torch"):
        loaded(evil, [spec("x", 4)], [spec("p", 3)], ModelFormat.TORCH_SCRIPT)
    assert not trace.exists()
