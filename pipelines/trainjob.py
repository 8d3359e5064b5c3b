"""The teacher step as a TrainJob of Kubeflow Trainer (2.2 and later), for a teacher too large for one process.

Each node runs `torchrun`, to which Trainer passes the addresses of the other nodes in PET_* variables. All nodes mount
one volume claim with params.yaml and data/. The first process writes models/ to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# torchrun, started as a module because the script may not be on the path.
TEACHER = ("python", "-m", "torch.distributed.run", "-m", "iusp", "teacher")
# The ClusterTrainingRuntime, and where the claim is mounted in its pods.
RUNTIME = "torch-distributed"
FOLDER = "/project"
# The name that Trainer gives to the job and to its training container; the patch below refers to it.
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
    """Return the manifest for `yaml.safe_dump`. It contains names of secrets, never their values.

    Args:
        name: name of the job, a DNS label.
        image: image with torch, pinned by digest.
        claim: name of the PersistentVolumeClaim with the project; ReadWriteMany if there are several nodes.
        user: user id of the processes and of the files that they write; never root's.
        nodes: number of pods.
        processes_per_node: number of processes in each pod; one per GPU if it has GPUs.
        cpu: number of cores of a pod, both request and limit, such as `8`.
        memory: memory of a pod, both request and limit, such as `32Gi`.
        accelerators: number of accelerators of a pod by resource name, such as `nvidia.com/gpu`.
        timeout_seconds: time limit of the job.
        node_selector: labels that a node must have.
        tolerations: tolerations of the pods, as Kubernetes writes them.
        secrets: name of the Secret for each environment variable, which is also the key.
        optional_secrets: the same for keys that the Secret may lack.
    """
    resources = {"cpu": cpu, "memory": memory} | {resource: str(count) for resource, count in accelerators.items()}
    variables = [(variable, secret, False) for variable, secret in secrets.items()]
    variables += [(variable, secret, True) for variable, secret in optional_secrets.items()]
    trainer = {
        "image": image,
        # A TrainJob cannot set the working folder.
        "command": ["sh", "-c", 'cd "$0" && exec "$@"', FOLDER],
        "args": list(TEACHER),
        # Not in the patch below, because Trainer rejects variables of its own container there.
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
            # Otherwise Kubernetes changes the group of every file of the claim at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(node_selector),
        "tolerations": [dict(toleration) for toleration in tolerations],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {}},
            # NCCL exchanges gradients between processes of a pod through it; the default of 64 MiB is too small.
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
