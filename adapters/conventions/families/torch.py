"""torch: scaled_dot_product_attention and functions with its parameters, multi-head attention, and flex_attention."""

# mypy: allow-untyped-defs, no-check-untyped-defs
# Scripts of failures hold the text of functions: it has no types, which would have to be imported there.
from __future__ import annotations

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS

SDPA = Convention(
    name="torch SDPA",
    of="torch 2.13, torch.nn.functional.scaled_dot_product_attention",
    shown_by=frozenset({"attn_mask", "is_causal"}),
    reading=AS_IT_IS,
    offers=frozenset({"bias", "value_width"}),
    dialect={"causal_alignment": "top_left", "empty_row": "zero", "head_grouping": "blocked"},
    merges=True,
)


def multihead(function, q, k, v, *, mask=None, bias=None, causal=False, dropout=0.0, training=False, need_weights=True):
    """One call of the module or of its function. All projections are the identity: the attention between them is what is judged.

    They add up heads, and NaN times 0 is NaN: where one head gives NaN for a query without a key, all heads of the query would be
    NaN. So where a query has keys in some heads only, each head is asked in a call of its own, beside heads that see all keys.
    """
    import torch
    from einops import rearrange

    (b, h, i, d), j = q.shape, k.shape[2]
    if k.shape[1] != h or v.shape[3] != d:
        from attnspec.adapters import Unsupported

        raise Unsupported("its keys and values have the heads and the width of its queries")
    module = isinstance(getattr(function, "func", function), type)
    order = "b i (h d)" if module else "i b (h d)"
    # Its masks are True where nobody may attend, or are added. A causal mask is given beside the word that it is one.
    padding = hidden = None
    if mask is not None and mask.ndim == 2:
        padding = ~mask
    elif mask is not None:
        hidden = ~mask
    hint = causal and hidden is None and bias is None
    if causal:
        ahead = torch.ones(i, j, dtype=torch.bool, device=q.device).triu(1)
        hidden = ahead if hidden is None else hidden | ahead
    if bias is not None:
        hidden = bias if hidden is None else bias.masked_fill(hidden, float("-inf"))
        if padding is not None:  # of the same type
            padding = torch.zeros_like(padding, dtype=bias.dtype).masked_fill(padding, float("-inf"))

    def call(q, k, v, hidden):
        turned = {id(x): rearrange(x, f"b h i d -> {order}") for x in (q, k, v)}  # one tensor stays one: there is a fast path
        tensors = [turned[id(x)] for x in (q, k, v)]
        if hidden is not None:
            alike = all(size == 1 for size in hidden.shape[:-2])
            hidden = hidden.reshape(hidden.shape[-2:]).expand(i, j) if alike else hidden.expand(b, h, i, j).reshape(b * h, i, j)
        said = {"key_padding_mask": padding, "attn_mask": hidden, "need_weights": need_weights, "is_causal": hint}

        one = torch.eye(h * d, dtype=q.dtype, device=q.device)
        if module:  # on no device at first, so that no numbers are drawn for it
            made = function(h * d, h, dropout=dropout, batch_first=True, device="meta", dtype=q.dtype)
            made = made.to_empty(device=q.device).train(training).requires_grad_(False)
            for parameter in made.parameters():
                parameter.zero_()
            made.in_proj_weight.copy_(one.repeat(3, 1))
            made.out_proj.weight.copy_(one)
            o, _ = made(*tensors, **said)
        else:
            sizes, inwards = (h * d, h), (one.repeat(3, 1), None)
            o, _ = function(*tensors, *sizes, *inwards, None, None, False, dropout, one, None, training=training, **said)
        return rearrange(o, f"{order} -> b h i d", h=h)

    if need_weights and hidden is not None and hidden.ndim > 2 and hidden.shape[-3] > 1:
        seen = ~hidden if hidden.dtype == torch.bool else hidden > float("-inf")
        if mask is not None and mask.ndim == 2:
            seen = seen & mask[:, None, None]
        some = seen.any(-1)
        if (some.any(-2) & ~some.all(-2)).any():
            heads = torch.arange(h, device=q.device).view(h, 1, 1)
            found = []
            for n in range(h):
                alone = {id(x): torch.where(heads == n, x, x.detach()) for x in (q, k, v)}
                shown = torch.where(heads == n, hidden, torch.zeros_like(hidden))
                found.append(call(*(alone[id(x)] for x in (q, k, v)), shown)[:, n])
            return torch.stack(found, 1)
    return call(q, k, v, hidden)


MULTIHEAD = Convention(
    name="torch multi-head attention, its projections the identity",
    of="torch 2.13, torch.nn.MultiheadAttention and torch.nn.functional.multi_head_attention_forward",
    paths=(
        "torch.nn.MultiheadAttention",
        "torch.nn.modules.activation.MultiheadAttention",
        "torch.nn.functional.multi_head_attention_forward",
    ),
    shown_by=frozenset({"embed_dim_to_check", "num_heads", "in_proj_weight", "key_padding_mask", "need_weights"}),
    reading=AS_IT_IS,
    variants={f"need_weights={need}": {"fixed": {"need_weights": need}} for need in (True, False)},
    dialect={"causal_alignment": "top_left"},
    restrictions=frozenset({"some_heads"}),  # its tensors are (b i h·d), so that heads are no axis
    attend=multihead,
)


