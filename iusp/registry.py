"""The MLflow model registry: every student is a version of one registered model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from iusp.errors import InputError
from iusp.files import digest, sha256

DIGEST_TAG = "iusp.digest"
ARTIFACT = "student"


def register(client: MlflowClient, model_name: str, run_id: str, model: Path, tags: Mapping[str, Any]) -> int:
    """Make an exported student a version of a registered model, unless it is one already.

    Args:
        client: of the tracking server.
        model_name: the registered model.
        run_id: of the student's run; it gets the model's files.
        model: folder that `export.export` wrote.
        tags: metrics and lineage, kept as the version's tags.

    Returns:
        The version's number.
    """
    extra = model / "extra_files"
    identity = digest([sha256(extra / "weights.safetensors"), sha256(extra / "config.json")])
    try:
        client.create_registered_model(model_name, description="Students distilled for urban sound tagging (iusp)")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{identity}'")
    if found:
        version = max(found, key=lambda one: int(one.version))
    else:
        client.log_artifacts(run_id, str(model), ARTIFACT)
        source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
        version = client.create_model_version(model_name, source, run_id, tags={DIGEST_TAG: identity})
    for name, value in tags.items():
        client.set_model_version_tag(model_name, version.version, name, str(value))
    return int(version.version)


def set_challenger(client: MlflowClient, model_name: str, version: int) -> None:
    """Point the alias `challenger` at a version."""
    client.set_registered_model_alias(model_name, "challenger", str(version))


def fetch_artifacts(client: MlflowClient, model_name: str, alias_or_version: str | int, path: str, folder: Path) -> int:
    """Download some of a registered version's artifacts.

    Args:
        client: of the tracking server.
        model_name: the registered model.
        alias_or_version: such as `champion`, or a version's number.
        path: of a folder or file among the artifacts, such as `device` or `evaluation/predictions.csv`.
        folder: existing or not; what is downloaded is `folder / path` afterwards.

    Returns:
        The version's number.

    Raises:
        InputError: there is no such version, or it has no such artifact.
    """
    named = str(alias_or_version)
    try:
        if named.isdecimal():
            version = client.get_model_version(model_name, named)
        else:
            version = client.get_model_version_by_alias(model_name, named)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"{model_name}: has no version or alias {named}; register or promote one first") from None
    source = client.get_model_version_download_uri(model_name, version.version)
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_artifacts(f"{source}/{path}", dst_path=str(target.parent), tracking_uri=client.tracking_uri)
    except (OSError, MlflowException):  # whichever the kind of storage raises
        raise InputError(
            f"{model_name} version {version.version}: has no artifact {path} that can be downloaded; register the "
            "student anew, or check MLflow's artifact storage"
        ) from None
    return int(version.version)
