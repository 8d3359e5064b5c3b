"""`dataset` of params.yaml: where the recordings come from and how annotations become labels."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from iusp.config.base import Count, Positive, Section, Seed, Share
from iusp.io.addresses import S3_ADDRESS, is_secure

LICENSE = r"^[A-Za-z0-9][A-Za-z0-9.+() -]*$"
LICENSES = {"embedded": "Apache-2.0", "sonyc-ust": "CC-BY-4.0"}


class Clips(Section):
    """Number of clips of the embedded data set, per split."""

    train: Count
    """Number of training clips."""
    validate_: Count = Field(alias="validate")
    """Number of clips for the choice of epochs, seeds and challenger."""
    test: Annotated[int, Field(ge=0)]
    """Number of clips to report results on; with 0, results are reported on validate."""

    def by_split(self) -> dict[str, int]:
        """Return the numbers of clips by split."""
        return {"train": self.train, "validate": self.validate_, "test": self.test}


class Repository(Section):
    """A version of a folder that a git repository tracks with DVC or git."""

    url: Annotated[str, Field(pattern=r"^[^\s-].*$")]
    """Address or folder of the git repository, without credentials."""
    revision: Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
    """Commit or tag; with a branch, the data can change."""
    path: Annotated[str, Field(min_length=1)]
    """Folder in SONYC-UST's format, relative to the root of the repository."""

    @model_validator(mode="after")
    def _plain(self) -> "Repository":
        # An ssh address needs a user name, which is not a secret.
        if re.match(r"(?i)https?://([^/]*@|.*[?#])|[a-z+]+://[^@]*:[^@]*@", self.url):
            raise ValueError("url must not contain credentials; use git's credential helper")
        if self.path.startswith(("/", "-")) or ".." in self.path.split("/"):
            raise ValueError(f"path {self.path!r} must be a folder in the repository, relative to its root")
        return self


class SonycUst(Section):
    """The published data set, and where to download it."""

    version: Literal[2019, "v2.3"]
    """`2019`: the data set of DCASE 2019 Task 5, 3,068 clips; `v2.3`: 18,510 clips with place and time."""
    mirror: Annotated[str, Field(min_length=1)] | None
    """Place of the files and their `record.json`, if not Zenodo: `s3://bucket/prefix`, `https://host/path` or a
    folder."""
    keep: Annotated[str, Field(min_length=1)] | None
    """Folder that keeps the download as `sonyc-ust-<version>`, so that it is downloaded once; null: only the output of
    the step is kept."""

    @property
    def folder(self) -> Path | None:
        """The folder that keeps the download, None if the download is not kept."""
        return Path(self.keep) / f"sonyc-ust-{self.version}" if self.keep else None

    @property
    def local_mirror(self) -> Path | None:
        """The mirror if it is a folder, else None."""
        return Path(self.mirror) if self.mirror and "://" not in self.mirror else None

    @model_validator(mode="after")
    def _address(self) -> "SonycUst":
        if self.mirror is None or self.local_mirror:
            return self
        if self.mirror.startswith("s3://"):
            if not S3_ADDRESS.fullmatch(self.mirror):
                raise ValueError("mirror must be s3://bucket/prefix, without credentials")
        elif not is_secure(self.mirror):
            raise ValueError("mirror must be https://host/path, s3://bucket/prefix or a folder; http:// is not secure")
        elif re.search(r"[@?#\s]", self.mirror):
            raise ValueError("mirror must be https://host/path, without credentials; put them into ~/.netrc")
        return self


class Dataset(Section):
    """Where the recordings come from and how annotations become labels."""

    source: Literal["embedded", "sonyc-ust", "folder", "s3", "dvc"]
    """`embedded` generates city scenes; `sonyc-ust` downloads the published data set; `folder`, `s3` and `dvc` read a
    folder in the same format: annotations CSV, taxonomy YAML and audio."""
    sonyc_ust: SonycUst
    """Version and server, for source `sonyc-ust`."""
    path: Annotated[str, Field(min_length=1)]
    """The folder on this machine or a mounted volume, for source `folder`."""
    s3: str | None
    """The folder in a bucket, `s3://bucket/prefix`, for source `s3`. boto3 finds the credentials, and AWS_ENDPOINT_URL
    names a server other than AWS. DVC does not notice changes in the bucket: run `dvc repro --force dataset`."""
    dvc: Repository | None
    """The folder in a git repository at a fixed revision, for source `dvc`."""
    license: Annotated[str, Field(pattern=LICENSE)] | None = None
    """Licence of the recordings, as an SPDX expression such as `CC-BY-NC-4.0`. null: Apache-2.0 for scenes of source
    `embedded`, CC-BY-4.0 for SONYC-UST, and not stated for the other sources."""
    seed: Seed
    """Seed of the scenes of source `embedded`."""
    clips: Clips
    """Number of clips of source `embedded`."""
    train_rule: Literal["any", "majority", "mean"]
    """How the annotations of a training clip by several volunteers are combined; `mean` gives soft targets."""
    coarse: Literal["from-fine", "as-published"]
    """Whether the coarse labels follow from the fine labels, or from the coarse columns of the CSV file."""
    min_seconds: Positive
    """Shortest duration in seconds; shorter clips are quarantined."""
    max_seconds: Positive
    """Longest duration in seconds; longer clips are quarantined, as their header probably states a wrong rate."""
    max_bad_share: Share
    """Largest share of quarantined or missing clips; above it, the step fails."""
    shared_sensors: Literal["report", "refuse"]
    """What to do if clips of one sensor are in two splits."""
    shared_clips: Literal["report", "refuse"]
    """What to do if the same audio file is in two splits, under any names."""

    @property
    def license_of_data(self) -> str | None:
        """The licence of the recordings as an SPDX expression, None if it is not stated."""
        return self.license or LICENSES.get(self.source)

    @property
    def source_name(self) -> str:
        """The name of the source, for people; without credentials, because no address in the settings has any."""
        if self.source == "sonyc-ust":
            return f"SONYC-UST {self.sonyc_ust.version}"
        if self.source == "dvc" and self.dvc:
            return f"{self.dvc.url} {self.dvc.revision} {self.dvc.path}"
        return {"folder": self.path, "s3": str(self.s3)}.get(self.source, self.source)

    @model_validator(mode="after")
    def _durations(self) -> "Dataset":
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} <= max_seconds {self.max_seconds:g} must hold")
        return self

    @model_validator(mode="after")
    def _origin(self) -> "Dataset":
        if "://" in self.path:  # an address may contain a password, and messages contain the path
            raise ValueError("path must be a folder of this machine; use source s3 or dvc for remote folders")
        if self.s3 is not None and not S3_ADDRESS.fullmatch(self.s3):
            raise ValueError("s3 must be s3://bucket/prefix, without credentials")
        if self.source == "s3" and self.s3 is None:
            raise ValueError("source s3 needs s3: s3://bucket/prefix")
        if self.source == "dvc" and self.dvc is None:
            raise ValueError("source dvc needs dvc: {url: a git repository, revision: a commit or tag, path: a folder}")
        return self
