import pytest

from ensemble_operator.controller.settings import Settings, SettingsError, variable

IMAGES = {
    "ENSEMBLES_RUNTIME_IMAGE_ONNX": "registry/runtime:onnx",
    "ENSEMBLES_RUNTIME_IMAGE_FULL": "registry/runtime:full",
}


def test_what_is_not_set_has_its_default():
    settings = Settings.from_environment(IMAGES | {"ENSEMBLES_NAMESPACE": "", "ENSEMBLES_SERVICE_HOST": "10.0.0.1"})

    assert settings.namespace == ""
    assert settings.resync_seconds == 600
    assert settings.runtime_image_onnx == "registry/runtime:onnx"


def test_numbers_are_read_from_text():
    settings = Settings.from_environment(
        IMAGES | {"ENSEMBLES_DEBOUNCE_SECONDS": "0.5", "ENSEMBLES_MAX_POD_CHANGES": "7"}
    )

    assert (settings.debounce_seconds, settings.max_pod_changes) == (0.5, 7)


def test_further_drivers_are_read_from_json():
    words = '{"gpu.example.com": {"product": "model", "gpuKinds": ["accelerator"]}}'
    settings = Settings.from_environment(IMAGES | {"ENSEMBLES_DRA_DRIVERS": words})

    found = settings.dra_drivers["gpu.example.com"]
    assert (found.product, found.uuid, found.gpu_kinds) == ("model", "uuid", {"accelerator"})
    with pytest.raises(SettingsError, match="ENSEMBLES_DRA_DRIVERS"):
        Settings.from_environment(IMAGES | {"ENSEMBLES_DRA_DRIVERS": '{"gpu.example.com": {"produkt": "model"}}'})


def test_every_fault_is_told_at_once_by_the_name_of_its_variable():
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"ENSEMBLES_RUNTIME_IMAGE_ONNX": "x", "ENSEMBLES_RESYNC_SECONDS": "often"})

    lines = str(caught.value).splitlines()
    assert any(line.startswith("ENSEMBLES_RUNTIME_IMAGE_FULL: missing") for line in lines)
    assert any(line.startswith("ENSEMBLES_RESYNC_SECONDS: ") for line in lines)


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in Settings.model_fields.values())
    assert variable("log_level") == "ENSEMBLES_LOG_LEVEL"
