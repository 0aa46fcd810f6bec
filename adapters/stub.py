"""An adapter to begin with, for a signature that no convention covers: ten lines that fit it."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

from torch.nn import Module

from attnspec.adapters.conventions.signature import FIELD_OF, UnknownSignature, signature_of
from attnspec.spec import OPTIONS
from attnspec.spec.words import FEATURES, RAGGED


def ten_lines(found: Any, name: str, problem: str) -> str:
    """What is said of such a signature, with the adapter."""
    if hasattr(found, "arg_names") and hasattr(found, "fn"):  # what @triton.jit makes
        return launcher(found, name)
    last = name.rpartition(":" if ".py:" in name else ".")[2].split(".")[-1]
    module = (inspect.isclass(found) and issubclass(found, Module)) or isinstance(found, Module)
    inside = (
        "\nMost modules project embeddings before they attend: their forward does not take q, k, v. Call the attention inside."
        if module
        else ""
    )
    return f"""--impl={name} has a signature that no convention covers: {last}{_signature(found)}
{problem}.{inside}

{stub(found, name)}"""


# The part of a parameter's name that shows an option, of several the first: causal_mask is causal. Others show by their own name.
LIKE = {"causal": "causal", "mask": "mask", "bias": "bias", "scal": "scale", "drop": "dropout"}
LIKE |= {name: name for name in OPTIONS if name not in LIKE.values() and name != "lse"}  # which is a second tensor to be picked

# What the shapes of q, k and v say of a parameter that carries no input and no option, by its name.
BY_SHAPE = {
    "q.shape[0]": ("b", "batch", "batch_size", "bs"),
    "q.shape[1]": ("h", "heads", "num_heads", "n_heads", "nheads", "n_head", "num_q_heads", "num_qo_heads", "num_attention_heads"),
    "k.shape[1]": ("kv_heads", "num_kv_heads", "n_kv_heads", "num_key_value_heads", "heads_k", "nheads_k"),
    "q.shape[2]": ("seq_len", "seqlen", "seqlen_q", "max_seqlen_q", "q_len", "q_seq_len", "n_ctx", "tgt_len"),
    "k.shape[2]": ("seqlen_k", "max_seqlen_k", "k_len", "kv_len", "kv_seq_len", "src_len"),
    "q.shape[3]": ("d", "dim", "head_dim", "headdim", "dim_head", "head_size", "d_head", "d_k"),
    "v.shape[3]": ("d_v", "v_head_dim", "value_dim", "head_dim_v"),
    "q.dtype": ("dtype",),
    "q.device": ("device",),
}
SHOWN_BY_SHAPE = {name: said for said, names in BY_SHAPE.items() for name in names}


def stub(found: Any, name: str) -> str:
    """An adapter for what no convention covers, made from its own parameters.

    What nobody can guess, not from the shapes either, is left as `...`.
    """
    file, module, inside = _place(found, name)
    made = f"attend = {inside}({_required(found)})" if inspect.isclass(found) else f"attend = {inside}"
    imported = inside.split(".")[0] + (f"; {made}" if made != "attend = attend" else "")
    beside = f", beside {Path(file).name}" if file.endswith(".py") else ""
    arguments, options = [], []
    for parameter, field in _fields(found).items():
        if field == "...":
            arguments.append(f"{parameter}=...")
        else:
            arguments.append(f"{parameter}={field}")
            options += [field] if field in OPTIONS else []
    offers = [
        "mha",
        "backward",
        *(("key_padding",) if "mask" in options else ()),
        *(OPTIONS[option].feature for option in options if OPTIONS[option].feature),
    ]
    keywords = "".join(f", {option}={OPTIONS[option].default}" for option in options)
    fill = (
        "\n            # replace each ...: no convention knows this parameter" if any(x.endswith("=...") for x in arguments) else ""
    )
    return f"""Write an adapter, say attn_adapter.py{beside}, and run pytest --impl=attn_adapter.py:Attention

    from attnspec.adapters import Adapter
    from {module} import {imported}

    class Attention(Adapter):
        offers = {{{", ".join(f'"{x}"' for x in offers)}}}       # of {", ".join(x for x in FEATURES if x not in RAGGED)}

        def attend(self, q, k, v{", *" if options else ""}{keywords}):{fill}
            # q (b h i d), k (b g j d), v (b g j e)  →  o (b h i e); the suite passes only options that are offered
            return attend({", ".join(arguments)})
