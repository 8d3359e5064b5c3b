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
    "logits": ("K logits", 16),
    "pooled": ("pooled last layer: C numbers", 256),
    "embedding": ("hashed frames: 2,048 numbers", 4096),
    "similarity": ("frame similarities: T' × T'", 2048),
    "attention": ("attention map: T' × F'", 256),
    "hints": ("frame means over the bands: T' × C", 8192),
}
"""Each kind of knowledge, and its bytes for one layer, as float16, for 8 tags and the default teacher."""
STUDENT = "small"
"""The student whose gains are shown, if it was trained; else the smallest one. The weights are searched on it."""


def methods_page(study: Study) -> str:
    """Return docs/methods.md."""
    students = {data: _student(study, data) for data in study.data if study.main(data)}
    trained = "\n".join(f"- {title(data)}: {one.size}, {one.regime}" for data, one in students.items())
    head = ["method", "what the student learns", "stored for each clip and view", "bytes", "CPU time"]
    gains = [f"gain, {title(data)}" for data in students]
    rows = [_row(method, list(students.values())) for method in METHOD_NAMES]
    dropped = " and ".join(f"`{method}`" for method in METHOD_NAMES if method not in ("labels", *METHODS))
    return f"""# Methods

Choose the distillation method of a student here, and set it in `params.yaml`. `+` combines methods:

```yaml
students:
  small:
    method: iusp+kd
```

{table([*head, *gains], rows, 3)}
- **A view** is a clip after one random augmentation.
- **Stored** is what the teacher step writes for each training clip and each of its views, as float16 numbers. K is the
  number of tags. C, T' and F' are the numbers of channels, frames and bands of a layer of the teacher.
- **Bytes** are the bytes that are stored for 8 tags and the default teacher. Its last layer has 128 channels, 32 frames
  and 4 bands.
- **CPU time** is the CPU time of training with the method, divided by the CPU time of training on labels alone. It is
  the mean over the data sets.
- **Gain** is the micro AUPRC of the method minus the micro AUPRC of labels alone, on the test clips: the mean over
  seeds and its 95 % interval. If the interval includes zero, the seeds do not show whether the method helps.
- **{dropped}** were tried and not kept. The library does not have
  them, so `params.yaml` cannot select them.

The CPU times and gains are measured with one student on each data set. The brackets show its architecture family and
its number of parameters. The augmentation, the number of epochs and the batch size follow:

{trained}

[results.md](results.md) has the results of all students, and of combinations of methods.

`make bench-science` writes this page from `iusp/config/methods.py`, `benchmarks/science/methods.yaml` and
`benchmarks/science/runs.csv`.

## Equations

A student minimises the binary cross-entropy (BCE) of the labels plus λ₁ L₁ + λ₂ L₂ + …, where L₁, L₂, … are the losses
of its methods and λ₁, λ₂, … are the loss weights.

These symbols are used by several methods:

- The subscript s means student, and t means teacher. n is the index of a clip, and k is the index of a tag.
- B is the number of clips of a mini-batch, and K is the number of tags. T', F' and C are the numbers of frames, bands
  and channels of a layer.
- z are the logits, y are the labels, σ is the sigmoid function, and τ is the temperature.
- Q is a matrix of frames. For SP, Q has one row for each clip. For IUSP and FitNet, Q_n has one row for each frame of
  clip n.
- rows(·) divides each row of a matrix by its L2 norm. ‖·‖_F is the Frobenius norm of a matrix.
- G is a matrix of similarities, as the equations of SP and IUSP define it.

These symbols are used by one method:

- SKILL: 𝒞 is the set of clusters of the teacher's layers, c is one cluster, and l is a layer of it. The index (l) means
  the teacher's layer l. The index (c) means the student's layer that is matched with cluster c. G is the G of IUSP.
- Attention transfer: a_n is the feature map of clip n. Its indices are the channel d, the frame i and the band j.
- FitNet: r is the regressor, and C is the number of channels of the teacher's layer.
- VIC-KD: U_s and U_t are the embeddings, with one row for each clip and E columns. Σ is the covariance matrix of the
  columns of U_s, and ε is a small constant.
- Inter-KD: h is one of the H auxiliary heads.
- Non-target: w_nk is the weight of tag k in clip n.
- Multi-level: P is σ(z / τ), with one row for each clip. The first term is the loss of KD.
- Consistency: 𝒥 is the set of the J coarse tags, ℱ_k is the set of the fine tags of coarse tag k, and p are the
  probabilities.
- iusp_centred: Q̄_n is the mean of the rows of Q_n.

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
