"""`params.yaml`, typed: every knob of the pipeline, once, frozen, with nothing unknown let through."""

import re
from collections.abc import Sequence
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from iusp.errors import InputError
from iusp.files import parse_yaml

NAME = re.compile(r"[a-z][a-z0-9_]*")
S3_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
# Distillation losses, and the kind of the teacher's knowledge that each takes.
METHODS = {
    "kd": "logits",
    "sp": "embedding",
    "iusp": "similarity",
    "skill": "similarity",
    "attention": "attention",
    "fitnet": "hints",
    "vic": "pooled",
    "inter": "logits",
    "non_target": "logits",
    "multilevel": "logits",
    "consistency": None,
}
KnowledgeKind = Literal["logits", "pooled", "similarity", "embedding", "attention", "hints"]
PER_LAYER = ("similarity", "embedding", "attention", "hints")
STEPS = ("dataset", "features", "teacher", "student", "evaluation", "registration")
TagSet = Literal["coarse", "fine", "both"]
Architecture = Literal["residual", "vggish", "mobilenetv2", "plain", "separable", "cnn_lstm"]


class Section(BaseModel):
    """A part of `params.yaml`: immutable, strict about types, an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


# YAML 1.1 reads 1e-6 (no dot) as text, and people write whole numbers where a fraction is allowed.
def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        return float(value)
    try:
        return float(value) if type(value) is int else value
    except OverflowError:
        return inf  # which no bound allows


# The validator comes last, that is outermost, so that the JSON Schema keeps the bounds.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[list[Count], Field(min_length=1)]
"""Of a network, counted from the last, which is 1."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


class Clips(Section):
    """Number of clips of the embedded data set, per split."""

    train: Count
    """To train on."""
    validate_: Count = Field(alias="validate")
    """To choose epochs, seeds and the challenger by."""
    test: Annotated[int, Field(ge=0)]
    """To report on; validate is reported on where there are none."""

    def by_split(self) -> dict[str, int]:
        """The counts by the splits' names."""
        return {"train": self.train, "validate": self.validate_, "test": self.test}


class Repository(Section):
    """A version of a folder that a git repository tracks by DVC or git."""

    url: Annotated[str, Field(pattern=r"^[^\s-].*$")]
    """Address or folder of the git repository, without credentials."""
    revision: Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
    """Commit, tag or branch; what moves pins nothing."""
    path: Annotated[str, Field(min_length=1)]
    """Folder in SONYC-UST's format, from the repository's root."""

    @model_validator(mode="after")
    def _plain(self) -> "Repository":
        # The scheme decides: ssh needs a user's name, and that is no secret.
        if re.match(r"(?i)https?://([^/]*@|.*[?#])|[a-z+]+://[^@]*:[^@]*@", self.url):
            raise ValueError("url must hold no credentials; leave them to git's credential helper")
        if self.path.startswith(("/", "-")) or ".." in self.path.split("/"):
            raise ValueError(f"path {self.path!r} must lead from the repository's root to a folder in it")
        return self


def is_secure(address: str) -> bool:
    """Tell whether a web address is encrypted, or of this very machine."""
    try:
        parts = urlsplit(address)
        if parts.scheme != "http":
            return parts.scheme == "https"
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


class SonycUst(Section):
    """The published data set, and where it is fetched from."""

    version: Literal[2019, "v2.3"]
    """`2019`: of DCASE 2019 Task 5, 3,068 clips; `v2.3`: 18,510 clips with place and time."""
    mirror: Annotated[str, Field(min_length=1)] | None
    """Where the record's files and its `record.json` lie instead of Zenodo: `s3://bucket/prefix`, `https://host/path`
    or a folder."""
    keep: Annotated[str, Field(min_length=1)] | None
    """Folder in which the data set is kept as `sonyc-ust-<version>`, so that it is fetched once; without it, only the
    step's output stays."""

    @property
    def folder(self) -> Path | None:
        """Where it is kept, if it is."""
        return Path(self.keep) / f"sonyc-ust-{self.version}" if self.keep else None

    @property
    def local_mirror(self) -> Path | None:
        """The mirror, if it is a folder."""
        return Path(self.mirror) if self.mirror and "://" not in self.mirror else None

    @model_validator(mode="after")
    def _address(self) -> "SonycUst":
        if self.mirror is None or self.local_mirror:
            return self
        if self.mirror.startswith("s3://"):
            if not S3_ADDRESS.fullmatch(self.mirror):
                raise ValueError("mirror must be s3://bucket/prefix, without credentials")
        elif not is_secure(self.mirror):
            raise ValueError("mirror must be https://host/path, s3://bucket/prefix or a folder; http:// is not secure")
        elif re.search(r"[@?#\s]", self.mirror):
            raise ValueError("mirror must be https://host/path, without credentials; ~/.netrc may hold them")
        return self


