"""The MLflow model registry: every student is a version of one registered model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from iusp.errors import InputError
from iusp.io.files import digest, sha256
from iusp.registry.tracking import connect, readable_errors, readable_storage, server_message

DIGEST_TAG = "iusp.digest"
ARTIFACT, EVALUATION = "student", "evaluation"


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
    files = [extra / "weights.safetensors", extra / "config.json", *sorted((model / "device").glob("*.onnx"))]
    identity = digest([sha256(path) for path in files])
    _create(client, model_name, "Students distilled for urban sound tagging (iusp)")
    same = f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{identity}'"
    found = client.search_model_versions(same, order_by=["version_number ASC"])
    described = {DIGEST_TAG: identity} | {name: str(value) for name, value in tags.items()}
    if found:
        version = found[0]
        if (model / EVALUATION).is_dir():  # what is measured may be measured anew, like the tags
            _store(client, str(version.run_id), model / EVALUATION, f"{ARTIFACT}/{EVALUATION}")
        for name, value in described.items():
            client.set_model_version_tag(model_name, version.version, name, value)
    else:
        _store(client, run_id, model, ARTIFACT)
        source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
        # After its files, and with its tags in one transaction: a version that is there is whole.
        client.create_model_version(model_name, source, run_id, tags=described, await_creation_for=0)
        # Another process made one at once, or an answer was lost and MLflow's client asked again: the first counts.
        version, *doubles = client.search_model_versions(same, order_by=["version_number ASC"])
        for double in doubles:
            _delete(client, model_name, double.version)
    return int(version.version)


def _store(client: MlflowClient, run_id: str, folder: Path, path: str) -> None:
    with readable_storage(f"{folder} cannot be stored"):
        client.log_artifacts(run_id, str(folder), path)


def set_challenger(client: MlflowClient, model_name: str, version: int) -> None:
    """Point the alias `challenger` at a version."""
    client.set_registered_model_alias(model_name, "challenger", str(version))


def _create(client: MlflowClient, model_name: str, description: str) -> None:
    """Create a registered model unless it is there."""
    try:
        client.create_registered_model(model_name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _delete(client: MlflowClient, model_name: str, version: str) -> None:
    """Delete a version, unless it has been: MLflow's client asks again where the answer was lost."""
    try:
        client.delete_model_version(model_name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of the registered model.

    Attributes:
        number: of the version.
        aliases: that point to it.
        registered: when, by the server's clock.
        run_id: MLflow run that trained it.
        source: where its files are.
        tags: metrics, cost and lineage.
    """

    number: int
    aliases: tuple[str, ...]
    registered: datetime
    run_id: str | None
    source: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Record:
    """An entry of the log, as the registry keeps it: content, and what the registry says of it."""

    number: int
    time: datetime
    content: str


class UncertainError(Exception):
    """MLflow failed in a way that leaves open whether it did what it was asked to."""


@contextmanager
def uncertain() -> Iterator[None]:
    """Tell the failures of MLflow after which one has to look what was done, and may try again.

    They are a database that was locked; others that were faster (each time that MLflow tried the next version's number,
    or with the same alias, which two cannot insert); an answer that was lost, or is one of the server's 5xx.

    Raises:
        UncertainError: instead of these; others pass through.
    """
    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST"):
            raise
        raise UncertainError(server_message(error)) from None


class Registry:
    """The registered model as promotion sees it: versions, aliases, and a log.

    The log is a second registered model, `<name>.promotions`, whose version n is the n-th entry. That makes it an
    ordered log on every backend: MLflow numbers versions by their primary key, so that of two who append at once one
    comes first, whoever looks; n + 1 is given only when n can be seen; and a version, once created with its tags in one
    transaction, is there or is not.

    MLflow's errors pass through: see `iusp.registry.tracking.readable_errors`, and `uncertain`.
    """

    def __init__(self, model_name: str, client: MlflowClient | None = None) -> None:
        self.client = client or connect()
        self.model_name = model_name
        self.log_name = f"{model_name}.promotions"

    def aliases(self) -> dict[str, int]:
        """Return the version of each alias.

        Raises:
            InputError: there is no such registered model.
        """
        try:
            found = self.client.get_registered_model(self.model_name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise InputError(
                f"MLflow has no registered model {self.model_name}; run the registration step (dvc repro), or correct "
                "registration.model_name or MLFLOW_TRACKING_URI"
            ) from None
        return {alias: int(version) for alias, version in found.items()}

    def point(self, alias: str, version: int | None) -> None:
        """Let an alias point to a version, or to none."""
        if version is None:
            self.client.delete_registered_model_alias(self.model_name, alias)
        else:
            self.client.set_registered_model_alias(self.model_name, alias, str(version))

    def versions(self) -> list[RegisteredVersion]:
        """Return all versions, the newest first."""
        aliases = self.aliases()
        return [_version(one, aliases) for one in reversed(self._search(self.model_name))]

    def version(self, number: int) -> RegisteredVersion:
        """Return one version.

        Raises:
            InputError: there is no such version.
        """
        aliases = self.aliases()
        try:
            return _version(self.client.get_model_version(self.model_name, str(number)), aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise InputError(f"{self.model_name} has no version {number}; iusp models lists them") from None

    def log(self, tag: str) -> list[Record]:
        """Return the log's entries in their order; `tag` holds the content."""
        return [
            Record(int(one.version), _time(one), one.tags[tag])
            for one in self._search(self.log_name)
            if tag in one.tags  # else somebody else's
        ]

    def append(self, version: int, tag: str, content: str, description: str) -> None:
        """Append an entry about a version to the log; it is there twice if an answer was lost on the way."""
        _create(self.client, self.log_name, f"Who promoted which version of {self.model_name}, written by iusp promote")
        self.client.create_model_version(
            self.log_name,
            f"models:/{self.model_name}/{version}",
            tags={tag: content},
            description=description,
            await_creation_for=0,
        )

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove entries from the log; their numbers are not given again."""
        for number in numbers:
            _delete(self.client, self.log_name, str(number))

    def _search(self, model_name: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self.client.search_model_versions(
                f"name = '{model_name}'", max_results=1000, order_by=["version_number ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found


def _time(version: ModelVersion) -> datetime:
    return datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)


def _version(one: ModelVersion, aliases: Mapping[str, int]) -> RegisteredVersion:
    number = int(one.version)
    named = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    return RegisteredVersion(number, named, _time(one), one.run_id or None, str(one.source), dict(one.tags))


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
        InputError: there is no such version, it has no such artifact, or that cannot be fetched.
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
    what = f"{model_name} version {version.version}"
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with readable_storage(f"{what}: {path} cannot be fetched"):
        source = client.get_model_version_download_uri(model_name, version.version)
        above, _, last = f"{source}/{path}".rpartition("/")
        found = {Path(one.path).name for one in list_artifacts(artifact_uri=above, tracking_uri=client.tracking_uri)}
        if last not in found:
            raise InputError(f"{what}: has no artifact {path}; run the evaluation and registration steps (dvc repro)")
        download_artifacts(f"{above}/{last}", dst_path=str(target.parent), tracking_uri=client.tracking_uri)
    return int(version.version)


def fetch_model(model: str, folder: Path, *paths: str) -> None:
    """Download artifacts of a model that MLflow's address names, from the registry of MLFLOW_TRACKING_URI.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: as of `fetch_artifacts`.
        paths: likewise, of each artifact.

    Raises:
        InputError: it is no such address, or as of `fetch_artifacts`.
    """
    if not (named := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model)):
        raise InputError(f"{model}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = named.groups()
    with readable_errors():
        client = connect()
        for path in paths:
            fetch_artifacts(client, name, alias or version, path, folder)
