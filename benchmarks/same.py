"""Has a rebuilding changed what the suite says? Compares two verdict files, or two screens, without what may differ.

    pytest --impl=sdpa-math --tier=smoke --verdicts before.jsonl > before.txt; …; python benchmarks/same.py before.jsonl after.jsonl
    python benchmarks/same.py before.txt after.txt

Times may differ, and how the run was called, and the paths of our own files in the ids of tests. If anything else differs the
script prints the first lines that do, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

OWN = ("command", "started", "seconds", "phases", "elapsed")  # of a line of a verdict file
TIMES = re.compile(r"\d+(\.\d+)? ?s\b(?: \(\d+:\d+:\d+\))?|\d+:\d\d:\d\d")
PATHS = re.compile(r"[\w./-]*(?=test_\w+\.py)|[\w./-]*(?=::test_)")
SPACES = re.compile(r"[ =_]{2,}")


def of_line(value: Any) -> Any:
    """A part of a line of a verdict file without what may differ."""
    if isinstance(value, dict):
        return {key: of_line(x) for key, x in value.items() if key not in OWN}
    return [of_line(x) for x in value] if isinstance(value, list) else value


def kept(path: Path) -> list[str]:
    """The lines of a file that must be the same."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        return [json.dumps(of_line(json.loads(line)), sort_keys=True) for line in lines]
    return [
        SPACES.sub(" ", PATHS.sub("", TIMES.sub("", line.replace(path.stem + ".jsonl", ""))))
        for line in lines
        if not line.startswith("rootdir:")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = kept(arguments.before), kept(arguments.after)
    if before == after:
        print(f"the same: {len(before)} lines")
        return
    print("\n".join(line[:400] for line in islice(difflib.unified_diff(before, after, "before", "after", lineterm="", n=0), 20)))
    sys.exit(1)


if __name__ == "__main__":
    main()
