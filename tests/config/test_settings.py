"""params.yaml: what is refused, and by which words."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from iusp.config.dataset import Dataset
from iusp.config.knowledge import PER_LAYER
from iusp.config.methods import METHODS
from iusp.config.params import Config, load
from iusp.config.students import TappedLayers, Weights
from iusp.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def refusal(tmp_path: Path, document: object) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    with pytest.raises(InputError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_the_projects_own_file_is_read() -> None:
    config = load(ROOT / "params.yaml")
    assert config.students["small"].terms == ("iusp",)
    assert config.features.log_offset == 1e-6


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "embedded"),
        ({"source": "sonyc-ust"}, "SONYC-UST 2019"),
        ({"source": "folder"}, "recordings"),
        ({"source": "s3", "s3": "s3://bucket/sonyc"}, "s3://bucket/sonyc"),
        (
            {"source": "dvc", "dvc": {"url": "https://host/data.git", "revision": "data-1", "path": "recordings"}},
            "https://host/data.git data-1 recordings",
        ),
    ],
)
def test_a_source_has_a_name_for_people(params: dict, changes: dict, name: str) -> None:
    assert Dataset.model_validate(params["dataset"] | changes).source_name == name


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("features", "hop_lenght"), 640, "features.hop_lenght: no such key"),
        (("features", "hop_length"), "640", "features.hop_length: Input should be a valid integer"),
        (("features", "hop_length"), 0, "features.hop_length: Input should be greater than or equal to 1"),
        (("features", "hop_length"), None, "features.hop_length: Input should be a valid integer"),
        (("features", "window_length"), 1023, "features.window_length: Input should be a multiple of 2"),
        (("features", "high_hz"), 9000, "low_hz 50 < high_hz 9000 <= half of sample_rate 16000 must hold"),
        (("teacher", "training", "learning_rate"), -1, "teacher.training.learning_rate"),
        (("teacher", "training", "learning_rate"), float("nan"), "teacher.training.learning_rate"),
        (("teacher", "architecture"), "resnet", "teacher.architecture"),
        (("dataset", "clips", "validate"), 0, "dataset.clips.validate"),
        (("augmentation", "views", "mixup"), 1.5, "augmentation.views.mixup"),
        (("students", "small", "method"), "iusp+labels", "method 'iusp+labels' must be labels, or some of"),
        (("students", "small", "method"), "kd+kd", "method 'kd+kd' must be labels, or some of"),
        (("students", "small", "weights"), {"kd": 2}, "weights of kd, which method 'iusp' does not use"),
        (("students", "small", "method"), "dkd", "method 'dkd' must be labels, or some of kd, sp, iusp, skill,"),
        (("students", "small", "weights"), {"dkd": 2}, "weights of dkd, which method 'iusp' does not use"),
        (("students", "small", "weights"), {"iusp": -1}, "students.small.weights.iusp"),
        (("students", "small", "layers"), {"sp": [1]}, "layers of sp, which method 'iusp' does not use"),
        (("students", "small_kd", "layers"), {"kd": [1]}, "layers of kd, which method 'kd' does not use"),
        (("students", "small", "layers"), {"iusp": []}, "students.small.layers.iusp"),
        (("students", "small", "layers"), {"iusp": [0]}, "students.small.layers.iusp.0"),
        (
            ("students", "small", "layers"),
            {"iusp": [1, 2]},
            "students.small: iusp needs the teacher's similarity of layer 2; "
            "add it to teacher.knowledge and teacher.layers",
        ),
        (
            ("students", "small_kd", "method"),
            "vic",
            "students.small_kd: vic needs the teacher's pooled; add it to teacher.knowledge",
        ),
        (
            ("students", "small_kd", "method"),
            "kd+fitnet",
            "students.small_kd: kd+fitnet needs the teacher's hints of layer 1; "
            "add it to teacher.knowledge and teacher.layers",
        ),
        (
            ("students", "small_kd", "method"),
            "consistency",
            "students.small_kd: consistency needs coarse and fine tags; set teacher.tags: both",
        ),
        (
            ("teacher", "knowledge"),
            ["logits", "similarity"],
            "students.small_sp: sp needs the teacher's embedding of layer 1",
        ),
        (("teacher", "knowledge"), ["logits", "frames"], "teacher.knowledge.1"),
        (("teacher", "layers"), [], "teacher.layers"),
        (("distillation", "layers", "inter"), [-1], "distillation.layers.inter.0"),
        (("distillation", "layers", "kd"), [1], "distillation.layers.kd: no such key"),
        (("student",), {}, "student: no such key; it is called distillation now"),
        (("evaluation", "license"), "MIT", "evaluation.license: no such key; it is called dataset.license now"),
        (("distillation", "knowledge"), "live", "distillation.knowledge"),
        (("students", "small", "seeds"), [1, 1], "seeds [1, 1] must differ"),
        (("students", "small", "seeds"), [], "students.small.seeds"),
        (("students", "../up"), {}, "students.../up"),
        (("dataset", "min_seconds"), 100, "min_seconds 100 <= max_seconds 60 must hold"),
        (("features", "clip_seconds"), 0.01, "must not exceed a clip's 160 samples"),
        (("distillation", "training", "threads"), 100_000, "distillation.training.threads"),
        (("students",), {}, "students: Dictionary should have at least 1 item"),
        (("registration", "model_name"), "a/b", "registration.model_name"),
        (("registration", "gate", "floors", "micro_auprc"), 1.2, "registration.gate.floors.micro_auprc"),
        (("registration", "gate", "budgets", "bytes"), {"model.onnx": 1}, "registration.gate.budgets.bytes.model.onnx"),
        (("registration", "gate", "regression", "difference_low"), 0.1, "registration.gate.regression.difference_low"),
        (("registration", "auto_promote"), "yes", "registration.auto_promote"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(
    tmp_path: Path, params: dict, path: tuple[str, ...], value: object, words: str
) -> None:
    section = params
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    assert words in refusal(tmp_path, params)


def test_a_missing_key_is_named_and_all_problems_at_once(tmp_path: Path, params: dict) -> None:
    del params["features"]["mel_bands"]
    params["colour"] = "red"
    message = refusal(tmp_path, params)
    assert "features.mel_bands: Field required" in message
    assert "colour: no such key" in message


@pytest.mark.parametrize("name", ["Small-1", "teacher"])
def test_a_name_that_is_no_students_is_refused(tmp_path: Path, params: dict, name: str) -> None:
    params["students"][name] = params["students"]["small"]
    assert f"students.{name}: a student's name is lower-case letters, digits and _" in refusal(tmp_path, params)


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n- 2\n", "just words", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "params.yaml")


def test_yaml_numbers_as_people_write_them(tmp_path: Path, params: dict) -> None:
    path = tmp_path / "params.yaml"
    params["features"] |= {"clip_seconds": 10, "log_offset": "1e-6"}
    path.write_text(yaml.safe_dump(params))
    features = load(path).features
    assert features.clip_seconds == 10.0
    assert features.log_offset == 1e-6


def test_nothing_can_be_changed_afterwards() -> None:
    config = load(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        config.teacher.seed = 1  # type: ignore[misc]


def test_the_schema_describes_every_key_and_keeps_bounds() -> None:
    schema = Config.model_json_schema()
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key} has no description"
    assert schema["$defs"]["Training"]["properties"]["learning_rate"]["exclusiveMinimum"] == 0
    json.dumps(schema)


def test_weights_of_a_student_override_the_common_ones(params: dict) -> None:
    params["students"] = {
        "a": {
            "architecture": "plain",
            "parameters": 7000,
            "method": "iusp+kd",
            "weights": {"kd": 3},
            "seeds": [0],
        }
    }
    config = Config.model_validate(params)
    assert config.recipe("a").weights == {
        "kd": 3.0,
        "iusp": config.distillation.weights.iusp,
    }


def test_layers_of_a_student_override_the_common_ones(params: dict) -> None:
    params["teacher"] |= {"layers": [3, 1], "tags": "both"}
    small = params["students"]["small"]
    small |= {"method": "inter+consistency+sp+iusp", "layers": {"sp": [3, 1]}}
    config = Config.model_validate(params)
    recipe = config.recipe("small")
    assert recipe.layers == {"sp": [3, 1], "iusp": [1], "inter": [2]}
    # The heads of `inter` are on the student's layers: of the teacher only the logits are needed.
    assert recipe.knowledge_names == ["embedding-1", "embedding-3", "logits", "similarity-1"]
    assert config.teacher.knowledge_names == [
        "logits",
        *("similarity-3", "similarity-1"),
        *("embedding-3", "embedding-1"),
    ]


def test_every_method_has_a_weight_and_layers_where_its_knowledge_has() -> None:
    assert set(Weights.model_fields) == set(METHODS)
    layered = {name for name, method in METHODS.items() if method.knowledge in PER_LAYER}
    assert set(TappedLayers.model_fields) == layered | {"inter"}


def test_a_key_may_stand_once(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert "duplicate key features" in refusal(tmp_path, f"{text}\nfeatures: {{}}\n")
