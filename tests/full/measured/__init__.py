"""What long runs reached, one JSON file for each, so that a comparison can be done a run at a time."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def kept(name: str) -> dict | None:
    """What the run of this name reached, if it is done."""
    path = HERE / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep(name: str, found: dict) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