class Dataset(Section):
    """Where the recordings come from and how annotations become labels."""

    source: Literal["embedded", "sonyc-ust", "folder", "s3", "dvc"]
    """`embedded` generates city scenes; `sonyc-ust` downloads the published data set; the others read a folder in its
    format: annotations CSV, taxonomy YAML, audio."""
    sonyc_ust: SonycUst
    """Which version, and from where; used by source `sonyc-ust`."""
    path: Annotated[str, Field(min_length=1)]
    """That folder, on this machine or a mounted volume; used by source `folder`."""
    s3: str | None
    """That folder in a bucket, `s3://bucket/prefix`; used by source `s3`. boto3 finds the credentials, and
    AWS_ENDPOINT_URL names a server other than AWS. DVC does not see changes there: `dvc repro --force dataset`."""
    dvc: Repository | None
    """That folder in a git repository, pinned; used by source `dvc`."""
    seed: Seed
    """Seed of the embedded scenes."""
    clips: Clips
    """Size of the embedded data set."""
    train_rule: Literal["any", "majority", "mean"]
    """How the volunteers of a training clip are combined; `mean` gives soft targets."""
    coarse: Literal["from-fine", "as-published"]
    """Coarse labels from the fine ones, or from the CSV's own coarse columns."""
    min_seconds: Positive
    """A shorter clip is quarantined."""
    max_seconds: Positive
    """A longer clip is quarantined: its header probably states a wrong rate."""
    max_bad_share: Share
    """Largest share of quarantined or missing clips before the step fails."""
    shared_sensors: Literal["report", "refuse"]
    """What to do about a sensor whose clips are in two splits."""

    @property
    def source_name(self) -> str:
        """The source, for people; it holds no secret, as no address here may."""
        if self.source == "sonyc-ust":
            return f"SONYC-UST {self.sonyc_ust.version}"
        if self.source == "dvc" and self.dvc:
            return f"{self.dvc.url} {self.dvc.revision} {self.dvc.path}"
        return {"folder": self.path, "s3": str(self.s3)}.get(self.source, self.source)

    @model_validator(mode="after")
    def _durations(self) -> "Dataset":
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} <= max_seconds {self.max_seconds:g} must hold")
        return self

    @model_validator(mode="after")
    def _origin(self) -> "Dataset":
        if "://" in self.path:  # which may hold a password; and messages name the folder
            raise ValueError("path must be a folder of this machine; sources s3 and dvc are for what is elsewhere")
        if self.s3 is not None and not S3_ADDRESS.fullmatch(self.s3):
            raise ValueError("s3 must be s3://bucket/prefix, without credentials")
        if self.source == "s3" and self.s3 is None:
            raise ValueError("source s3 needs s3: s3://bucket/prefix")
        if self.source == "dvc" and self.dvc is None:
            raise ValueError("source dvc needs dvc: {url: a git repository, revision: a commit or tag, path: a folder}")
        return self


class Features(Section):
    """The log-mel front-end."""

    sample_rate: Annotated[int, Field(ge=4000, le=192_000, multiple_of=50)]
    """Hz; every clip is resampled to it."""
    clip_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False), BeforeValidator(_number)]
    """Clips are zero-padded or cut to this length."""
    window_length: Annotated[int, Field(ge=16, multiple_of=2)]
    """Samples of the Hann window and of the FFT; even."""
    hop_length: Count
    """Samples between frames."""
    mel_bands: Annotated[int, Field(ge=8, le=512)]
    """Number of mel bands."""
    low_hz: NonNegative
    """Lower edge of the lowest band."""
    high_hz: Positive
    """Upper edge of the highest band; at most half the sample rate."""
    log_offset: Annotated[float, Field(ge=1e-20, allow_inf_nan=False), BeforeValidator(_number)]
    """Added to the mel power before the logarithm."""
    clips_per_shard: Count
    """Clips that one worker writes at once; a killed step loses at most one shard per worker."""

    @model_validator(mode="after")
    def _limits(self) -> "Features":
        samples = self.clip_seconds * self.sample_rate
        if max(self.window_length, self.hop_length) > samples:
            raise ValueError(f"window_length and hop_length must not exceed a clip's {samples:g} samples")
        if not self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(
                f"low_hz {self.low_hz:g} < high_hz {self.high_hz:g} <= half of sample_rate {self.sample_rate} must hold"
            )
        return self


