"""`kubeflow` of params.yaml: how the pipeline runs on a cluster."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from iusp.config.base import STEPS, Count, Section, _problems

Quantity = Annotated[str, Field(pattern=r"^(0\.0*)?[1-9][0-9]*(\.[0-9]+)?(m|[KMGT]i?)?$")]
"""A quantity of Kubernetes, as text: `"2"`, `500m`, `4Gi`."""


ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""Name of an object in Kubernetes."""


Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
"""Value of a label in Kubernetes."""


Image = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
    ),
]
"""A container image: `registry/name:tag` or `registry/name@sha256:…`."""


class Toleration(Section):
    """Allows a pod to run on nodes with this taint."""

    key: str | None = None
    """Key of the taint; null: any key."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the taint must have `value`, or only exist."""
    value: str | None = None
    """Value of the taint, for operator `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; null: any effect."""

    @model_validator(mode="after")
    def _sense(self) -> "Toleration":
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key; operator Exists without a key tolerates every taint")
        return self


class Accelerator(Section):
    """Accelerators of one pod."""

    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")]
    """Resource name of the device plugin, such as `nvidia.com/gpu`."""
    count: Count
    """Number of accelerators."""


class Volume(Section):
    """A volume that is mounted into the pod of the dataset step."""

    claim: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9]")]
    """Mount point; `dataset.path` must be a folder below it."""

    @model_validator(mode="after")
    def _apart(self) -> "Volume":
        if self.path.split("/")[1] in ("tmp", "work", "opt", "usr", "etc", "kfp-launcher"):
            raise ValueError(f"path {self.path}: is used by the image; choose another one, such as /recordings")
        return self


class Pod(Section):
    """Resources and scheduling of the pods of a step."""

    cpu: Quantity
    """Number of CPU cores, both request and limit."""
    memory: Quantity
    """Memory in bytes, both request and limit."""
    accelerator: Accelerator | None
    """Accelerators of one pod; null: none."""
    retries: Annotated[int, Field(ge=0)]
    """Number of retries of a failed pod."""
    backoff_seconds: Count
    """Pause in seconds before the first retry; it doubles with each further retry."""
    timeout_seconds: Count
    """Longest run time of a pod in seconds; then it is stopped."""
    node_selector: dict[str, Label]
    """Labels that a node must have."""
    tolerations: list[Toleration]
    """Taints that the pod tolerates: it may run on nodes that have them."""


class Kubeflow(Section):
    """How the pipeline runs on a cluster; no setting here changes a result."""

    image: Image
    """Image of the steps that need torch: target `cpu` or `cuda` of docker/Dockerfile."""
    light_image: Image
    """Image of the other steps: target `light` of docker/Dockerfile."""
    user: Annotated[int, Field(ge=1)]
    """User id of all pods; not 0 (root)."""
    parallelism: Count
    """Largest number of feature parts, or students, that run at the same time."""
    feature_parts: Count
    """Number of pods that share the features step."""
    mlflow_secret: ObjectName | None
    """Secret with MLFLOW_TRACKING_URI and, if needed, MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN."""
    storage_secret: ObjectName | None
    """Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION."""
    volume: Volume | None
    """Volume of the cluster that holds the recordings; null: none."""
    work_claim: ObjectName | None
    """Claim (ReadWriteMany) of a volume for work in progress, so that a retried pod resumes; null: none."""
    pod: Pod
    """Settings of the pods of every step."""
    steps: dict[str, dict[str, Any]]
    """Per step, the keys of `pod` that differ for it."""

    def pod_of(self, step: str) -> Pod:
        """Return the settings of the pods of a step."""
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