def flex(
    function,
    q,
    k,
    v,
    *,
    mask=None,
    bias=None,
    causal=False,
    scale=None,
    softcap=None,
    window=None,
    first_tokens=0,
    alibi_slopes=None,
    q_start=None,
    lse=False,
):
    """One call. What moves a score is its score_mod, the cap first, and what hides a key its mask_mod."""
    import torch
    from torch.nn.attention import flex_attention as words

    if softcap is not None and softcap <= 0:  # the cap is a score_mod of who calls it, and he knows what is no cap
        raise ValueError("a soft cap is above 0")
    (b, h, i, _), j = q.shape, k.shape[2]
    left, right = window or (None, None)
    each = isinstance(q_start, tuple)
    start = torch.tensor(q_start, device=q.device) if each else q_start or 0
    whole = None if bias is None else bias.expand(b, h, i, j)
    slopes = None if alibi_slopes is None else alibi_slopes.expand(b, h)
    shown = None if mask is None else (mask[:, None, None] if mask.ndim == 2 else mask).expand(b, h, i, j)

    def score_mod(score, item, head, row, column):
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if whole is not None:
            score = score + whole[item, head, row, column]
        if slopes is not None:
            score = score - slopes[item, head] * (column - row - (start[item] if each else start)).abs()
        return score

    def mask_mod(item, head, row, column):
        ahead = column - row - (start[item] if each else start)
        seen = ahead == ahead
        if left is not None:
            seen = (ahead >= -left) | (column < first_tokens)
        if right is not None:
            seen = seen & (ahead <= right)
        if causal:
            seen = seen & (ahead <= 0)
        return seen if shown is None else seen & shown[item, head, row, column]

    given = {"score_mod": score_mod} if softcap is not None or whole is not None or slopes is not None else {}
    if causal or window is not None or shown is not None:
        sizes = (None if shown is None and not each else b, None if shown is None else h, i, j)
        given["block_mask"] = words.create_block_mask(mask_mod, *sizes, device=q.device)
    if lse:
        given |= {"return_aux": words.AuxRequest(lse=True)} if hasattr(words, "AuxRequest") else {"return_lse": True}
    found = function(q, k, v, scale=scale, enable_gqa=h != k.shape[1], **given)
    return (found[0], getattr(found[1], "lse", found[1])) if lse else found


def flex_documents(
    function,
    q,
    k,
    v,
    cu_q,
    cu_k,
    max_q,
    max_k,
    *,
    used_q=None,
    used_k=None,
    causal=False,
    scale=None,
    softcap=None,
    window=None,
    alibi_slopes=None,
    lse=False,
):
    """One call of all sequences in one batch item, whose mask_mod sees keys of the query's own document, as its authors write it.

    Places are those within a document. Rows that belong to none have a document of their own.
    """
    import torch
    from torch.nn.attention import flex_attention as words

    if softcap is not None and softcap <= 0:
        raise ValueError("a soft cap is above 0")

    def documents(x, starts, used, nobody):
        """The document of each row and its place there."""
        rows = torch.arange(len(x), device=x.device)
        own = torch.searchsorted(starts.long(), rows, right=True) - 1
        first = starts.long()[own]
        lengths = starts.diff() if used is None else used
        there = (own < len(lengths)) & (rows - first < torch.cat([lengths, lengths.new_zeros(1)])[own])
        return torch.where(there, own, nobody), rows - first

    (of_q, at_q), (of_k, at_k) = documents(q, cu_q, used_q, -1), documents(k, cu_k, used_k, -2)
    left, right = window or (None, None)
    slopes = None if alibi_slopes is None else alibi_slopes.expand(len(cu_q) - 1, q.shape[1])

    def score_mod(score, item, head, row, column):
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score - slopes[of_q[row].clamp(0), head] * (at_k[column] - at_q[row]).abs()
        return score

    def mask_mod(item, head, row, column):
        seen, ahead = of_q[row] == of_k[column], at_k[column] - at_q[row]
        if left is not None:
            seen = seen & (ahead >= -left)
        if right is not None:
            seen = seen & (ahead <= right)
        return seen & (ahead <= 0) if causal else seen

    given = {"score_mod": score_mod} if softcap is not None or slopes is not None else {}
    given["block_mask"] = words.create_block_mask(mask_mod, None, None, len(q), len(k), device=q.device)
    if lse:
        given |= {"return_aux": words.AuxRequest(lse=True)} if hasattr(words, "AuxRequest") else {"return_lse": True}
    found = function(*(x.transpose(0, 1)[None] for x in (q, k, v)), scale=scale, enable_gqa=q.shape[1] != k.shape[1], **given)
    o = (found[0] if lse else found)[0].transpose(0, 1)
    return (o, getattr(found[1], "lse", found[1])[0]) if lse else o


# Alignment, order of the cap, count of a window and distance are those of the functions above, which its documentation writes so.
FLEX = Convention(
    name="torch flex_attention",
    of="torch 2.13, torch.nn.attention.flex_attention.flex_attention",
    paths=("torch.nn.attention.flex_attention.flex_attention",),
    shown_by=frozenset({"score_mod", "block_mask"}),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    restrictions=frozenset({"no_backward:cpu"}),
    dialect={
        "causal_alignment": "top_left",
        "empty_row": "zero",
        "head_grouping": "blocked",
        "softcap_order": "before_bias",
        "window_count": "inclusive",
        "alibi_form": "distance",
        "lse_base": "e",
    },
    attend=flex,
    forms={"packed": flex_documents},
)
CONVENTIONS = (MULTIHEAD, FLEX, SDPA)
