"""What several forms have in common. A script of a failure holds the text of those that its form uses."""

from __future__ import annotations


def filling(x, poison):
    """The number that poison puts into rows of x that belong to no sequence; None where others' numbers stand there."""
    import torch

    return {"nan": float("nan"), "huge": 1e30 if x.dtype != torch.float16 else 3e4}.get(poison)


def nobodys(x, shape, poison):
    """A tensor of this shape with nothing but poison: one number, or twice what stands anywhere in x."""
    import torch

    fill = filling(x, poison)
    found = x.new_full(shape, 2.0 if fill is None else fill)
    if fill is None and x.numel():
        found.copy_(2 * x.detach().reshape(-1)[torch.arange(found.numel(), device=x.device) * 7 % x.numel()].view(shape))
    return found


def side_by_side(x, y):
    """The same as views of one tensor, in which they stand side by side, with NaN beside the narrower one."""
    import torch

    width = max(x.shape[-1], y.shape[-1])
    one = torch.stack([torch.nn.functional.pad(z, (0, width - z.shape[-1]), value=float("nan")) for z in (x, y)], 1)
    return one[:, 0, ..., : x.shape[-1]], one[:, 1, ..., : y.shape[-1]]


def look_at(found, right, spoilt):
    """Put the names of those tensors into spoilt that differ in a bit from what they should be, if it is a list."""
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, x in right.items() if spoilt is not None else ():
        own, x = (y.detach().view(whole[y.element_size()]) for y in (found[name], x))
        if own.shape != x.shape or not torch.equal(own, x):
            spoilt.append(name)


def apart(x, begins, lengths, most, axis):
    """Packed rows of each sequence, as many for each: zeros stand behind them."""
    import torch

    found = []
    for begin, length in zip(begins, lengths, strict=True):
        own = x.narrow(axis, begin, length)
        missing = list(own.shape)
        missing[axis] = most - length
        found.append(torch.cat([own, own.new_zeros(missing)], axis))
    if not found:  # no sequence: nothing of what was returned, and its gradients
        return x.new_zeros([0, *x.shape[:axis], most, *x.shape[axis + 1 :]]) + x.sum()
    return torch.stack(found)
