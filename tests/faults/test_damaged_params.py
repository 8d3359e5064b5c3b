"""params.yaml with every key spoilt in every way, and YAML that is meant to harm."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from iusp.config.params import Config, load
from iusp.errors import InputError
from iusp.io.files import parse_yaml
from tests.support.damage import apart, called, refusal
from tests.support.project import ROOT, Tried

TEXT = (ROOT / "params.yaml").read_text()
SCHEMA = Config.model_json_schema()
# What params.yaml leaves out, so that every key there is stands somewhere.
OPTIONAL: dict[tuple[str, ...], Any] = {
    ("dataset", "s3"): "s3://bucket/prefix",
    ("dataset", "dvc"): {"url": "https://example.org/data.git", "revision": "v1", "path": "recordings"},
    ("dataset", "sonyc_ust", "mirror"): "https://example.org/mirror",
    ("students", "small", "weights"): {"iusp": 1},
    ("students", "small", "layers"): {"iusp": [1]},
    ("registration", "gate", "floors", "classes"): {"1_engine": 0.5},
    ("kubeflow", "storage_secret"): "storage",
    ("kubeflow", "volume"): {"claim": "recordings", "path": "/recordings"},
    ("kubeflow", "work_claim"): "work",
    ("kubeflow", "pod", "accelerator"): {"resource": "nvidia.com/gpu", "count": 1},
    ("kubeflow", "pod", "node_selector"): {"disk": "ssd"},
    ("kubeflow", "pod", "tolerations"): [
        {"key": "gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
    ],
}
STUDENTS = yaml.safe_load(TEXT)["students"]
VALUES = ("words", '"a\\0b\\n"', "[1, two]", "{a: 1}", "null", "-1", ".nan", "9" * 400, "true", "!!binary AAAA")
MEMORY = 2**30

Path_ = tuple[str | int, ...]


def changed(document: Any, path: Path_, value: Any) -> Any:
    result = copy.deepcopy(document)
    section = result
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return result


def keys(node: Any, document: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield every key below a node of the schema, with the section that it belongs to."""
    for one in node.get("anyOf", [node]):
        one = SCHEMA["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        if isinstance(document, list) and "items" in one:
            below = dict.fromkeys(range(len(document)), one["items"])
        elif isinstance(document, dict) and "properties" in one:
            below = one["properties"]
        elif isinstance(document, dict) and isinstance(one.get("additionalProperties"), dict):
            below = dict.fromkeys(document, one["additionalProperties"])
        else:
            continue
        for key, schema in below.items():
            yield (*path, key), one.get("title")
            if isinstance(document, list) or key in document:
                yield from keys(schema, document[key], (*path, key))


def test_every_key_spoilt_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    document = yaml.safe_load(TEXT)
    for path, value in OPTIONAL.items():
        document = changed(document, path, value)
    walked = list(keys(SCHEMA, document))
    sections = {**SCHEMA["$defs"], "Config": SCHEMA}
    assert {(title, path[-1]) for path, title in walked if title} >= {
        (name, key) for name, section in sections.items() for key in section["properties"]
    }
    params = tmp_path / "params.yaml"
    params.touch()
    spoilt: list[Any] = [document]
    monkeypatch.setattr("iusp.config.params.parse_yaml", lambda text: spoilt[0])
    load(params)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    refused = 0
    for path, _ in walked:
        dotted = ".".join(map(str, path))
        for text in VALUES:
            spoilt[0] = changed(document, path, parse_yaml(text))
            try:
                load(params)
            except InputError as error:
                message = str(error)
                # Rules that join several keys name the section, or the student that they are broken by.
                named = [*(f"students.{name}: " for name in STUDENTS), dotted.replace(".", ": ", 1)]
                assert any(name in message for name in (dotted, dotted.rpartition(".")[0], *named)), (dotted, message)
                assert "\n" not in message
                refused += 1
            else:
                # The schema is another's reading of the same rules; what both allow is no fault.
                validator.validate(spoilt[0])
        spoilt[0] = changed(document, (*path[:-1], f"{path[-1]}s") if isinstance(path[-1], str) else path, {})
        with pytest.raises(InputError, match=r"params.yaml: \S+: "):
            load(params)
        refused += 1
    assert refused > 1000
    tried(
        f"params.yaml: one of its {len(walked)} keys (each in turn) has a wrong type, is out of range or is misspelt",
        refused,
        "the command stops with a one-line error that names the key",
    )


BOMB = "b0: &b0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 40)
)
PLACE = "epochs: 20"
HARMFUL = {
    "python object": (TEXT.replace(PLACE, 'epochs: !!python/object/apply:os.system ["touch run"]'), "constructor"),
    "python name": (TEXT.replace(PLACE, "epochs: !!python/name:os.system"), "constructor"),
    "python module": (TEXT.replace(PLACE, "epochs: !!python/module:this"), "constructor"),
    "own tag": (TEXT.replace(PLACE, "epochs: !run 20"), "constructor"),
    "tab": (TEXT.replace("  source:", "\tsource:"), "\\t"),
    "key twice": (TEXT + "dataset: {}\n", "duplicate key dataset"),
    "key twice below": (TEXT.replace(PLACE, f"{PLACE}\n    {PLACE}"), "duplicate key epochs"),
    "two documents": (f"{TEXT}---\n{TEXT}", "single document"),
    "list for a key": (f"{TEXT}? [a, b]\n: 1\n", "unhashable key"),
    "mapping for a key": (f"{TEXT}? {{a: b}}\n: 1\n", "unhashable key"),
    "key that ends the line": (f'{TEXT}"\\e[2J\\nroot": 1\n', "\\x1b[2J\\nroot: no such key"),
    "unknown alias": (f"{TEXT}x: *nowhere\n", "nowhere"),
    "merge": (TEXT.replace(PLACE, "<<: {epochs: 20}"), "merge"),
    "no date": (TEXT.replace(PLACE, "epochs: 2001-99-99"), "month"),
    "no number": (TEXT.replace(PLACE, "epochs: !!int x"), "invalid literal"),
    "no fraction": (TEXT.replace(PLACE, "epochs: !!float x"), "could not convert"),
    "number of 5000 digits": (TEXT.replace(PLACE, f"epochs: {'9' * 5000}"), "digits"),
    "NUL": (f"{TEXT}\0", "#x0000"),
    "other version": (f"%YAML 9.9\n---\n{TEXT}", "incompatible"),
    "open quote": (TEXT.replace("source: embedded", 'source: "embedded'), "not YAML"),
    "cut in a mapping": (TEXT[: TEXT.index("features: {cpu") + 12], "not YAML"),
    "cut after a section": (TEXT[: TEXT.index("evaluation:")], "evaluation: Field required"),
    "UTF-16": (TEXT.encode("utf-16"), "utf-8"),
    "Latin-1": (TEXT.encode() + b"# caf\xe9\n", "utf-8"),
    "empty": ("", "top level"),
    "Markdown": ("# Settings\n\n- none\n", "top level"),
}
HEAVY = {
    "YAML aliases that refer to each other and expand to 9^40 words": (BOMB + TEXT, "b39: no such key"),
    "such aliases in place of a quantity": (
        BOMB + TEXT.replace('features: {cpu: "2"}', "features: {cpu: *b39}"),
        "steps.features.cpu",
    ),
    "such aliases in place of a student's seeds": (
        BOMB + TEXT.replace("seeds: [0]", "seeds: *b39"),
        "students.medium.seeds",
    ),
    "an alias that contains itself": (f"{TEXT}x: &x [*x]\n", "x: no such key"),
    "lists nested 20,000 deep": (f"{TEXT}x: {'[' * 20_000}", "nested too deeply"),
    "mappings nested 5,000 deep": (f"{TEXT}x: {'{a: ' * 5000}", "nested too deeply"),
    "20,000 keys": (TEXT + "".join(f"k{n}: 1\n" for n in range(20_000)), "k9: no such key"),
    "a word of 900,000 letters": (TEXT.replace("source: embedded", f"source: {'x' * 900_000}"), "dataset.source"),
    "a comment of 20 MB": (f"{TEXT}# {'x' * 20_000_000}\n", "characters long"),
}


def test_harmful_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    monkeypatch.chdir(tmp_path)
    params = Path("params.yaml")
    for name, (content, words) in (HARMFUL | HEAVY).items():
        params.write_bytes(content if isinstance(content, bytes) else content.encode())
        done = apart(tmp_path, "config", memory=MEMORY) if name in HEAVY else called("config")
        line = refusal(done)
        assert line.startswith("iusp: params.yaml: "), name
        assert words in line, name
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"], "nothing was run"
    tried(
        f"params.yaml contains one of these: tags that run code, duplicate keys, another encoding, {', '.join(HEAVY)}",
        len(HARMFUL) + len(HEAVY),
        "`iusp config` stops with a one-line error; no code is run; the process takes at most "
        f"{MEMORY // 2**30} GiB of memory",
    )
