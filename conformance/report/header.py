"""What a run says before it asks: the implementation, what it promises, and how it will be asked."""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from attnspec.adapters.conventions.layout import AXES
from attnspec.adapters.restrictions import NO_BACKWARD, means
from attnspec.conformance import __version__
from attnspec.conformance.report.environment import device_data, device_name, versions
from attnspec.conformance.run.run import Run
from attnspec.conformance.run.tier import TIERS
from attnspec.conformance.subject.subject import ORACLE, Subject
from attnspec.conformance.verdicts.text import visible
from attnspec.conformance.verdicts.verdict import RANDOM
from attnspec.spec import SPEC_VERSION, index
from attnspec.spec.words import FEATURES, MASKS, PROMISES, RAGGED


def header(run: Run) -> list[str]:
    """What was resolved, where it runs, what it offers, and where each choice comes from."""
    first = run.subjects[0]
    adapter = first.adapter
    lines = [
        f"attnspec {__version__} (spec {SPEC_VERSION}) · {adapter.name} · {adapter.version or 'no version'} · "
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    ]
    for subject in run.subjects:
        lines.append(
            f"  {'variant ' + subject.label if subject.adapter.variant else 'implementation'} on {device_name(subject.device)}: "
            f"{', '.join(subject.dtypes) or 'no dtype'}; class "
            + ", ".join(dict.fromkeys(f"{subject.required_class(d)} for {d}" for d in subject.dtypes))
            + ("; in a process of its own" if subject.adapter.isolated else "")
        )
        if subject.backend is not None and str(subject.backend):
            lines.append(f"    backend seen in a plain {subject.dtypes[0]} call: {subject.backend}")
        if subject.read_from:
            lines.append(f"    {'; '.join(called_as(subject))}")
        offered = [name for name in FEATURES if subject.offers(name) and name not in PROMISES]
        ragged = any(subject.offers(name) for name in RAGGED)  # who takes no call of many sequences misses each of its forms
        unsaid = {*PROMISES, *(() if ragged else RAGGED)}
        absent = [name for name in FEATURES if not subject.offers(name) and name not in unsaid]
        lines.append(f"    offers {', '.join(offered)}" + (f"; not {', '.join(absent)}" if absent else ""))
        if promised := [name for name in PROMISES if subject.offers(name)]:  # few make one: what is not promised is not said
            lines.append(f"    promises bits: {', '.join(promised)}")
        lines += [f"    {name} = {getattr(subject.dialect, name)} ({source})" for name, source in subject.sources.items()]
        if subject.refused_dtypes:
            lines.append("    refused: " + "; ".join(f"{d} ({why[:80]})" for d, why in subject.refused_dtypes.items()))
        for name, (meaning, source) in restrictions(subject).items():
            lines.append(f"    restricted, {name}: {meaning} ({source})")
        if subject.refused_strides:
            lines.append(f"    a plain call refuses a last dimension that is not dense ({subject.refused_strides[:80]})")
        if subject.refused_lse_grad:
            lines.append(f"    a plain call gives no gradient through the lse ({subject.refused_lse_grad[:80]})")
        if subject.refused_widths:
            lines.append(
                f"    widths refused by a plain call: {', '.join(map(str, subject.refused_widths))} "
                f"({next(iter(subject.refused_widths.values()))[:80]})"
            )
    lines.append(f"  oracle: {oracle()}")
    source = f" ({run.seed_from})" if run.seed_from else ""
    seed = "a random seed, told at the end" if run.hides_seed else f"seed {run.seed}{source}"
    seed = f"search with {seed}" if run.tier.searched and not run.pinned_only else "no search"
    lines.append(
        f"  tier {_tier(run)}, {seed}"
        + (f", budget {run.budget:g} s" if run.budget else "")
        + (f", clauses {', '.join(run.clauses)}" if run.clauses else "")
        + (f", case {run.case.token()}" if run.case else "")
        + (f", shard {run.shard}" if run.shard else "")
    )
    if run.spec:
        lines.append(f"  as of spec {run.spec}; left out, for they came later: {', '.join(run.left_out) or 'nothing'}")
    if run.replays:
        lines.append("  replayed first: what an earlier search found, from Hypothesis's database; not with CI=true or --no-search")
    if run.known.source:
        lines.append(f"  known issues: {len(run.known.issues)}, from {run.known.source}")
    if run.inherited.accepted:
        lines.append("  inherited failures of torch are noted and do not decide (--inherited=note)")
    return [visible(line) for line in lines]


