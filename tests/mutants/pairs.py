"""Kernels with two faults each: where the first mutant's output is wrong it answers, everywhere else the second does.

``--impl=mutants.pairs.FIRST__SECOND``. Both faults must be seen in one run, each under a name of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from mutants.base import Call, load, with_sdpa_signature

PAIRS = (
    ("values_interleaved", "scale_applied_to_tail_twice"),
    ("bias_over_hj_misread", "empty_row_teaches_values"),
    ("group_taken_for_count", "mask_ignored_beyond_512"),
    ("bias_ignored_beyond_64", "KeyGradientWithoutTailQueries"),
    ("bias_shifted_by_one_key", "scale_zero_taken_for_default"),
    ("padding_of_first_batch_item", "scale_forgotten_with_bias"),
    ("rank_3_mask_per_batch_item", "GroupGradientInterleaved"),
    ("mask_of_first_query", "expanded_cotangent_taken_for_ones"),
    ("causal_off_by_one", "mask_of_kv_head"),
    ("softmax_over_queries", "scale_on_top"),
    ("heads_interleaved", "mask_over_i_misread"),
    ("scale_from_value_width", "bias_over_ij_misread"),
    ("heads_of_three_interleaved", "bias_infinity_forgotten"),
    ("causal_bottom_right", "softmax_without_maximum"),
    ("bias_over_bij_misread", "BiasGradientOfLastBlock"),
    ("softmax_with_maximum_of_first_block", "CausalStrictInBackward"),
    ("scale_one_over_width", "query_gradient_zero"),
    ("one_head_refused", "no_keys_uninitialised"),
    ("bias_absolute_with_scale", "mask_over_bi_misread"),
    ("first_head_for_all", "one_added_to_row_sum"),
    ("scale_of_kv_heads", "query_gradient_needs_keys"),
    ("scale_rounded_to_bfloat16", "causal_strict_with_more_queries"),
    ("loop_ends_a_block_early", "bias_subtracted"),
    ("scale_from_padded_width_of_64", "tied_keys_get_one_gradient"),
    ("mask_over_hj_misread", "bias_scaled"),
    ("mask_over_bhij_misread", "scale_from_padded_width"),
    ("bias_values_not_read", "DeltaOfRowBefore"),
    ("scale_from_model_width", "bias_over_bj_misread"),
    ("bias_over_j_misread", "key_group_gradient_of_last"),
    ("bias_twice", "mask_over_bh_misread"),
    ("scale_twice", "QueryGradientOfLastBlock"),
    ("one_head_read_past_its_end", "causal_strict_from_64"),
    ("block_skipped_by_its_first_query", "value_group_gradient_averaged_by_six"),
    ("causal_slides_by_block", "scale_missing"),
    ("mask_over_b_misread", "key_gradient_beyond_64_doubled"),
    ("scale_in_base_two_off", "key_gradient_of_last_key_zero"),
)


def pair(first: str, second: str) -> Any:
    """A function of torch SDPA's parameters with the faults of both."""
    one, other = load()[first].make(), load()[second].make()

    def attend(call: Call) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            right, given = call.run(), call.run(one)
        # Two right kernels round differently: what is apart by more than the coarsest dtype rounds is the fault.
        room = 8 * torch.finfo(call.query.dtype).eps
        same = right.shape == given.shape and torch.allclose(right.double(), given.double(), room, room, equal_nan=True)
        return call.run(other if same else one)

    made = with_sdpa_signature(attend, checked=False)
    made.__name__ = made.__qualname__ = f"{first}__{second}"
    return made


def __getattr__(name: str) -> Any:
    first, _, second = name.partition("__")
    if name.startswith("__") or not {first, second} <= load().keys():
        raise AttributeError(name)
    return pair(first, second)
