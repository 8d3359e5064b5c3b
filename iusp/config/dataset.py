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
    """To train on."""
    validate_: Count = Field(alias="validate")
    """To choose epochs, seeds and the challenger by."""
    test: Annotated[int, Field(ge=0)]
    """To report on; validate is reported on where there are none."""

    def by_split(self) -> dict[str, int]:
        """The counts by the splits' names."""
        return {"train": self.train, "validate": self.validate_, "test": self.test}


class Repository(Section):
    """A version of a folder that a git repository tracks by DVC or git."""

    url: Annotated[str, Field(pattern=r"^[^\s-].*$")]
    """Address or folder of the git repository, without credentials."""
    revision: Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
    """Commit, tag or branch; what moves pins nothing."""
    path: Annotated[str, Field(min_length=1)]
    """Folder in SONYC-UST's format, from the repository's root."""

    @model_validator(mode="after")
    def _plain(self) -> "Repository":
        # The scheme decides: ssh needs a user's name, and that is no secret.
        if re.match(r"(?i)https?://([^/]*@|.*[?#])|[a-z+]+://[^@]*:[^@]*@", self.url):
            raise ValueError("url must hold no credentials; leave them to git's credential helper")
        if self.path.startswith(("/", "-")) or ".." in self.path.split("/"):
            raise ValueError(f"path {self.path!r} must lead from the repository's root to a folder in it")
        return self


class SonycUst(Section):
    """The published data set, and where it is fetched from."""

    version: Literal[2019, "v2.3"]
    """`2019`: of DCASE 2019 Task 5, 3,068 clips; `v2.3`: 18,510 clips with place and time."""
    mirror: Annotated[str, Field(min_length=1)] | None
    """Where the record's files and its `record.json` lie instead of Zenodo: `s3://bucket/prefix`, `https://host/path`
    or a folder."""
    keep: Annotated[str, Field(min_length=1)] | None
    """Folder in which the data set is kept as `sonyc-ust-<version>`, so that it is fetched once; without it, only the
    step's output stays."""

    @property
    def folder(self) -> Path | None:
        """Where it is kept, if it is."""
        return Path(self.keep) / f"sonyc-ust-{self.version}" if self.keep else None

    @property
    def local_mirror(self) -> Path | None:
        """The mirror, if it is a folder."""
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
            raise ValueError("mirror must be https://host/path, without credentials; ~/.netrc may hold them")
        return self


class Dataset(Section):
    """Where the recordings come from and how annotations become labels."""

    source: Literal["embedded", "sonyc-ust", "folder", "s3", "dvc"]
    """`embedded` generates city scenes; `sonyc-ust` downloads the published data set; the others read a folder in its
    format: annotations CSV, taxonomy YAML, audio."""
    sonyc_ust: SonycUst
    """Which version, and from where; used by source `sonyc-ust`."""
    path: Annotated[str, Field(min_length=1)]
    """That folder, on this machine or a mounted volume; used by source `folder`."""
    s3: str | None
    """That folder in a bucket, `s3://bucket/prefix`; used by source `s3`. boto3 finds the credentials, and
    AWS_ENDPOINT_URL names a server other than AWS. DVC does not see changes there: `dvc repro --force dataset`."""
    dvc: Repository | None
    """That folder in a git repository, pinned; used by source `dvc`."""
    license: Annotated[str, Field(pattern=LICENSE)] | None = None
    """Licence of the recordings, as an SPDX expression such as `CC-BY-NC-4.0`. null: Apache-2.0 for scenes of source
    `embedded`, CC-BY-4.0 for SONYC-UST, and not stated for the other sources."""
    seed: Seed
    """Seed of the embedded scenes."""
    clips: Clips
    """Size of the embedded data set."""
    train_rule: Literal["any", "majority", "mean"]
    """How the volunteers of a training clip are combined; `mean` gives soft targets."""
    coarse: Literal["from-fine", "as-published"]
    """Coarse labels from the fine ones, or from the CSV's own coarse columns."""
    min_seconds: Positive
    """A shorter clip is quarantined."""
    max_seconds: Positive
    """A longer clip is quarantined: its header probably states a wrong rate."""
    max_bad_share: Share
    """Largest share of quarantined or missing clips before the step fails."""
    shared_sensors: Literal["report", "refuse"]
    """What to do about a sensor whose clips are in two splits."""

    @property
    def license_of_data(self) -> str | None:
        """The licence of the recordings as an SPDX expression, None if it is not stated."""
        return self.license or LICENSES.get(self.source)

    @property
    def source_name(self) -> str:
        """The source, for people; it holds no secret, as no address here may."""
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
        if "://" in self.path:  # which may hold a password; and messages name the folder
            raise ValueError("path must be a folder of this machine; sources s3 and dvc are for what is elsewhere")
        if self.s3 is not None and not S3_ADDRESS.fullmatch(self.s3):
            raise ValueError("s3 must be s3://bucket/prefix, without credentials")
        if self.source == "s3" and self.s3 is None:
            raise ValueError("source s3 needs s3: s3://bucket/prefix")
        if self.source == "dvc" and self.dvc is None:
            raise ValueError("source dvc needs dvc: {url: a git repository, revision: a commit or tag, path: a folder}")
        return self
