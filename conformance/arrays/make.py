"""Make the covering arrays anew: python conformance/arrays/make.py (needs covertable, in the extra `dev`).

They are kept as data because making all triples takes longer than testing them; tests/test_arrays.py checks that they
cover what they claim.
"""

from __future__ import annotations

import csv
from pathlib import Path

from covertable import make

from attnspec.conformance.case import LEVELS


def main() -> None:
    """Write pairs.csv and triples.csv: a row a case, a column a factor, each entry the number of a level."""
    for name, strength in (("pairs", 2), ("triples", 3)):
        rows = make([list(range(len(levels))) for levels in LEVELS.values()], strength=strength)
        with (Path(__file__).parent / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(f"# every {strength} factors take every combination of their levels; made by make.py\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(LEVELS)
            writer.writerows(rows)
        print(name, len(rows), "rows")


if __name__ == "__main__":
    main()
