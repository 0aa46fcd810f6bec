"""An adapter to begin with, for a signature that no convention covers: ten lines that fit it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch.nn import Module

from attnspec.adapters.conventions.signature import FIELD_OF, UnknownSignature, signature_of
from attnspec.spec import OPTIONS
from attnspec.spec.words import FEATURES


def ten_lines(found: Any, name: str, problem: str) -> str:
    """What is said of such a signature, with the adapter."""
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


def stub(found: Any, name: str) -> str:
    """An adapter for what no convention covers, made from its own parameters; what nobody can guess is left as `...`."""
    file, _, inside = name.rpartition(":" if ".py:" in name else ".")
    module = Path(file).stem if file.endswith(".py") else file or getattr(found, "__module__", "mypackage")
    made = f"attend = {inside}({_required(found)})" if inspect.isclass(found) else f"attend = {inside}"
    imported = inside.split(".")[0] + (f"; {made}" if made != "attend = attend" else "")
    beside = f", beside {Path(file).name}" if file.endswith(".py") else ""
    arguments, options = [], []
    for parameter, field in _fields(found).items():
        if field == "...":
            arguments.append(f"{parameter}=...")
        elif field in ("q", "k", "v"):
            arguments.append(f"{parameter}={field}")
        else:
            arguments.append(f"{parameter}={field}")
            options.append(field)
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
        offers = {{{", ".join(f'"{x}"' for x in offers)}}}       # of {", ".join(FEATURES)}

        def attend(self, q, k, v{", *" if options else ""}{keywords}):{fill}
            # q (b h i d), k (b g j d), v (b g j e)  →  o (b h i e); the suite passes only options that are offered
            return attend({", ".join(arguments)})
"""


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
    return known


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