def called_as(subject: Subject) -> list[str]:
    """How its calls are read, and who says so."""
    reading = subject.adapter.reading
    how = ", ".join(replace(reading, mask="shows").words) or f"q, k, v and the output are ({AXES})"
    masks = subject.masks_from or (subject.read_from if reading.mask != "shows" else "")
    return [f"{how} ({subject.read_from})", *([f"{MASKS[reading.mask]} ({masks})"] if masks else [])]


def restrictions(subject: Subject) -> dict[str, tuple[str, str]]:
    """What each restriction of a subject means, and who says so."""
    said = {}
    for name in sorted(subject.adapter.restrictions):
        found = subject.found.get(name)
        source = "declared by its adapter" if found is None else f"found: each of the first calls raised {found[:100]}"
        if name.startswith(NO_BACKWARD) and found is not None:
            source += "; --without=backward declares it"
        said[name] = (means(name), source)
    return said


def oracle() -> str:
    """What the answers are compared with."""
    if ORACLE == "arb":
        return f"float64, and ball arithmetic for answers in float64 and for what is shown (python-flint {version('python-flint')})"
    return "float64; for certainty in float64 too, pip install attnspec[exact]"


def _tier(run: Run) -> str:
    return next((name for name, tier in TIERS.items() if tier is run.tier), "")


def header_data(run: Run) -> dict[str, Any]:
    """The header as plain data, for the verdict file."""
    as_of = [f"what spec {run.spec} has"] if run.left_out else []
    return {
        "suite": __version__,
        "spec": SPEC_VERSION,
        "command": run.invocation or run.command,
        "tier": _tier(run),
        "seed": RANDOM if run.hides_seed else run.seed,
        "budget": run.budget,
        "only": list(run.clauses) + ([f"case {run.case.token()}"] if run.case else []) + as_of,
        "enforce_should": run.enforce_should,
        "search": bool(run.tier.searched) and not run.pinned_only,
        "shard": str(run.shard) if run.shard else None,
        "known_issues": [
            {"clause": x.clause, "region": x.region.text if x.region else None, "found": x.found or None} for x in run.known.issues
        ],
        "inherited": "note" if run.inherited.accepted else "fail",
        "oracle": ORACLE,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "devices": [device_data(device) for device in dict.fromkeys(s.device for s in run.subjects)],
        "clauses": {clause.id: {"title": clause.title, "level": clause.level} for clause in index().values()},
        "subjects": [
            {
                "name": s.adapter.name,
                "version": s.adapter.version,
                "variant": s.label,
                "device": s.device,
                "dtypes": list(s.dtypes),
                "refused": {
                    **s.refused_dtypes,
                    **{f"width {d}": why for d, why in s.refused_widths.items()},
                    **({"strided": s.refused_strides} if s.refused_strides else {}),
                    **({"lse_grad": s.refused_lse_grad} if s.refused_lse_grad else {}),
                },
                "offers": sorted(s.offered),
                "restrictions": {name: source for name, (_, source) in restrictions(s).items()},
                **({"isolated": True} if s.adapter.isolated else {}),
                **({"called_as": called_as(s)} if s.read_from else {}),
                "widths": sorted(s.adapter.widths) if s.adapter.widths is not None else None,
                "class": {d: s.required_class(d) for d in s.dtypes},
                "dialect": {name: {"value": getattr(s.dialect, name), "source": source} for name, source in s.sources.items()},
            }
            for s in run.subjects
        ],
    }
