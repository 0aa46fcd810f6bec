"""Mistakes in which keys a kernel reads: tails, blocks, ends (SHAPE)."""

from __future__ import annotations

import numpy as np

from attnspec.conformance.mistakes.table import Chapter, filled, without

KEYS = Chapter()
enter, special = KEYS.enter, KEYS.special

enter("first_key_dropped", "the first key is skipped", lambda x: x.with_keys(without(x.j, 0, 1)))
enter("last_key_dropped", "the last key is skipped", lambda x: x.with_keys(without(x.j, x.j - 1, x.j)))
enter(
    "tail_of_16_dropped",
    "keys after the last full block of 16 are skipped",
    lambda x: x.with_keys(np.arange(x.j - x.j % 16 or x.j)),
)
enter(
    "tail_of_64_dropped",
    "keys after the last full block of 64 are skipped",
    lambda x: x.with_keys(np.arange(x.j - x.j % 64 or x.j)),
)
enter("block_dropped", "the second block of 16 keys is skipped", lambda x: x.with_keys(without(x.j, 16, 32)))
enter(
    "key_twice", "the last of the first 16 keys is read twice", lambda x: x.with_keys(np.sort(np.r_[: x.j, 15 : 16 * (x.j > 16)]))
)
enter(
    "tail_of_zeros", "the last block of 16 is padded with zero keys that count in the row sum", lambda x: x.with_keys(filled(x.j))
)
for n in (32, 128):
    special(
        f"tail_of_{n}_dropped",
        f"keys after the last full block of {n} are skipped",
        lambda x, n=n: x.with_keys(np.arange(x.j - x.j % n or x.j)),
        of="tail_of_16_dropped",
    )
for n in (32, 64, 128):
    special(
        f"tail_of_zeros_{n}",
        f"the last block of {n} is padded with zero keys that count in the row sum",
        lambda x, n=n: x.with_keys(np.pad(np.arange(x.j), (0, -x.j % n), constant_values=-1)),
        of="tail_of_zeros",
    )
for n in (16, 32, 64, 128, 256, 512):
    special(
        f"keys_end_at_{n}",
        f"keys after the first {n} are skipped",
        lambda x, n=n: x.with_keys(np.arange(min(n, x.j))),
        of="keys_end_at_16",
    )
special("last_key_twice", "the last key is read twice", lambda x: x.with_keys(np.r_[: x.j, x.j - 1]), of="key_twice")
special(
    "last_key_replaced",
    "the last key is read as the one before it",
    lambda x: x.with_keys(np.r_[: x.j - 1, x.j - 2]) if x.j > 1 else None,
)
