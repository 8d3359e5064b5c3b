"""MLflow's model registry, in which every student is a version of one registered model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from iusp.artifacts.dataset import Source
from iusp.errors import InputError
from iusp.io.files import digest, sha256
from iusp.registry.tracking import connect, readable_errors, readable_storage, server_message
from iusp.reporter import Reporter

DIGEST_TAG = "iusp.digest"
SOURCE_TAG, GENERATED_TAG, LICENSE_TAG = "iusp.source", "iusp.generated", "iusp.license"
ARTIFACT, EVALUATION = "student", "evaluation"
MODEL_DESCRIPTION = (
    "Students distilled for urban sound tagging (iusp). The description of each version says which data it was trained "
    "on."
)
DESCRIPTION_START = "Trained on "  # a description that starts otherwise was written by a person and is kept


def source_tags(source: Source) -> dict[str, str]:
    """Return the tags that say where the data of a run or a version came from."""
    tags = {SOURCE_TAG: source.name, GENERATED_TAG: str(source.generated).lower()}
    return tags | ({LICENSE_TAG: source.license} if source.license else {})


def read_source(tags: Mapping[str, str]) -> Source | None:
    """Read the tags that `source_tags` wrote; None if another program registered the version."""
    name = tags.get(SOURCE_TAG)
    if name is None:
        return None
    # Versions that an older iusp registered lack this tag.
    generated = tags.get(GENERATED_TAG, str(name == "embedded").lower())
    return Source(name=name, generated=generated == "true", license=tags.get(LICENSE_TAG))


def register(
    client: MlflowClient, model_name: str, run_id: str, model: Path, tags: Mapping[str, object], reporter: Reporter
) -> int:
    """Make an exported student a version of a registered model, unless it is one already.

    A version counts only if its run and its files exist. Otherwise the student is registered as a new version, or, if
    the files belong into this run, they are stored again.

    Args:
        client: client of the tracking server.
        model_name: name of the registered model.
        run_id: MLflow run of the student; the model's files are stored there.
        model: folder that `export.export` wrote.
        tags: metrics and lineage, which become tags of the version; with those of `source_tags`, MLflow's description
            of the version says which data it was trained on.
        reporter: receives a warning for each version whose run or files are gone.

    Returns:
        The number of the version.
    """
    extra = model / "extra_files"
    files = [extra / "weights.safetensors", extra / "config.json", *sorted((model / "device").glob("*.onnx"))]
    identity = digest([sha256(path) for path in files])
    _create(client, model_name, MODEL_DESCRIPTION)
    same = f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{identity}'"
    all_tags = {DIGEST_TAG: identity} | {name: str(value) for name, value in tags.items()}
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
    lost = set()
    for found in client.search_model_versions(same, order_by=["version_number ASC"]):
        loss = _loss(client, found, model)
        if loss and found.source != source:
            reporter.warning(
                f"{model_name} version {found.version}: {loss}; the student is registered as another version. Restore "
                f"version {found.version}, or delete it in MLflow"
            )
            lost.add(found.version)
            continue
        if loss:
            _store(client, run_id, model, ARTIFACT)
            reporter.warning(f"{model_name} version {found.version}: {loss}; its files are stored again")
        _renew(client, found, model, all_tags)
        return int(found.version)
    _store(client, run_id, model, ARTIFACT)
    # The version is created after its files are stored, and with its tags in one transaction: it is complete as soon as
    # it can be seen.
    client.create_model_version(
        model_name, source, run_id, tags=all_tags, description=_description(all_tags), await_creation_for=0
    )
    # Another process may have created one at the same time, or the answer was lost and MLflow's client sent the request
    # twice: the oldest version counts.
    created = client.search_model_versions(same, order_by=["version_number ASC"])
    version, *doubles = [version for version in created if version.version not in lost]
    for double in doubles:
        _delete(client, model_name, double.version)
    return int(version.version)


def _loss(client: MlflowClient, version: ModelVersion, model: Path) -> str | None:
    """Say which part of a version is gone; None if all is there. `evaluation/` is not checked, as it is replaced."""
    address = client.get_model_version_download_uri(version.name, version.version)
    if not _has_run(client, str(version.run_id)):
        return f"its MLflow run {version.run_id}, which held its files in {address}, is deleted"
    with readable_storage(f"{version.name} version {version.version}: its files cannot be listed"):
        stored = set(_files(address, client.tracking_uri))
    exported = (str(path.relative_to(model)) for path in sorted(model.rglob("*")) if path.is_file())
    missing = [name for name in exported if name not in stored and not name.startswith(f"{EVALUATION}/")]
    if missing:
        return f"its files are gone from {address} (the first is {missing[0]})"
    return None


def _has_run(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _files(address: str, tracking_uri: str) -> Iterator[str]:
    """Yield the paths of a version's files, without those of `evaluation/`."""
    for file in list_artifacts(artifact_uri=address, tracking_uri=tracking_uri):
        name = Path(file.path).name
        if not file.is_dir:
            yield name
        elif name != EVALUATION:
            yield from (f"{name}/{below}" for below in _files(f"{address}/{name}", tracking_uri))