class Augmentation(Section):
    """Random changes of a training view."""

    roll: bool
    """Roll the clip in time by a random number of frames."""
    gain_db: NonNegative
    """Gain uniform in ± this many decibels."""
    mixup: Share
    """Share of clips that are mixed with another one."""
    time_masks: Annotated[int, Field(ge=0)]
    """SpecAugment time masks per clip."""
    time_mask_frames: Annotated[int, Field(ge=0)]
    """Longest time mask."""
    band_masks: Annotated[int, Field(ge=0)]
    """SpecAugment frequency masks per clip."""
    band_mask_bands: Annotated[int, Field(ge=0)]
    """Widest frequency mask."""


class Augmentations(Section):
    """A large network needs more change than a small one can bear."""

    teacher: Augmentation
    """Of what the teacher is trained on, drawn anew in each epoch."""
    views: Augmentation
    """Of what students are trained on, and what the teacher's knowledge is about."""


class Training(Section):
    """One optimisation: AdamW with a one-cycle learning rate."""

    epochs: Count
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=2)]
    """Clips per step."""
    learning_rate: Positive
    """Peak of the one-cycle schedule."""
    weight_decay: NonNegative
    """AdamW's decoupled weight decay."""
    patience: Count
    """Stop after this many epochs without a better micro-averaged AUPRC on validate."""
    precision: Literal["float32", "bfloat16"]
    """Autocast precision; similarities stay in float32."""
    device: Device
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """CPU threads of one training. It changes the order of sums, and so the last bits of a result."""


class Teacher(Section):
    """The large network, and what of it is kept for students."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    tags: TagSet
    """What teacher and students predict: 8 coarse tags, 23 fine tags, or all 31."""
    seed: Seed
    """Seed of initialisation, order and augmentation."""
    views: Count
    """Augmented views of every training clip for which the teacher's knowledge is stored."""
    knowledge: list[KnowledgeKind]
    """What is stored: `logits` for kd, inter, non_target and multilevel; `similarity` for iusp and skill; `embedding`
    for sp; `pooled` for vic; `attention` for attention; `hints` for fitnet."""
    layers: Layers
    """Of which layers similarity, embedding, attention and hints are stored, counted from the last, which is 1."""
    training: Training
    """The optimisation."""

    @property
    def knowledge_names(self) -> list[str]:
        """The packed files of knowledge."""
        return _names(self.knowledge, self.layers)


def _names(kinds: Sequence[str], layers: Sequence[int]) -> list[str]:
    return [
        name for kind in kinds for name in ([f"{kind}-{layer}" for layer in layers] if kind in PER_LAYER else [kind])
    ]


class Weights(Section):
    """Weights λ of the distillation losses, beside the labels' loss of weight 1."""

    kd: NonNegative
    """Soft labels."""
    sp: NonNegative
    """Similarities between the clips of a mini-batch."""
    iusp: NonNegative
    """Similarities between the frames of a clip."""
    skill: NonNegative
    """Similarities between the frames of a clip, averaged over clusters of the teacher's layers."""
    attention: NonNegative
    """Where in time and frequency a layer is active."""
    fitnet: NonNegative
    """Frames of a layer, through a trained regressor."""
    vic: NonNegative
    """Clip embeddings: variance, invariance, covariance."""
    inter: NonNegative
    """Labels and soft labels for auxiliary heads on middle layers."""
    non_target: NonNegative
    """Soft labels, those of a clip's absent tags emphasised."""
    multilevel: NonNegative
    """Soft labels, and how they correlate between tags and between clips."""
    consistency: NonNegative
    """A coarse tag is as probable as its most probable fine one; without a teacher."""


