"""Dense tensors, and how many queries and keys each batch item has."""

from __future__ import annotations

from attnspec.adapters.forms.parts import filling, look_at


def padded(attend, q, k, v, *, q_lengths, k_lengths, poison="nan", spoilt=None, lse=False, **options):
    """Call attend(q, k, v, k_lengths) with q, k, v (b h i d) whose padding is poison, and return o (b h i e), zero in padding.

    k_lengths (b) int32, and q_lengths (b) int32 where they are not all the same. An lse is (b h i).
    """
    import torch

    def there(x, lengths):
        """Which rows are none of padding, (b 1 n 1)."""
        return (torch.arange(x.shape[2], device=x.device) < torch.tensor(lengths, device=x.device)[:, None])[:, None, :, None]

    def with_poison(x, lengths):
        """The rows behind each length are poison: NaN, huge, or twice what another batch item has there."""
        fill = filling(x, poison)
        other = 2 * x.detach().roll(1, 0) if fill is None else torch.full_like(x, fill)
        return torch.where(there(x, lengths), x, other)

    given = {"q": with_poison(q, q_lengths), "k": with_poison(k, k_lengths), "v": with_poison(v, k_lengths)}
    given["k_lengths"] = torch.tensor(k_lengths, dtype=torch.int32, device=q.device)
    if any(length != q.shape[2] for length in q_lengths):
        given["q_lengths"] = torch.tensor(q_lengths, dtype=torch.int32, device=q.device)
    before = {name: x.detach().clone() for name, x in given.items()}
    returned = attend(**given, **options, **({"lse": True} if lse else {}))
    look_at(given, before, spoilt)
    o, of_rows = returned if lse else (returned, None)
    own = there(q, q_lengths)
    if isinstance(o, torch.Tensor) and o.ndim == 4 and o.shape[:3] == q.shape[:3]:
        o = torch.where(own, o, torch.zeros_like(o))
    if isinstance(of_rows, torch.Tensor) and of_rows.shape == q.shape[:3]:
        of_rows = torch.where(own[..., 0], of_rows, torch.zeros_like(of_rows))
    return (o, of_rows) if lse else o