def _renew(client: MlflowClient, version: ModelVersion, model: Path, tags: Mapping[str, str]) -> None:
    """Replace the measurements, the tags and the description of a version whose network is the same."""
    if (model / EVALUATION).is_dir():
        _store(client, str(version.run_id), model / EVALUATION, f"{ARTIFACT}/{EVALUATION}")
    for name, value in tags.items():
        client.set_model_version_tag(version.name, version.version, name, value)
    if LICENSE_TAG in version.tags and LICENSE_TAG not in tags:
        client.delete_model_version_tag(version.name, version.version, LICENSE_TAG)
    description = _description(tags)
    if description and (version.description or DESCRIPTION_START).startswith(DESCRIPTION_START):
        client.update_model_version(version.name, version.version, description)


def _description(tags: Mapping[str, str]) -> str | None:
    """Return MLflow's description of a version: its data, their licence, and a warning about generated scenes."""
    source = read_source(tags)
    if source is None:
        return None
    sentences = (f"{DESCRIPTION_START}{source.name}.", source.licence_note, source.warning)
    return " ".join(filter(None, sentences))


def _store(client: MlflowClient, run_id: str, folder: Path, path: str) -> None:
    with readable_storage(f"{folder} cannot be stored"):
        client.log_artifacts(run_id, str(folder), path)


def set_challenger(client: MlflowClient, model_name: str, version: int) -> None:
    """Point the alias `challenger` to a version."""
    client.set_registered_model_alias(model_name, "challenger", str(version))


