"""All known mistakes, by name.

A mistake that is a call on another problem is the reference's answer to that one, with its gradients put where the caller's
tensors are; one inside the arithmetic changes a step of :class:`Kernel`. All values are float64 and not rounded, so that
what differs from the exact answer is the mistake alone. :func:`~attnspec.conformance.mistakes.power.power` says by how many
bounds it does; :mod:`attnspec.conformance.diagnosis.diagnose` compares a failing answer with each of them.
"""

from __future__ import annotations

from attnspec.conformance.mistakes import apart, caches, pages  # noqa: F401  they enter mistakes in RAGGED
from attnspec.conformance.mistakes.alibi import ALIBI
from attnspec.conformance.mistakes.bias import BIAS
from attnspec.conformance.mistakes.causal import CAUSAL
from attnspec.conformance.mistakes.dropout import DROPOUT
from attnspec.conformance.mistakes.empty import EMPTY
from attnspec.conformance.mistakes.gradients import GRADIENTS
from attnspec.conformance.mistakes.heads import HEADS
from attnspec.conformance.mistakes.keys import KEYS
from attnspec.conformance.mistakes.latents import LATENTS
from attnspec.conformance.mistakes.lse import LSE
from attnspec.conformance.mistakes.mask import MASK
from attnspec.conformance.mistakes.memory import MEMORY
from attnspec.conformance.mistakes.output import OUTPUT
from attnspec.conformance.mistakes.position import POSITION
from attnspec.conformance.mistakes.ragged import RAGGED
from attnspec.conformance.mistakes.ragged_gradients import RAGGED_GRADIENTS
from attnspec.conformance.mistakes.scale import SCALE
from attnspec.conformance.mistakes.sink import SINK
from attnspec.conformance.mistakes.softcap import SOFTCAP
from attnspec.conformance.mistakes.softmax import SOFTMAX
from attnspec.conformance.mistakes.table import Mistake
from attnspec.conformance.mistakes.turns import TURNS
from attnspec.conformance.mistakes.window import WINDOW

CHAPTERS = (
    KEYS,
    CAUSAL,
    MASK,
    EMPTY,
    HEADS,
    SCALE,
    SOFTCAP,
    BIAS,
    SOFTMAX,
    OUTPUT,
    GRADIENTS,
    MEMORY,
    DROPOUT,
    WINDOW,
    LSE,
    ALIBI,
    SINK,
    POSITION,
    RAGGED,
    RAGGED_GRADIENTS,
    TURNS,
    LATENTS,
)
OF_SEQUENCES = RAGGED.mistakes | RAGGED_GRADIENTS.mistakes | TURNS.mistakes | LATENTS.mistakes
# Of two special mistakes that explain a failure equally well, the one of these chapters is named first.
NAMED_FIRST = (EMPTY, SCALE, SOFTMAX, OUTPUT, GRADIENTS)

MISTAKES: dict[str, Mistake] = {
    name: one
    for special, chapters in ((True, sorted(CHAPTERS, key=lambda chapter: chapter not in NAMED_FIRST)), (False, CHAPTERS))
    for chapter in chapters
    for name, one in chapter.mistakes.items()
    if one.special == special
}