"""


# What a Triton kernel is given, by the name of its parameter without "desc_" and "_ptr".
OPERANDS = {"q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v", "o": "o", "out": "o", "output": "o"}
OPERANDS |= {"z": "q.shape[0]", "causal": "causal", "is_causal": "causal"}
BLOCK = 32


def launcher(kernel: Any, name: str) -> str:
    """A function of tensors that launches a Triton kernel, made from the names of the kernel's parameters."""
    file, module, inside = _place(kernel, name)
    strides = Counter[str]()
    given = []
    for parameter in kernel.arg_names:
        lower = parameter.lower()
        word = lower.removeprefix("desc_").removesuffix("_ptr")
        operand = OPERANDS.get(lower.removeprefix("stride_")[:1]) if lower.startswith("stride_") else None
        if operand:
            value = f"{operand}.stride({strides[operand]})"
            strides[operand] += 1
        elif "scale" in lower:
            value = "scale"
        elif lower.startswith("block"):
            value = str(BLOCK)
        else:
            value = OPERANDS.get(word) or SHOWN_BY_SHAPE.get(word, "...")
        given.append(f"{parameter}={value}")
    fill = "  # replace each ...: its name shows nothing" if any(x.endswith("=...") for x in given) else ""
    beside = f", beside {Path(file).name}" if file.endswith(".py") else ""
    causal = ", causal=False" if any(x.endswith("=causal") for x in given) else ""
    return f"""--impl={name} is a Triton kernel, which needs a grid and the memory of its output.
Write a function of tensors, say attn_kernel.py{beside}, and run pytest --impl=attn_kernel.py:attend
(with TRITON_INTERPRET=1 before Python starts where there is no GPU; with --without=backward if it has no backward kernel)

    import torch
    import triton
    from {module} import {inside.split(".")[0]}

    def attend(q, k, v{causal}, scale=None):
        # q (b h i d), k (b g j d), v (b g j e)  →  o (b h i e)
        o = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
        scale = q.shape[3] ** -0.5 if scale is None else scale
        grid = (triton.cdiv(q.shape[2], {BLOCK}), q.shape[0] * q.shape[1])
        {inside}[grid]({", ".join(given)}){fill}
        return o
"""


def _place(found: Any, name: str) -> tuple[str, str, str]:
    """The file of something that is tested, or what stands before its name; its module; and its name in that."""
    file, _, inside = name.rpartition(":" if ".py:" in name else ".")
    return file, Path(file).stem if file.endswith(".py") else file or getattr(found, "__module__", "mypackage"), inside


def _fields(found: Any) -> dict[str, str]:
    """Parameter → the field that it carries, or looks as if it did; "..." for a required one that shows nothing."""
    function = vars(found).get("forward", vars(found).get("__call__", found)) if inspect.isclass(found) else found
    try:
        parameters = [p for p in signature_of(function).parameters.values() if p.name != "self"]
    except UnknownSignature:
        return {"...": "..."}
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    fields = {p.name: FIELD_OF[p.name] for p in named if FIELD_OF.get(p.name) in (*LIKE.values(), *"qkv")}
    for part, field in LIKE.items():  # a name shows a field where it is the only one that is like it
        like = [p.name for p in named if p.name not in fields and part in p.name.lower()]
        if len(like) == 1 and field not in fields.values():
            fields[like[0]] = field
    known = {p.name: fields.get(p.name, "...") for p in named if p.name in fields or p.default is p.empty}
    if not set(known.values()) & {"q", "k", "v"}:  # then the first three that must be given
        first = [name for name, field in known.items() if field == "..."][:3]
        known |= dict(zip(first, "qkv", strict=False))
    return {name: SHOWN_BY_SHAPE.get(name, field) if field == "..." else field for name, field in known.items()}


def _required(kind: type) -> str:
    """The arguments that a constructor must be given, to be filled in."""
    try:
        parameters = signature_of(kind).parameters.values()
    except UnknownSignature:
        return ""
    needed = (p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return ", ".join(f"{p.name}=..." for p in needed)


def _signature(found: Any) -> str:
    try:
        if not inspect.isclass(found):
            return str(inspect.signature(getattr(found, "forward", found)))
        method = "forward" if hasattr(found, "forward") else "__call__"
        return f"{inspect.signature(found)}, whose {method} is {inspect.signature(getattr(found, method))}"
    except (TypeError, ValueError):
        return "(…)"
