"""How many faulty kernels a set of vectors finds: `python benchmarks/vectors_kills.py SET`, of a set with causal aligned top-left.

The set that docs/vectors.md reports: attnspec vectors write SET --largest=100000 --dialect=causal_alignment=top_left
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mutants.base import Mutant, load

from attnspec.adapters import Adapter, resolve
from attnspec.conformance.judging.judge import judge
from attnspec.conformance.vectors.answers import Filed, exact_of
from attnspec.conformance.vectors.format import Vector, read_index
from attnspec.spec import index


def found(mutant: Mutant, problems: list[tuple[Vector, Filed]]) -> bool:
    """Whether some problem shows the fault."""
    try:
        (adapter, *_) = resolve(mutant.make(), {})
    except Exception as error:
        print(f"{mutant.name}: {error}", file=sys.stderr)
        return False
    return any(wrong(adapter, vector, exact) for vector, exact in problems)


def wrong(adapter: Adapter, vector: Vector, exact: Filed) -> bool:
    """Whether an answer is wrong; what the kernel can't be asked says nothing."""
    answer = adapter.run(exact.problem)
    return answer.unsupported is None and bool(judge(answer, exact, vector.class_).findings)


def main() -> None:
    """Print a line for each chapter, and the survivors."""
    folder = Path(sys.argv[1])
    problems = [(vector, exact_of(folder, vector)) for vector in read_index(folder)]
    asked = {id_ for vector, _ in problems for id_ in vector.clauses}
    problems.sort(key=lambda one: one[1].problem.q.numel() + one[1].problem.k.numel())
    killed, every, survivors = Counter[str](), Counter[str](), []
    for mutant in load().values():
        if mutant.kind != "function" or mutant.clause not in asked:
            continue
        chapter = index()[mutant.clause].chapter
        every[chapter] += 1
        if found(mutant, problems):
            killed[chapter] += 1
        else:
            survivors.append(f"{mutant.name} ({mutant.clause})")
    for chapter, n in every.items():
        print(f"{chapter:10} {killed[chapter]} of {n}")
    print(f"{killed.total()} of {every.total()} found; not: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
