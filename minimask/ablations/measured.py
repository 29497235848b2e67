"""What the package's own runs of an ablation gave: the numbers of docs/ablations.md and notebook 11."""

import json
from pathlib import Path

from minimask.ablations.designs import ABLATIONS
from minimask.ablations.runs import Result, Results, design_of, plan, read_result
from minimask.ablations.table import SCORES
from minimask.errors import InputError
from minimask.files import write_json

FOLDER = Path(__file__).parent / "measured"


def measured(name: str) -> Results | None:
    """Results of all runs of an ablation, with AP, AP50 and AP75; None if it has not been run.

    Parameters
    ----------
    name : str
        A key of `designs.ABLATIONS`.
    """
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return None
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {(run["variant"], run["seed"]): Result(run["kinds"], run["seconds"]) for run in runs}


def keep(name: str, output: Path) -> Path:
    """Copy a finished ablation's results from the directory of its runs into the package.

    Raises
    ------
    InputError
        If a run is missing or damaged.
    """
    ablation, runs = ABLATIONS[name], []
    for run in plan(ablation, output, ablation.seeds):
        result = read_result(run.folder)
        if result is None:
            raise InputError(f"{run.folder}: this run is not done; go on with minimask ablate {name}")
        kinds = {
            kind: {score: round(values[score], 5) for score in SCORES}
            for kind, values in result.kinds.items()
        }
        runs.append(
            {"variant": run.variant.name, "seed": run.seed, "kinds": kinds, "seconds": result.seconds}
        )
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    write_json(path, {"design": design_of(ablation), "runs": runs}, indent=1)
    return path
