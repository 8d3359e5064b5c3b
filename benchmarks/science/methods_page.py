"""docs/methods.md: what each method does, costs and gains."""

from collections.abc import Sequence

import numpy as np

from benchmarks.pages import table
from benchmarks.science.study import METHOD_NAMES, REFERENCES, Setting, Study, title
from benchmarks.science.tables import ABSENT, effect
from iusp.config.methods import METHODS

NOT_APPLICABLE = {
    "text-speech distillation": "the teacher reads the transcript of the speech; city sounds have no transcript",
    "sequence-level distillation of a decoder": "the student imitates sequences that the teacher decodes; a tagger has "
    "no decoder",
}
STORED = {
    "logits": ("logits: K", 16),
    "pooled": ("pooled channels of the last layer: C", 256),
    "embedding": ("hashed frames: 2,048 numbers", 4096),
    "similarity": ("frame similarities: T' × T'", 2048),
    "attention": ("attention map: T' × F'", 256),
    "hints": ("frames, averaged over bands: T' × C", 8192),
}
"""Each kind of knowledge, and its bytes for one layer, as float16, for 8 tags and the default teacher."""
STUDENT = "small"
"""The student whose gains are shown, if it was trained; else the smallest one. The weights are searched on it."""


def methods_page(study: Study) -> str:
    """Return docs/methods.md."""
    students = {data: _student(study, data) for data in study.data if study.main(data)}
    trained = "\n".join(f"- {title(data)}: {one.size}, {one.regime}" for data, one in students.items())
    head = ["method", "what the student learns", "stored for a clip and view", "bytes", "CPU time"]
    gains = [f"gain, {title(data)}" for data in students]
    rows = [_row(method, list(students.values())) for method in METHOD_NAMES]
    return f"""# Methods

Choose the distillation method of a student here, and set it in `params.yaml`; `+` combines methods:

```yaml
students:
  small:
    method: iusp+kd
```

{table([*head, *gains], rows, 3)}
- **Stored** is what the teacher step writes for each training clip and view, as float16. The bytes are those of 8 tags
  and the default teacher, whose last layer has 128 channels × 32 frames × 4 bands.
- **CPU time** is the training time divided by that of labels alone.
- **Gain** is the micro AUPRC on test minus that of labels alone: mean and 95 % interval over seeds. If the interval
  includes zero, the seeds do not show whether the method helps.

The gains are those of one student on each data set (architecture family, parameters, augmentation, epochs, batch size):

{trained}

[results.md](results.md) has all students, and combinations of methods.

`make bench-science` writes this page from `iusp/config/methods.py`, `benchmarks/science/methods.yaml` and
`benchmarks/science/runs.csv`.

## Equations

A student minimises the cross-entropy of the labels plus λ times the loss of each of its methods.

- B: clips of a mini-batch, T': frames of a clip, K: tags. s: student, t: teacher.
- z: logits, y: labels, σ: sigmoid, τ: temperature.
- Q: frames as a matrix, with a row for each clip (SP) or for each frame of clip n (IUSP, FitNet). Q̄: its mean frame.
- rows(·): divides each row by its L2 norm.
- SKILL: 𝒞 is the set of clusters of the teacher's layers, c is one cluster, and l is a layer.
- Attention transfer: a is a feature map. Its indices are the channel c, the frame t (of T) and the band f (of F).
- FitNet: r is the regressor, C the number of the teacher's channels.
- VIC: S and T are the embeddings with a row for each clip and E columns, C is the covariance of S, ε a small constant.
- Inter-KD: h is one of the H auxiliary heads.
- Non-target: w weights the tags. Multi-level: P is σ(z / τ), with a row for each clip.
- Consistency: c is one of the C coarse tags, F_c its fine tags, p a probability.

{"".join(map(_equation, METHOD_NAMES))}## Methods that do not apply to tagging

{table(["method", "reason"], NOT_APPLICABLE.items(), 2)}"""


def _student(study: Study, data: str) -> Setting:
    """Return the setting whose gains are shown."""
    mains = study.main(data)
    return next((one for one in mains if one.student == STUDENT), mains[0])


def _row(method: str, settings: Sequence[Setting]) -> list[str]:
    pairs = [against_labels(setting, method) for setting in settings]
    ratios = [setting.cost(*pair) for setting, pair in zip(settings, pairs, strict=True) if pair]
    gains = [
        effect(setting.difference(*pair)) if pair else "not run" for setting, pair in zip(settings, pairs, strict=True)
    ]
    return [
        f"[`{method}`](#{method})",
        *_knowledge(method),
        f"× {np.mean(ratios):.2f}" if ratios else "not run",
        *([ABSENT] * len(gains) if method == "labels" else gains),
    ]


def _knowledge(method: str) -> tuple[str, str, str]:
    """Return what the student learns, what is stored for it, and how many bytes that takes."""
    if method == "labels":
        return "the labels alone, without a teacher", "nothing", "0"
    if method not in METHODS:
        stored, size = STORED[REFERENCES[method]["knowledge"]]
        return REFERENCES[method]["learns"], stored, f"{size:,}"
    row = METHODS[method]
    if row.knowledge is None:
        return row.teaches, "nothing", "0"
    layers = len(row.layers) if row.layers_of == "teacher" else 1
    stored, size = STORED[row.knowledge]
    return row.teaches, f"{stored}, of {layers} layers" if layers > 1 else stored, f"{size * layers:,}"


def _equation(method: str) -> str:
    """Return the section of a method: its source, its equation and its code."""
    text = f"### {method}\n\n"
    if method in REFERENCES:
        text += f"Source: {REFERENCES[method]['source']}.\n\n```math\n{REFERENCES[method]['equation']}\n```\n\n"
    if method in METHODS:
        text += f"Code: [{method}.py](../iusp/distillation/{method}.py).\n\n"
    return text


def against_labels(setting: Setting, method: str) -> tuple[str, str] | None:
    """Return the run of a method and the run of labels to compare it with.

    If a method was run only as a variant, labels are taken with the same variant.
    """
    names = [name for name in setting.runs if name.partition(", ")[0] == method]
    if not names:
        return None
    variant = names[0].removeprefix(method)
    return next(((names[0], other) for other in (f"labels{variant}", "labels") if other in setting.runs), None)