class TappedLayers(Section):
    """Layers that each method taps, counted from the last, which is 1: the student's and the teacher's of a number."""

    sp: Layers
    """Whose frames make a clip's vector."""
    iusp: Layers
    """Whose frames are compared."""
    skill: Layers
    """The teacher's, which are clustered; a cluster teaches the student's layer of the number of its last one."""
    attention: Layers
    """Whose activity is compared."""
    fitnet: Layers
    """Whose frames are regressed."""
    inter: Layers
    """The student's, which get a head each."""


class StudentTraining(Section):
    """What all students share."""

    weights: Weights
    """Weights of the losses; a student may override them."""
    layers: TappedLayers
    """Layers that the methods tap; a student may override them."""
    temperature: Positive
    """τ of `kd`, `inter`, `non_target` and `multilevel`: logits are divided by it before the sigmoid."""
    knowledge: Literal["cached", "online"]
    """`cached`: what the teacher has stored of its views. `online`: the teacher runs beside the student, on views that
    are drawn anew in each epoch."""
    training: Training
    """The optimisation."""


class Student(Section):
    """One branch of the graph: a small network and how it is taught."""

    architecture: Architecture
    """Family of the network."""
    parameters: Annotated[int, Field(ge=200)]
    """Budget: the widest network of the family with at most this many parameters is built."""
    method: str
    """`labels`, or distillation losses (docs/methods.md) joined by `+`: `kd`, `sp`, `iusp`, `iusp+kd`, …"""
    weights: dict[str, NonNegative] | None = None
    """Weights λ of this student where they differ from `student.weights`."""
    layers: dict[str, Layers] | None = None
    """Layers that the methods tap, where they differ from `student.layers`."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """One network is trained for each; the best on validate is registered."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The distillation losses of `method`, in a fixed order."""
        return tuple(method for method in METHODS if method in self.method.split("+"))

    def loss_weights(self, common: Weights) -> dict[str, float]:
        """Return the weights λ of the distillation losses of `method`; none for labels only."""
        weights = common.model_dump() | (self.weights or {})
        return {term: float(weights[term]) for term in self.terms}

    def tapped(self, common: TappedLayers) -> dict[str, list[int]]:
        """Return the layers that the distillation losses of `method` tap."""
        layers = common.model_dump() | (self.layers or {})
        return {term: layers[term] for term in self.terms if term in layers}

    def knowledge_names(self, common: TappedLayers) -> list[str]:
        """Return what of the teacher's stored knowledge `method` needs, by the names of its files."""
        tapped = self.tapped(common)
        kinds = {term: METHODS[term] for term in self.terms}
        return sorted({name for term, kind in kinds.items() if kind for name in _names([kind], tapped.get(term, ()))})

    @model_validator(mode="after")
    def _known(self) -> "Student":
        words = self.method.split("+")
        if words != ["labels"] and (len(set(words)) < len(words) or not set(words) <= set(METHODS)):
            raise ValueError(f"method {self.method!r} must be labels, or some of {', '.join(METHODS)} joined by +")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ")
        layered = [term for term in self.terms if term in TappedLayers.model_fields]
        for what, given, used in (("weights", self.weights, self.terms), ("layers", self.layers, layered)):
            if unused := set(given or {}) - set(used):
                raise ValueError(f"{what} of {', '.join(sorted(unused))}, which method {self.method!r} does not use")
        return self


class Evaluation(Section):
    """Intervals, cost and pictures."""

    resamples: Annotated[int, Field(ge=10)]
    """Bootstrap resamples of the clips."""
    seed: Seed
    """Seed of the bootstrap."""
    latency_runs: Count
    """Timed runs per network; the median is reported."""
    pictured_clips: Annotated[int, Field(ge=0)]
    """Clips whose frame similarities are drawn."""
    calibration_clips: Count
    """Training clips that tell int8 the range of every activation."""
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+() -]*$")]
    """Of the exported students' weights, an SPDX expression; the recordings' terms may ask for another."""


DeviceFile = Literal["net_float32.onnx", "net_int8.onnx", "float32.onnx", "int8.onnx"]
"""Of what a version has for devices: the net alone, or from waveform to probabilities; in float32 or int8."""


class Floors(Section):
    """Coarse AUPRC on the evaluated split that the champion must reach."""

    micro_auprc: Share
    """Micro average."""
    macro_auprc: Share
    """Macro average; it depends a little on the processor that evaluated (docs/promotion.md)."""
    classes: dict[str, Share]
    """AUPRC by coarse tag, of the classes that a release cares about."""


