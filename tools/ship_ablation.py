"""Make a finished ablation's results the package's own: python tools/ship_ablation.py NAME DIRECTORY

Writes minimask/ablations/measured/NAME.json and prints the table for docs/ablations.md, which a test checks.
"""

import sys
from pathlib import Path

from minimask.ablations.designs import ABLATIONS
from minimask.ablations.measured import keep, measured
from minimask.ablations.table import table


def main() -> None:
    name, output = sys.argv[1], Path(sys.argv[2])
    print(keep(name, output), file=sys.stderr)
    print(table(ABLATIONS[name], measured(name), ABLATIONS[name].seeds))


if __name__ == "__main__":
    main()
