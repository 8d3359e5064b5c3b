"""Device folders to release, and the files of a release in a bucket or on a device."""

from pathlib import Path

from iusp.device.release import LATEST
from iusp.io.files import sha256, write_json
from tests.support import s3_servers
from tests.support.s3_servers import BUCKET

NAMES = ("LICENSE", "MODEL_CARD.md", "float32.onnx", "int8.onnx")
MODEL = "iusp-student"


def device_folder(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    for size, name in enumerate(NAMES):
        (folder / name).write_bytes(f"{name} of {content} ".encode() * 10**size)
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in NAMES}
    write_json(folder / "device.json", {"tags": ["1_engine"], "thresholds": {"1_engine": 0.4}, "files": files})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Return the complete files of a release by name."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {LATEST}
    return {name: (folder / name).read_bytes() for name in names}


def bucket(server: str, prefix: str) -> dict[str, bytes]:
    """Return the objects below a prefix by name."""
    client = s3_servers.client(server)
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", ())]
    return {key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def put(server: str, key: str, body: bytes) -> None:
    s3_servers.client(server).put_object(Bucket=BUCKET, Key=key, Body=body)
