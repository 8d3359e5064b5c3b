import subprocess
from dataclasses import replace

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from pipelines.trainjob import TEACHER, Pods, Secrets, manifest

pytestmark = pytest.mark.integration

PODS = Pods(
    image="registry.example/iusp@sha256:0",
    claim="project",
    user=10001,
    nodes=2,
    processes_per_node=4,
    cpu="8",
    memory="32Gi",
    accelerators={"nvidia.com/gpu": 4},
    node_selector={"pool": "gpu"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
)
SECRETS = Secrets({"MLFLOW_TRACKING_URI": "iusp-mlflow"}, {"MLFLOW_TRACKING_TOKEN": "iusp-mlflow"})


@pytest.fixture
def job():
    return manifest("teacher", PODS, SECRETS, 43200)


@pytest.fixture
def pod(job):
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    return replicated["template"]["spec"]["template"]["spec"]


def test_trainer_knows_every_field(job):
    # What its models, made from the API's own schema, do not know, they leave out.
    known = TrainerV1alpha1TrainJob.from_dict(yaml.safe_load(yaml.safe_dump(job))).to_dict()
    assert known == job


def test_the_size_of_the_job(job):
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    wanted = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "4"}
    assert trainer["resourcesPerNode"] == {"requests": wanted, "limits": wanted}
    assert "&id" not in yaml.safe_dump(job), "an anchor, which people do not expect in a manifest"
    small = manifest("teacher", replace(PODS, accelerators={}), SECRETS, 43200)
    assert small["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "32Gi"}


def test_pods_may_do_little(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    (container,) = pod["containers"]
    assert container["name"] == "node"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_mount_has_its_volume(pod):
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["project"] == {"persistentVolumeClaim": {"claimName": "project"}}
    assert mounts["project"] == "/project"


def test_secrets_are_named_and_only_in_the_trainers_own_list(job, pod):
    assert job["spec"]["trainer"]["env"] == [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "iusp-mlflow", "key": name, "optional": optional}}}
        for name, optional in (("MLFLOW_TRACKING_URI", False), ("MLFLOW_TRACKING_TOKEN", True))
    ]
    # Trainer's webhook refuses a patch with variables of its container.
    assert "env" not in pod["containers"][0]


def test_the_command_runs_in_the_claim(job, tmp_path):
    trainer = job["spec"]["trainer"]
    assert trainer["args"] == list(TEACHER)
    *shell, folder = trainer["command"]
    assert folder == "/project"
    done = subprocess.run([*shell, str(tmp_path), "pwd"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path)
    gone = subprocess.run([*shell, str(tmp_path / "none"), "pwd"], capture_output=True, check=False)
    assert gone.returncode != 0
