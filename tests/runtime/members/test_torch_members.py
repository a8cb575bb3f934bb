"""Members in torch's two formats: real files, loaded and compared with the modules that they came from."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from ensemble_runtime.config import Datatype, ModelFormat, Precision
from ensemble_runtime.errors import ModelInvalidError, OutOfMemoryError
from ensemble_runtime.members.checks import warm_up
from ensemble_runtime.members.torch_graph import quiet

EXPORT, SCRIPT = ModelFormat.TORCH_EXPORT, ModelFormat.TORCH_SCRIPT
BATCH, LENGTH = torch.export.Dim("batch"), torch.export.Dim("length", max=64)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x).reshape(x.shape[0], 16))


class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 16)
        self.body, self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.body(self.words(ids)).mean(1))


class TwoIn(nn.Module):
    def forward(self, x, z):
        return x[:, :3] - z


class Named(nn.Module):
    def forward(self, x) -> dict[str, torch.Tensor]:
        return {"other": x * 2, "p": x[:, :3]}


class Pair(nn.Module):
    def forward(self, x):
        return x[:, :3], x * 2


class Noise(nn.Module):
    def forward(self, x):
        return x[:, :3] + torch.rand_like(x[:, :3])


class Branch(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x[:, :3] + 1, lambda x: x[:, :3] - 1, (x,))


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))


def rows_of(shape, rows, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)


def ids_of(rows, length):
    return np.random.default_rng(rows).integers(0, 8, (rows, length))


@pytest.fixture
def exported(tmp_path):
    """Saves a module with torch.export; first dimensions are variable, with `length` second ones too."""

    def save(module, *examples, length=False):
        dims = tuple({0: BATCH, 1: LENGTH} if length else {0: BATCH} for _ in examples)
        with torch.no_grad():
            program = torch.export.export(module.eval(), examples, dynamic_shapes=dims)
        torch.export.save(program, tmp_path / "model.pt2")
        return tmp_path / "model.pt2"

    return save


@pytest.fixture
def script(tmp_path):
    """Saves a module with TorchScript."""

    def save(module, *_):
        with quiet():
            torch.jit.save(torch.jit.script(module.eval()), tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return save


@pytest.fixture
def saved(request, exported, script):
    """Either of the two, with its format."""
    model_format = request.param
    return (exported if model_format is EXPORT else script), model_format


both = pytest.mark.parametrize("saved", [EXPORT, SCRIPT], indirect=True)


def truth(module, *inputs):
    with torch.inference_mode():
        return module.eval()(*map(torch.from_numpy, inputs))


@both
@pytest.mark.parametrize(("make", "shape"), [(mlp, (4,)), (Cnn, (1, 6, 6)), (Gru, (5, 4))], ids=["mlp", "cnn", "gru"])
def test_the_answers_are_the_modules_at_any_batch_size(saved, loaded, spec, caplog, make, shape):
    save, model_format = saved
    module = make()
    caplog.set_level(logging.INFO)
    model = loaded(save(module, torch.ones(2, *shape)), [spec("x", *shape)], [spec("p", 3)], model_format)
    assert "uncompiled" not in caplog.text
    for rows in (1, 2, 7, 64):
        x = rows_of(shape, rows)
        before = x.copy()
        (answer,) = model.predict([x])
        np.testing.assert_allclose(answer, truth(module, x), rtol=1e-4, atol=1e-6)
        assert np.array_equal(x, before)


def test_variable_lengths_stay_variable_when_compiled(exported, loaded, spec, caplog):
    module = Transformer()
    path = exported(module, torch.zeros(2, 6, dtype=torch.int64), length=True)
    caplog.set_level(logging.INFO)
    model = loaded(path, [spec("ids", -1, datatype=Datatype.INT64, max_length=64)], [spec("p", 3)], EXPORT)
    assert "uncompiled" not in caplog.text
    for rows, length in ((1, 3), (5, 64), (8, 17)):
        ids = ids_of(rows, length)
        np.testing.assert_allclose(model.predict([ids])[0], truth(module, ids), rtol=1e-4, atol=1e-5)


@both
def test_inputs_by_position(saved, loaded, spec):
    save, model_format = saved
    path = save(TwoIn(), torch.ones(2, 4), torch.ones(2, 3))
    model = loaded(path, [spec("a", 4), spec("b", 3)], [spec("p", 3)], model_format)
    x, z = rows_of((4,), 3), rows_of((3,), 3, seed=1)
    np.testing.assert_allclose(model.predict([x, z])[0], x[:, :3] - z)


@both
def test_a_dictionarys_outputs_by_name(saved, loaded, spec):
    save, model_format = saved
    path = save(Named(), torch.ones(2, 4))
    x = rows_of((4,), 3)
    (p,) = loaded(path, [spec("x", 4)], [spec("p", 3)], model_format).predict([x])
    assert np.array_equal(p, x[:, :3])
    p, other = loaded(path, [spec("x", 4)], [spec("p", 3), spec("other", 4)], model_format).predict([x])
    assert np.array_equal(other, 2 * x)


@both
def test_a_tuples_outputs_by_position(saved, loaded, spec):
    save, model_format = saved
    path = save(Pair(), torch.ones(2, 4))
    model = loaded(path, [spec("x", 4)], [spec("first", 3), spec("second", 4)], model_format)
    x = rows_of((4,), 3)
    first, second = model.predict([x])
    assert np.array_equal(first, x[:, :3])
    assert np.array_equal(second, 2 * x)


@both
def test_another_number_of_outputs_than_the_manifest_shows_at_warm_up(saved, loaded, spec):
    save, model_format = saved
    model = loaded(save(Pair(), torch.ones(2, 4)), [spec("x", 4)], [spec("p", 3)], model_format)
    with pytest.raises(ModelInvalidError, match="member 'm': the model has 2 outputs, the manifest has 1"):
        warm_up("m", model, [spec("x", 4)], [spec("p", 3)], 4)


def test_a_program_for_a_fixed_batch_shows_at_warm_up(loaded, spec, tmp_path):
    torch.export.save(torch.export.export(mlp().eval(), (torch.ones(2, 4),)), tmp_path / "fixed.pt2")
    model = loaded(tmp_path / "fixed.pt2", [spec("x", 5)], [spec("p", 3)], EXPORT)
    with pytest.raises(ModelInvalidError, match=r"member 'm': fails on made-up rows \(x \[1, 5\], batch first\)"):
        warm_up("m", model, [spec("x", 5)], [spec("p", 3)], 4)


def test_what_torchscript_does_not_know_runs_uncompiled_and_right(exported, loaded, spec, caplog):
    caplog.set_level(logging.INFO)
    model = loaded(exported(Branch(), torch.ones(2, 4)), [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert "runs uncompiled" in caplog.text
    x = np.ones((3, 4), np.float32)
    assert np.array_equal(model.predict([x])[0], x[:, :3] + 1)
    assert np.array_equal(model.predict([-x])[0], -x[:, :3] - 1)


def test_what_answers_differently_when_compiled_runs_uncompiled(exported, loaded, spec, caplog):
    caplog.set_level(logging.INFO)
    loaded(exported(Noise(), torch.ones(2, 4)), [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert "compiled, it answers differently" in caplog.text


halves = pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP16, 5e-3), (Precision.BF16, 3e-2)])


def check_half(model, module, x, tolerance):
    (answer,) = model.predict([x])
    assert answer.dtype == np.float32
    expected = truth(module, x).numpy()
    np.testing.assert_allclose(answer, expected, atol=tolerance * max(1.0, abs(expected).max()))
    assert not np.array_equal(answer, expected), "computed in FP32 after all"


@both
@halves
def test_lower_precision_in_and_out_of_the_manifests_types(saved, loaded, spec, precision, tolerance):
    save, model_format = saved
    module = mlp()
    model = loaded(save(module, torch.ones(2, 4)), [spec("x", 4)], [spec("p", 3)], model_format, precision)
    check_half(model, module, rows_of((4,), 5), tolerance)


@halves
def test_the_tensors_that_an_exported_graph_makes_follow_the_precision(exported, loaded, spec, precision, tolerance):
    module = Gru()  # makes its first state itself, in FP32 as exported
    model = loaded(exported(module, torch.ones(2, 5, 4)), [spec("x", 5, 4)], [spec("p", 3)], EXPORT, precision)
    check_half(model, module, rows_of((5, 4), 5), tolerance)


def test_double_inputs_are_cast_to_the_precision(exported, loaded, spec):
    module = mlp()
    path = exported(module, torch.ones(2, 4))
    double = Datatype.FP64
    model = loaded(path, [spec("x", 4, datatype=double)], [spec("p", 3, datatype=double)], EXPORT)
    x = rows_of((4,), 3)
    (answer,) = model.predict([x.astype(np.float64)])
    assert answer.dtype == np.float64
    np.testing.assert_allclose(answer, truth(module, x), rtol=1e-5)


def test_threads_are_those_of_the_core_set(exported, loaded, spec):
    torch.set_num_threads(2)
    loaded(exported(mlp(), torch.ones(2, 4)), [spec("x", 4)], [spec("p", 3)], EXPORT)
    assert torch.get_num_threads() == 1


@both
def test_the_other_format_is_told(saved, loaded, spec):
    save, model_format = saved
    path = save(mlp(), torch.ones(2, 4))
    other = SCRIPT if model_format is EXPORT else EXPORT
    with pytest.raises(ModelInvalidError, match=f"set `model.format: {model_format}`"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], other)


@pytest.mark.parametrize("model_format", [EXPORT, SCRIPT])
def test_a_state_dict_is_told_from_a_model(loaded, spec, tmp_path, model_format):
    torch.save(mlp().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelInvalidError, match="expected a file from torch"):
        loaded(tmp_path / "weights.pt", [spec("x", 4)], [spec("p", 3)], model_format)


@both
@pytest.mark.parametrize("damage", ["empty", "text", "half", "hole"])
def test_a_damaged_file_is_one_clear_line(saved, loaded, spec, damage):
    save, model_format = saved
    path = save(mlp(), torch.ones(2, 4))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a model",
            "half": whole[: len(whole) // 2],
            "hole": whole[:200] + bytes(1500) + whole[1700:],
        }[damage]
    )
    with pytest.raises(ModelInvalidError, match=r"^member 'm': [^\n]+$"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], model_format)


@both
def test_a_model_that_has_no_room_on_the_device_is_no_broken_one(saved, loaded, spec, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    save, model_format = saved
    path = save(mlp(), torch.ones(2, 4))
    monkeypatch.setattr(torch.export if model_format is EXPORT else torch.jit, "load", full)
    with pytest.raises(OutOfMemoryError, match=r"^member 'm': cannot be loaded by torch .*CUDA out of memory"):
        loaded(path, [spec("x", 4)], [spec("p", 3)], model_format)