class Budgets(Section):
    """What the champion may cost."""

    parameters: Count
    """Of the network."""
    macs: Count
    """Multiply-accumulates of one clip, without the front-end."""
    bytes: dict[DeviceFile, Count]
    """Size by file for devices."""
    latency_ms: dict[DeviceFile, Positive]
    """Median time of one clip on one thread, by file for devices."""


class Regression(Section):
    """How much worse than today's champion the next one may be, on the same clips (micro AUPRC, paired bootstrap)."""

    probability_worse: Share
    """Largest acceptable probability of being worse."""
    difference_low: Annotated[float, Field(ge=-1, le=0), BeforeValidator(_number)]
    """The lower end of the difference's 95 % interval must not lie below."""


class Parity(Section):
    """How far the files for devices may be from the network."""

    max_difference: Positive
    """Largest difference of a probability, of the float32 files."""
    auprc_loss: NonNegative
    """Largest loss of micro AUPRC, of the int8 files."""


class Gate(Section):
    """What a version must pass to become the champion."""

    floors: Floors
    """How good it must be."""
    budgets: Budgets
    """What it may cost."""
    regression: Regression
    """Against today's champion."""
    parity: Parity
    """Between network and files for devices."""


class Registration(Section):
    """Names in MLflow, and what becomes the champion."""

    experiment: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Experiment that holds the runs."""
    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Registered model of which every student becomes a version; `<model_name>.promotions` keeps the history."""
    outage: Literal["keep", "fail"]
    """While MLflow fails, training goes on, and the registration step delivers what is missing (`keep`); or the step
    fails at once, and goes on from its last epoch when it is run again (`fail`). Registration itself always fails."""
    auto_promote: bool
    """The registration step promotes the challenger if the gate lets it; otherwise `iusp promote` is a person's act."""
    gate: Gate
    """Thresholds of promotion."""


Quantity = Annotated[str, Field(pattern=r"^(0\.0*)?[1-9][0-9]*(\.[0-9]+)?(m|[KMGT]i?)?$")]
"""Text, as Kubernetes writes it: `"2"`, `500m`, `4Gi`."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Of an object in Kubernetes."""
Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
"""Value of a label in Kubernetes."""
Image = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
    ),
]
"""Of a container: `registry/name:tag`, `registry/name@sha256:…`."""


class Toleration(Section):
    """Lets a pod onto nodes with this taint."""

    key: str | None = None
    """The taint's key; any where there is none."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How `value` is compared."""
    value: str | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; any where there is none."""

    @model_validator(mode="after")
    def _sense(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key; operator Exists without one bears every taint")
        return self


class Accelerator(Section):
    """Accelerators of one pod."""

    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")]
    """The device plugin's name of it, such as `nvidia.com/gpu`."""
    count: Count
    """How many."""


class Volume(Section):
    """A claim that is mounted into the dataset step's pod."""

    claim: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9]")]
    """Where it is mounted; `dataset.path` is a folder below."""

    @model_validator(mode="after")
    def _apart(self) -> "Volume":
        if self.path.split("/")[1] in ("tmp", "work", "opt", "usr", "etc", "kfp-launcher"):
            raise ValueError(f"path {self.path}: has another use; name one such as /recordings")
        return self


class Pod(Section):
    """What a step's pods ask of the cluster."""

    cpu: Quantity
    """Cores, requested and limited."""
    memory: Quantity
    """Bytes, requested and limited."""
    accelerator: Accelerator | None
    """Accelerators of one pod, if any."""
    retries: Annotated[int, Field(ge=0)]
    """How often a failed pod is tried again."""
    backoff_seconds: Count
    """Pause before the first retry; it doubles with each further one."""
    timeout_seconds: Count
    """A pod that takes longer is ended."""
    node_selector: dict[str, Label]
    """Labels of the nodes that it may run on."""
    tolerations: list[Toleration]
    """Taints that it bears."""


