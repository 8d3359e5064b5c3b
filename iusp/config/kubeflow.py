"""`kubeflow` of params.yaml: how the pipeline runs on a cluster."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from iusp.config.base import STEPS, Count, Section, _problems

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