def _create(client: MlflowClient, model_name: str, description: str) -> None:
    """Create a registered model, unless it exists."""
    try:
        client.create_registered_model(model_name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _delete(client: MlflowClient, model_name: str, version: str) -> None:
    """Delete a version, unless it is gone already: MLflow's client repeats a request whose answer was lost."""
    try:
        client.delete_model_version(model_name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of the registered model.

    Attributes:
        number: number of the version.
        aliases: aliases that point to the version.
        registered: time of registration, by the server's clock.
        run_id: MLflow run that trained the network.
        source: address of the version's files.
        tags: metrics, cost and lineage.
    """

    number: int
    aliases: tuple[str, ...]
    registered: datetime
    run_id: str | None
    source: str
    tags: dict[str, str]

    @property
    def data(self) -> Source | None:
        """Where the training data came from; None if another program registered the version."""
        return read_source(self.tags)


@dataclass(frozen=True)
class Record:
    """An entry of the log as the registry stores it.

    Attributes:
        number: number of the entry; numbers only grow.
        time: time of the entry, by the server's clock.
        content: text of the entry.
    """

    number: int
    time: datetime
    content: str


class UncertainError(Exception):
    """MLflow failed, and the request may or may not have been carried out."""


@contextmanager
def uncertain() -> Iterator[None]:
    """Mark the failures of MLflow after which the caller must read the state again and may retry.

    They are: a locked database; a race that was lost (another process took every version number that MLflow tried, or
    inserted the same alias first); a lost answer; and HTTP 5xx.

    Raises:
        UncertainError: one of these failures; other errors pass through.
    """
    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST"):
            raise
        raise UncertainError(server_message(error)) from None


class Registry:
    """The registered model with its versions, its aliases and an append-only log.

    The log is a second registered model, `<name>.promotions`; its version n is entry n. This gives an ordered log on
    every backend of MLflow. The version number is part of the primary key, so two processes that append at once get
    different numbers, and every reader sees the same order. Number n + 1 is given only when entry n is visible. A
    version is created with its tags in one transaction, so an entry is never half written.

    MLflow's errors pass through: see `iusp.registry.tracking.readable_errors` and `uncertain`.
    """

    def __init__(self, model_name: str, client: MlflowClient | None = None) -> None:
        self.client = client or connect()
        self.model_name = model_name
        self.log_name = f"{model_name}.promotions"

    def aliases(self) -> dict[str, int]:
        """Return the version that each alias points to.

        Raises:
            InputError: the registered model does not exist.
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
        """Point an alias to a version; None removes the alias."""
        if version is None:
            self.client.delete_registered_model_alias(self.model_name, alias)
        else:
            self.client.set_registered_model_alias(self.model_name, alias, str(version))

    def versions(self) -> list[RegisteredVersion]:
        """Return all versions, the newest first."""
        aliases = self.aliases()
        return [_version(version, aliases) for version in reversed(self._search(self.model_name))]

    def version(self, number: int) -> RegisteredVersion:
        """Return one version.

        Raises:
            InputError: the version does not exist.
        """
        if found := self.find(number):
            return found
        raise InputError(f"{self.model_name} has no version {number}; iusp models lists all versions")

    def find(self, number: int | None) -> RegisteredVersion | None:
        """Return one version, or None if it does not exist."""
        if number is None:
            return None
        aliases = self.aliases()
        try:
            return _version(self.client.get_model_version(self.model_name, str(number)), aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def log(self, tag: str) -> list[Record]:
        """Return the entries of the log in order.

        Args:
            tag: name of the tag that holds the content; versions without it are not entries of the log.
        """
        return [
            Record(int(version.version), _time(version), version.tags[tag])
            for version in self._search(self.log_name)
            if tag in version.tags
        ]

    def append(self, version: int, tag: str, content: str, description: str) -> None:
        """Append an entry to the log. If the answer is lost and MLflow's client retries, the log has the entry twice.

        Args:
            version: version of the registered model that the entry is about.
            tag: name of the tag that holds the content.
            content: text of the entry.
            description: text that MLflow shows with the entry.
        """
        _create(self.client, self.log_name, f"Promotions and rollbacks of {self.model_name}, written by iusp promote")
        self.client.create_model_version(
            self.log_name,
            f"models:/{self.model_name}/{version}",
            tags={tag: content},
            description=description,
            await_creation_for=0,
        )

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove entries from the log; their numbers are not used again."""
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


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> RegisteredVersion:
    number = int(found.version)
    own = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    return RegisteredVersion(number, own, _time(found), found.run_id or None, str(found.source), dict(found.tags))


def fetch_artifacts(client: MlflowClient, model_name: str, alias_or_version: str | int, path: str, folder: Path) -> int:
    """Download one artifact of a registered version.

    Args:
        client: client of the tracking server.
        model_name: name of the registered model.
        alias_or_version: an alias such as `champion`, or the number of a version.
        path: path of a folder or file among the artifacts, such as `device` or `evaluation/predictions.csv`.
        folder: folder to download into, created if it is missing; the artifact becomes `folder / path`.

    Returns:
        The number of the version.

    Raises:
        InputError: the version or the artifact does not exist, or the download fails.
    """
    version = _find_version(client, model_name, str(alias_or_version))
    what = f"{model_name} version {version.version}"
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with readable_storage(f"{what}: {path} cannot be fetched"):
        source = client.get_model_version_download_uri(model_name, version.version)
        above, _, last = f"{source}/{path}".rpartition("/")
        names = {Path(file.path).name for file in list_artifacts(artifact_uri=above, tracking_uri=client.tracking_uri)}
        if last not in names:
            if not list_artifacts(artifact_uri=source, tracking_uri=client.tracking_uri):
                raise InputError(
                    f"{what}: there are no files in {source}, where MLflow looks for them; if the project was moved, "
                    "move it back or link its old path to the new one; otherwise, run iusp registration"
                )
            raise InputError(f"{what}: has no artifact {path}; run the evaluation and registration steps (dvc repro)")
        download_artifacts(f"{above}/{last}", dst_path=str(target.parent), tracking_uri=client.tracking_uri)
    return int(version.version)


def _find_version(client: MlflowClient, model_name: str, alias_or_version: str) -> ModelVersion:
    try:
        if alias_or_version.isdecimal():
            return client.get_model_version(model_name, alias_or_version)
        return client.get_model_version_by_alias(model_name, alias_or_version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"{model_name}: has no version or alias {alias_or_version}; register or promote one first"
        ) from None


def fetch_model(model: str, folder: Path, *paths: str) -> None:
    """Download artifacts of a version from the registry that MLFLOW_TRACKING_URI names.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: folder to download into, created if it is missing.
        paths: paths among the artifacts, such as `device`.

    Raises:
        InputError: the address has another form, the version or an artifact does not exist, or the download fails.
    """
    if not (parts := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model)):
        raise InputError(f"{model}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = parts.groups()
    with readable_errors():
        client = connect()
        for path in paths:
            fetch_artifacts(client, name, alias or version, path, folder)
