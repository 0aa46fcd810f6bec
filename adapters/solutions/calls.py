"""How a Solution is called: plain functions, whose text the scripts of failures hold."""

from __future__ import annotations


def entry_of(path):
    """The function that a Solution in a file names; its sources are written into a folder of their own and imported from there."""
    import atexit
    import importlib
    import json
    import shutil
    import sys
    import tempfile
    from pathlib import Path

    solution = json.loads(Path(path).read_text(encoding="utf-8"))
    folder = Path(tempfile.mkdtemp(prefix="solution_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source in solution["sources"]:
        place = folder / folder.name / source["path"]  # a package, so that its files import each other
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(source["content"], encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    file, _, name = solution["spec"]["entry_point"].partition("::")
    module = importlib.import_module(".".join([folder.name, *Path(file).with_suffix("").parts]))
    return getattr(module, name)


def solved(run, given, *, inputs, outputs, in_place, lse):
    """Call run with what its Definition names, in that order. Returns the output (n h e), and its lse as (h n) where asked.

    inputs: names. outputs: the name, the dtype and the sizes of each behind its rows. in_place: run writes into tensors behind its
    inputs, which hold NaN before; else it returns them.
    """
    import torch

    arguments = [given[name] for name in inputs]
    q = given.get("q", given.get("q_nope"))
    if in_place:
        returned = [
            torch.full((len(q), *sizes), float("nan"), dtype=getattr(torch, dtype), device=q.device) for _, dtype, sizes in outputs
        ]
        run(*arguments, *returned)
    else:
        returned = run(*arguments)
    if isinstance(returned, dict):
        found = returned
    else:
        several = list(returned) if isinstance(returned, tuple | list) else [returned]
        if len(several) != len(outputs) and (lse or len(several) != 1):
            raise ValueError(f"it returned {len(several)} outputs, and its Definition has {len(outputs)}")
        found = dict(zip((name for name, *_ in outputs), several, strict=False))
    o = next(found[name] for name, *_ in outputs if name != "lse")
    if not lse:
        return o
    of_rows = found["lse"]
    return o, of_rows.transpose(0, 1) if isinstance(of_rows, torch.Tensor) and of_rows.ndim == 2 else of_rows


def solved_paged(run, words, latent, q, cu_q, max_q, k_pages, v_pages, table, lengths, *, causal=False, scale=None, lse=False):
    """Call run for sequences in pages: the table as the pages of all sequences in turn, and where those of each begin.

    words: what :func:`solved` takes. latent: the first channels of queries and keys that are its ckv, whose values are the same;
    0 for none. causal is what the Definition says.
    """
    import torch

    size = k_pages.shape[1]
    counts = [-(-int(n) // size) for n in lengths]
    pages = [int(table[n, m]) for n, count in enumerate(counts) for m in range(count)]
    begins = [sum(counts[:n]) for n in range(len(counts) + 1)]
    ends = [(int(n) - 1) % size + 1 if n else 0 for n in lengths]
    ints = {"dtype": torch.int32, "device": q.device}
    given = {"qo_indptr": cu_q, "kv_indptr": torch.tensor(begins, **ints), "kv_indices": torch.tensor(pages, **ints)}
    given["kv_last_page_len"] = torch.tensor(ends, **ints)
    given["sm_scale"] = q.shape[-1] ** -0.5 if scale is None else scale
    if latent:
        keys = k_pages[:, :, 0]
        given |= {"q_nope": q[..., :latent].contiguous(), "q_pe": q[..., latent:].contiguous()}
        given |= {"ckv_cache": keys[..., :latent].contiguous(), "kpe_cache": keys[..., latent:].contiguous()}
    else:
        given |= {"q": q, "k_cache": k_pages, "v_cache": v_pages}
    return solved(run, given, **words, lse=lse)


def solved_packed(run, words, q, k, v, cu_q, cu_k, max_q, max_k, *, causal=False, scale=None, lse=False):
    """Call run for packed sequences. words: what :func:`solved` takes. causal is what the Definition says."""
    given = {"q": q, "k": k, "v": v, "qo_indptr": cu_q, "kv_indptr": cu_k, "seq_indptr": cu_q}
    given["sm_scale"] = q.shape[-1] ** -0.5 if scale is None else scale
    return solved(run, given, **words, lse=lse)
