"""What a run of the dataset step wrote, comparable between sources."""

import json
from pathlib import Path
from typing import Any

from tests.support.files import tree


def outcome(dataset: Path, recordings: Path) -> tuple[dict[str, bytes], dict[str, Any], dict[str, bytes]]:
    """Return tables, summary and recordings, without name and licence of the source, which the summary must have."""
    tables = tree(dataset)
    summary = json.loads(tables.pop("dataset.json"))
    assert summary.pop("source")["name"]
    return tables, summary, tree(recordings)
