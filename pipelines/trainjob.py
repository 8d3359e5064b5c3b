"""The teacher step as a TrainJob of Kubeflow Trainer (2.2 and later), for a teacher too big for one process.

Each node runs `torchrun`, which Trainer tells of the others by PET_* variables. What the job reads and writes lies on a
claim that all nodes mount: params.yaml and data/, and models/, which the first process writes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# torchrun, by the name that depends on no script.
TEACHER = ("python", "-m", "torch.distributed.run", "-m", "iusp", "teacher")
# The ClusterTrainingRuntime, and where the claim is mounted in its pods.
RUNTIME = "torch-distributed"
FOLDER = "/project"
# Trainer's name both of the job and of the container that trains; a patch finds them by it.
NODE = "node"


def manifest(
    name: str,
    image: str,
    claim: str,
    *,
    user: int,
    nodes: int,
    processes_per_node: int,
    cpu: str,
    memory: str,
    accelerators: Mapping[str, int],
    timeout_seconds: int,
    node_selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, str]],
    secrets: Mapping[str, str],
    optional_secrets: Mapping[str, str],
) -> dict[str, Any]:
    """Return the manifest, for `yaml.safe_dump`; it holds names of secrets, never a value.

    Args:
        name: of the job, as a DNS label.
        image: with torch, by digest.
        claim: PersistentVolumeClaim with the project; ReadWriteMany where there are several nodes.
        user: id that the processes, and the files they write, have; never root's.
        nodes: pods.
        processes_per_node: ranks in each pod; with GPUs, as many as it has.
        cpu: cores of a pod, requested and limited, such as `8`.
        memory: bytes of a pod, requested and limited, such as `32Gi`.
        accelerators: of a pod, by the device plugin's name, such as `nvidia.com/gpu`.
        timeout_seconds: a job that takes longer is ended.
        node_selector: labels of the nodes that the pods may run on.
        tolerations: taints that they bear, as Kubernetes writes them.
        secrets: by environment variable, the Secret that has it as a key.
        optional_secrets: likewise, but the key may be missing.
    """
    resources = {"cpu": cpu, "memory": memory} | {resource: str(count) for resource, count in accelerators.items()}
    variables = [(variable, secret, False) for variable, secret in secrets.items()]
    variables += [(variable, secret, True) for variable, secret in optional_secrets.items()]
    trainer = {
        "image": image,
        # A TrainJob cannot set the working folder.
        "command": ["sh", "-c", 'cd "$0" && exec "$@"', FOLDER],
        "args": list(TEACHER),
        # Not in the patch below: Trainer refuses variables of its own container there.
        "env": [
            {
                "name": variable,
                "valueFrom": {"secretKeyRef": {"name": secret, "key": variable, "optional": optional}},
            }
            for variable, secret, optional in variables
        ],
        "numNodes": nodes,
        "numProcPerNode": processes_per_node,
        "resourcesPerNode": {"requests": resources, "limits": dict(resources)},
    }
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
    pod = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            # Else a large claim's files are all given to the group at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(node_selector),
        "tolerations": [dict(toleration) for toleration in tolerations],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {}},
            # Processes of a pod exchange gradients by NCCL through it; a container's own has 64 MiB.
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [container],
    }
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
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
