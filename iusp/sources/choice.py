"""The source that the settings choose."""

from pathlib import Path

from joblib import cpu_count

from iusp.config.dataset import Dataset
from iusp.io import files
from iusp.reporter import Reporter
from iusp.sources import embedded
from iusp.sources.folder import CONTENT, LocalFolder, is_part
from iusp.sources.source import Source


def find_source(config: Dataset, workers: int = cpu_count()) -> Source:
    """Look at the source that the settings choose; fetch nothing yet.

    Args:
        config: section `dataset` of params.yaml.
        workers: number of processes that generate the embedded scenes.

    Raises:
        InputError: the source cannot be used.
    """
    # boto3 and requests are slow to import, so only their users import them.
    if config.source == "folder":
        return LocalFolder.open(Path(config.path), own=True)
    if config.source == "sonyc-ust":
        from iusp.sources.sonyc_ust import open_record

        kept = config.sonyc_ust.folder
        return LocalFolder.open(kept, own=False) if kept and kept.exists() else open_record(config.sonyc_ust)
    if config.source == "s3" and config.s3:
        from iusp.io.s3 import connect, list_folder

        return list_folder(connect(config.s3), config.s3, is_part, CONTENT)
    if config.source == "dvc" and config.dvc:
        from iusp.sources.dvc_repository import open_version

        return open_version(config.dvc.url, config.dvc.revision, config.dvc.path)
    return embedded.Scenes(config.seed, config.clips.by_split(), workers)


def open_source(config: Dataset, recordings: Path, reporter: Reporter, workers: int) -> Source:
    """Return the source that the settings choose; first download SONYC-UST if it is to be kept in a folder.

    Args:
        config: section `dataset` of params.yaml.
        recordings: folder that the clips will be copied to; the disk must have room for both.
        reporter: receives the progress.
        workers: number of processes that generate the embedded scenes.

    Raises:
        InputError: the source cannot be used.
    """
    if config.source == "sonyc-ust" and config.sonyc_ust.folder:
        from iusp.sources.sonyc_ust import keep

        keep(config.sonyc_ust, reporter, recordings)
    return find_source(config, workers)


def source_version(config: Dataset) -> str:
    """Return a digest of the present content of the source.

    It covers size and modification time of each file in a folder (also in the folder that SONYC-UST is kept in), the
    ETag of each object in S3, the commit of a DVC repository, and the MD5 of each file of SONYC-UST that is not
    downloaded yet. An orchestrator needs it for its cache key: the settings stay the same when recordings are added.

    Args:
        config: section `dataset` of params.yaml.

    Raises:
        InputError: the source cannot be used.
    """
    return files.digest_each(find_source(config).identity)
