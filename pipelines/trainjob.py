"""The teacher step as a TrainJob of Kubeflow Trainer (2.2 and later), for a teacher too large for one process.

Each node runs `torchrun`, to which Trainer passes the addresses of the other nodes in PET_* variables. All nodes mount
one volume claim with params.yaml and data/. The first process writes models/ to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# torchrun, started as a module because the script may not be on the path.
TEACHER = ("python", "-m", "torch.distributed.run", "-m", "iusp", "teacher")
# The ClusterTrainingRuntime, and where the claim is mounted in its pods.
RUNTIME = "torch-distributed"
FOLDER = "/project"
# The name that Trainer gives to the job and to its training container; the patch below refers to it.
NODE = "node"


@dataclass(frozen=True)
class Pods:
    """The pods of a job.

    Attributes:
        image: image with torch, pinned by digest.
        claim: name of the PersistentVolumeClaim with the project; ReadWriteMany if there are several nodes.
        user: user id of the processes and of the files that they write; never root's.
        nodes: number of pods.
        processes_per_node: number of processes in each pod; one per GPU if it has GPUs.
        cpu: number of cores of a pod, both request and limit, such as `8`.
        memory: memory of a pod, both request and limit, such as `32Gi`.
        accelerators: number of accelerators of a pod by resource name, such as `nvidia.com/gpu`.
        node_selector: labels that a node must have.
        tolerations: tolerations of the pods, as Kubernetes writes them.
    """

    image: str
    claim: str
    user: int
    nodes: int
    processes_per_node: int
    cpu: str
    memory: str
    accelerators: Mapping[str, int]
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, str]]

    @property
    def resources(self) -> dict[str, str]:
        """Requests and limits of a pod."""
        accelerators = {resource: str(count) for resource, count in self.accelerators.items()}
        return {"cpu": self.cpu, "memory": self.memory} | accelerators


@dataclass(frozen=True)
class Secrets:
    """Environment variables that come from Secrets.

    Attributes:
        required: name of the Secret for each variable, which is also the key.
        optional: the same for keys that the Secret may lack.
    """

    required: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> list[dict[str, Any]]:
        """The variables as Kubernetes writes them; they contain names of Secrets, never their values."""
        variables = [(variable, secret, False) for variable, secret in self.required.items()]
        variables += [(variable, secret, True) for variable, secret in self.optional.items()]
        return [
            {
                "name": variable,
                "valueFrom": {"secretKeyRef": {"name": secret, "key": variable, "optional": optional}},
            }
            for variable, secret, optional in variables
        ]


def manifest(name: str, pods: Pods, secrets: Secrets, timeout_seconds: int) -> dict[str, Any]:
    """Return the manifest for `yaml.safe_dump`. It contains names of Secrets, never their values.

    Args:
        name: name of the job, a DNS label.
        pods: the pods of the job.
        secrets: environment variables that come from Secrets.
        timeout_seconds: time limit of the job.
    """
    trainer = {
        "image": pods.image,
        # A TrainJob cannot set the working folder.
        "command": ["sh", "-c", 'cd "$0" && exec "$@"', FOLDER],
        "args": list(TEACHER),
        # Not in the patch below, because Trainer rejects variables of its own container there.
        "env": secrets.variables,
        "numNodes": pods.nodes,
        "numProcPerNode": pods.processes_per_node,
        "resourcesPerNode": {"requests": pods.resources, "limits": pods.resources},
    }
    job = {"name": NODE, "template": {"spec": {"template": {"spec": _pod(pods)}}}}
    patch = {"manager": "iusp/pipelines", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": trainer,
            "runtimePatches": [patch],
            "activeDeadlineSeconds": timeout_seconds,
        },
    }


def _pod(pods: Pods) -> dict[str, Any]:
    """Return what the runtime's pods get in addition: who they run as, where, and with which volumes."""
    container = {
        "name": NODE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "project", "mountPath": FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (the image writes there)
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 (where it is)
        ],
    }
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": pods.user,
            "runAsGroup": pods.user,
            "fsGroup": pods.user,
            # Otherwise Kubernetes changes the group of every file of the claim at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [dict(toleration) for toleration in pods.tolerations],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": pods.claim}},
            {"name": "tmp", "emptyDir": {}},
            # NCCL exchanges gradients between processes of a pod through it; the default of 64 MiB is too small.
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [container],
    }
