"""What long runs reached, one JSON file for each, so that a comparison can be done a run at a time."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def kept(name: str, options: dict) -> dict | None:
    """What the run of this name reached, if it is done and was trained with these options."""
    path = HERE / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if found and found["options"] != options:
        print(f"{path}: was trained with other options, and does not count")
        return None
    return found


def keep(name: str, options: dict, found: dict) -> None:
    record = json.dumps({"options": options} | found, indent=1)
    (HERE / f"{name}.json").write_text(record + "\n", encoding="utf-8")