class Kubeflow(Section):
    """How the pipeline runs on a cluster. Nothing here changes a result."""

    image: Image
    """Of the steps that need torch: docker/Dockerfile's target `cpu` or `cuda`."""
    light_image: Image
    """Of the others: target `light`."""
    user: Annotated[int, Field(ge=1)]
    """User id of all pods, never root's."""
    parallelism: Count
    """Parts of the features, or students, at once."""
    feature_parts: Count
    """Pods that the features are divided among."""
    mlflow_secret: ObjectName | None
    """Secret with MLFLOW_TRACKING_URI and, if the server asks, MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN."""
    storage_secret: ObjectName | None
    """Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if need be, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION."""
    volume: Volume | None
    """Recordings on a volume of the cluster."""
    work_claim: ObjectName | None
    """Claim (ReadWriteMany) for work in progress, so that a pod that is tried again goes on where it was."""
    pod: Pod
    """Of every step."""
    steps: dict[str, dict[str, Any]]
    """By the step's name, the keys of `pod` in which it differs."""

    def pod_of(self, step: str) -> Pod:
        """Return what the pods of a step ask for."""
        return Pod.model_validate(self.pod.model_dump() | self.steps.get(step, {}))

    @model_validator(mode="after")
    def _steps(self) -> "Kubeflow":
        for step in self.steps:
            if step not in STEPS:
                raise ValueError(f"steps.{step}: there is no such step, only {', '.join(STEPS)}")
            try:
                self.pod_of(step)
            except ValidationError as error:
                raise ValueError(f"steps.{step}.{_problems(error)}") from None
        return self


class Settings(Section):
    """All of `params.yaml` that shapes a result."""

    dataset: Dataset
    """The recordings."""
    features: Features
    """The front-end."""
    augmentation: Augmentations
    """Of training clips."""
    teacher: Teacher
    """The large network."""
    student: StudentTraining
    """What all students share."""
    students: Annotated[dict[str, Student], Field(min_length=1)]
    """The small networks, by name."""
    evaluation: Evaluation
    """The judgement."""
    registration: Registration
    """The registry."""

    def settings(self) -> dict[str, Any]:
        """Return all that shapes a result, as `params.yaml` has it."""
        return self.model_dump(mode="json", by_alias=True, include=set(Settings.model_fields))

    @model_validator(mode="after")
    def _names(self) -> "Settings":
        for name in self.students:
            if not NAME.fullmatch(name) or name == "teacher":
                raise ValueError(f"students.{name}: a student's name is lower-case letters, digits and _, not teacher")
        return self

    @model_validator(mode="after")
    def _known(self) -> "Settings":
        for name, student in self.students.items():
            if missing := set(student.knowledge_names(self.student.layers)) - set(self.teacher.knowledge_names):
                kind, _, layer = min(missing).partition("-")
                raise ValueError(
                    f"students.{name}: {student.method} needs the teacher's {kind}{layer and ' of layer '}{layer}; "
                    f"add it to teacher.knowledge{layer and ' and teacher.layers'}"
                )
            if "consistency" in student.terms and self.teacher.tags != "both":
                raise ValueError(f"students.{name}: consistency needs coarse and fine tags; set teacher.tags: both")
        return self


class Config(Settings):
    """The whole of `params.yaml`."""

    kubeflow: Kubeflow
    """The cluster."""


def load(path: Path, changes: Sequence[str] = ()) -> Config:
    """Read and check a `params.yaml`.

    Args:
        path: the file.
        changes: `key.of.it=value` (YAML) to be used instead of what it says.

    Raises:
        InputError: the file is missing, is not YAML, or a key is unknown, missing or ill-typed; every such key is
            named by its path.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run in the project's folder or give --params FILE") from None
    except ValueError as error:
        raise InputError(f"{path}: not YAML ({error})") from None
    for change in changes:
        _change(document, change)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {_problems(error)} (iusp config --schema tells what is allowed)") from None


def _problems(error: ValidationError) -> str:
    """Name every wrong key by its path."""
    return "; ".join(
        f"{'.'.join(map(str, detail['loc'])) or 'top level'}: "
        + ("no such key" if detail["type"] == "extra_forbidden" else detail["msg"].removeprefix("Value error, "))
        for detail in error.errors(include_input=False, include_url=False)
    )


def _change(document: Any, change: str) -> None:
    """Set one key of a document in place."""
    key, equals, value = change.partition("=")
    *parents, last = key.split(".")
    try:
        for parent in parents:
            document = document[parent]
        document[last] = parse_yaml(value)
    except (KeyError, TypeError, ValueError):
        equals = ""
    if not equals:
        raise InputError(f"{change}: not KEY=VALUE of a key that there is, such as teacher.training.epochs=30")
