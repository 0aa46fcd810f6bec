"""cuDNN's frontend: its graph, in which attention is one node, and its function of torch tensors."""

from __future__ import annotations

from dataclasses import replace

from attnspec.adapters.conventions.convention import Convention
from attnspec.adapters.conventions.layout import AS_IT_IS


def sdpa_graph(  # type: ignore[no-untyped-def]
    function, q, k, v, *, bias=None, causal=False, scale=None, window=None, lse=False
):
    """A graph of one node, sdpa, built for these tensors, and one of sdpa_backward where a gradient is asked for.

    Without a scale the node has none, so that it is always said. Causal masking is a band of keys that ends at the diagonal, which
    is top-left: it refuses a bottom-right one beside a bias, and where there are more queries than keys. The left end of a band is
    a number of keys, which counts the query's own.
    """
    import cudnn
    import torch

    band = {}
    right = 0 if causal else window[1] if window is not None else None
    if right is not None:
        band["diagonal_band_right_bound"] = right
    if window is not None and window[0] is not None:
        band["diagonal_band_left_bound"] = window[0] + 1
    if band:
        band["diagonal_alignment"] = cudnn.diagonal_alignment.TOP_LEFT
    node = {"attn_scale": max(q.shape[3], 1) ** -0.5 if scale is None else scale, **band}
    whole = None if bias is None else bias[(None,) * (4 - bias.ndim)]
    added = None if whole is None else whole.expand(*whole.shape[:2], q.shape[2], k.shape[2]).contiguous()
    half = cudnn.data_type.BFLOAT16 if q.dtype == torch.bfloat16 else cudnn.data_type.HALF
    single = cudnn.data_type.FLOAT

    def run(name, tensors, outputs, **options):  # type: ignore[no-untyped-def]
        """Build a graph, and execute it. Each output is like a tensor, of a type."""
        graph = function(io_data_type=half, intermediate_data_type=single, compute_data_type=single)
        inputs = {key: graph.tensor_like(x) for key, x in tensors.items()}
        made = getattr(graph, name)(**inputs, **options)
        pack = {inputs[key]: x for key, x in tensors.items()}
        for output, (x, kind) in zip(made, outputs, strict=False):
            output.set_output(True).set_dim(list(x.shape)).set_stride(list(x.stride())).set_data_type(kind)
            pack[output] = x
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.execute(pack, torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=q.device))
        return [x for x, _ in outputs]

    class Graph(torch.autograd.Function):
        """The node and its backward."""

        @staticmethod
        def forward(ctx, q, k, v, added):  # type: ignore[no-untyped-def]
            tensors = {"q": q, "k": k, "v": v} | ({} if added is None else {"bias": added})
            o, stats = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(*q.shape[:3], 1, dtype=torch.float32)
            run("sdpa", tensors, [(o, half), (stats, single)], generate_stats=True, **node)  # type: ignore[no-untyped-call]
            ctx.save_for_backward(q, k, v, o, stats, added)
            ctx.mark_non_differentiable(stats)
            return o, stats

        @staticmethod
        def backward(ctx, do, _):  # type: ignore[no-untyped-def]
            q, k, v, o, stats, added = ctx.saved_tensors
            tensors = {"q": q, "k": k, "v": v, "o": o, "dO": do.contiguous(), "stats": stats}
            tensors |= {} if added is None else {"bias": added}
            gradients = [torch.empty_like(x) for x in (q, k, v)]
            return *run("sdpa_backward", tensors, [(x, half) for x in gradients], **node), None  # type: ignore[no-untyped-call]

    o, stats = Graph.apply(q, k, v, added)  # type: ignore[no-untyped-call]
    return (o, stats.squeeze(-1)) if lse else o


def sdpa_of_tensors(  # type: ignore[no-untyped-def]
    function, q, k, v, *, causal=False, scale=None, window=None, sinks=None, lse=False
):
    """A band of keys, aligned bottom-right. Gradients need the lse, so that it is asked for where one is."""
    graded = any(x.requires_grad for x in (q, k, v))
    left, right = (None, None) if window is None else window
    options = {"scale": scale, "is_causal": causal, "causal_bottom_right": causal or (left, right) != (None, None), "sinks": sinks}
    options |= {"window_left": -1 if left is None else left, "window_right": -1 if right is None or causal else right}
    returned = function(q, k, v, **options, return_lse=lse or graded)
    o, stats = returned if isinstance(returned, tuple) else (returned, None)
    return (o, stats.squeeze(-1) if stats.ndim == 4 else stats) if lse else o


GRAPH = Convention(
    name="cuDNN's graph",
    of="nvidia-cudnn-frontend 1.32, cudnn.pygraph and its sdpa",
    paths=("cudnn.pygraph", "cudnn._pygraph.pygraph"),
    reading=AS_IT_IS,
    offers=frozenset({"gqa", "mqa", "value_width"}),
    without=frozenset({"bias_grad", "lse_grad"}),
    dialect={
        "causal_alignment": "top_left",
        "head_grouping": "blocked",
        "window_count": "inclusive",
        "lse_base": "e",
        "lse_dtype": "wide",
    },
    dtypes=("float16", "bfloat16"),
    devices=("cuda",),
    attend=sdpa_graph,
    untested="its kernels run on GPUs only",
)
# What its window_left counts is not written, and is observed. Sinks have no gradient, nor has anything else beside them.
TENSORS = replace(
    GRAPH,
    name="cuDNN's sdpa",
    of="nvidia-cudnn-frontend 1.32, cudnn.sdpa_torch",
    paths=("cudnn.sdpa_torch", "cudnn.sdpa.fwd.torch_op.sdpa"),
    without=frozenset({"sinks_grad", "lse_grad"}),
    dialect={"causal_alignment": "bottom_right", "head_grouping": "blocked", "lse_base": "e", "lse_dtype": "wide"},
    attend=sdpa_of_tensors,
)
CONVENTIONS = (GRAPH, TENSORS, TENSORS.elsewhere("causal_bottom_right", "window_left", "window_right", "sinks"))
