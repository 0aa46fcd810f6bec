"""Mistakes of dropout (DROPOUT). :mod:`attnspec.conformance.diagnosis.dropped` reads most of them out of an answer."""

from __future__ import annotations

from attnspec.conformance.mistakes.table import Chapter

DROPOUT = Chapter()
special = DROPOUT.special

for name, says in (
    ("dropout_not_done", "nothing is dropped"),
    ("dropout_not_rescaled", "kept probabilities are not divided by 1 − r"),
    ("dropout_divided_by_rate", "kept probabilities are divided by r instead of 1 − r"),
    ("dropout_renormalised", "kept probabilities are normalised to a sum of one, as if scores had been dropped"),
    ("dropout_of_one_nan", "a rate of one gives NaN"),
    ("dropout_same_for_items", "all batch items drop the same probabilities"),
    ("dropout_same_for_heads", "all heads drop the same probabilities"),
    ("dropout_of_whole_keys", "a key is dropped for all queries, or for none"),
    ("dropout_of_whole_rows", "a query loses all keys, or none"),
    ("dropout_in_pairs", "two neighbouring keys are dropped together"),
    ("dropout_repeats_each_16_keys", "the pattern repeats after 16 keys"),
    ("dropout_seed_fixed", "every call drops the same probabilities, whatever the generator says"),
    ("dropout_never_the_first_key", "the first key is never dropped"),
    ("dropout_rate_exchanged", "a probability is kept with chance r and divided by r"),
    ("dropout_at_another_rate", "kept probabilities are divided by 1 − r, but the rate of dropping is not r"),
    ("dropout_of_output", "dropout is applied to the output, not to the probabilities"),
    ("dropout_forgotten_in_scores", "backward applies dropout to dv, but not to the gradient of the probabilities"),
    ("dropout_forgotten_in_backward", "backward applies no dropout"),
    ("dropout_not_rescaled_in_backward", "backward does not divide by 1 − r"),
    ("dropout_first_block_in_backward", "backward uses the pattern of the first 16 keys for all"),
    ("dropout_in_evaluation", "dropout is applied in evaluation, too"),
):
    special(name, says, lambda x: None)  # no problem without dropout shows it
special(
    "dropout_rescaled_in_evaluation",
    "in evaluation the output is multiplied by 1 − r",
    lambda x: {"o": (x.p @ x.heads_v) * (1 - x.problem.dropout)} if x.problem.dropout else None,
)
