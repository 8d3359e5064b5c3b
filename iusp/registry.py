"""The MLflow model registry: every student is a version of one registered model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, set_tracking_uri
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from iusp.errors import InputError
from iusp.files import digest, sha256
from iusp.tracking import tracking_uri

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


def fetch_device(model: str, output: Path) -> Path:
    """Download what a device needs of a registered version.

    Args:
        model: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        output: an empty folder.

    Returns:
        The folder that holds `device.json`.

    Raises:
        InputError: the version has nothing for devices.
    """
    set_tracking_uri(tracking_uri())
    try:
        return Path(download_artifacts(f"{model}/device", dst_path=str(output)))
    except MlflowException as error:
        if "downloading" not in str(error):
            raise
        raise InputError(
            f"{model}: its device/ cannot be downloaded; a version without one was registered before there was any"
        ) from None


def set_challenger(client: MlflowClient, model_name: str, version: int) -> None:
    """Point the alias `challenger` at a version."""
    client.set_registered_model_alias(model_name, "challenger", str(version))
