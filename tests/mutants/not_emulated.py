"""Public bugs that no mutant repeats, and why; and faults that are none, with the proof."""

from __future__ import annotations

# Of the 122 entries of the project's list of public bugs that have details.
NOT_EMULATED: dict[str, str] = {
    "pytorch/pytorch#189631": "one item of queries broadcast against several of keys: no clause offers it, ERROR-2 refuses it",
    "jax-ml/jax#36702": "vmap of a gradient: a transform of JAX, and no way to call an implementation that the spec knows",
    "proger/hippogriff#7": "a negative sliding window: no problem has one, and WINDOW gives it no meaning",
    "vllm-project/vllm#945": "ALiBi shifted by a constant in each row: softmax takes no notice, so the answer is right (BIAS-4)",
    "QwenLM/Qwen3.8#104": "positions of three dimensions are taken for a pack by the model, which then calls with wrong lengths",
    "tracel-ai/cubecl#1070": "a fault of a judge, not of a kernel: tests/test_judge.py sees NaN fail against a number",
    "pytorch/pytorch#152290": "one device's nightly was wrong in a model; neither cause nor symptom was isolated",
    "ml-explore/mlx#3383": "vmap over grouped heads hangs: a transform of MLX; a hang has no answer to judge",
    "facebookresearch/xformers#761": "code in a docstring that was not the kernel's: nothing that is called was wrong",
}

# What looked like a fault and gives a right answer, or one that its accuracy class allows.
EQUIVALENT: dict[str, str] = {
    "a bias without a key axis gets the gradient of some rows, items or heads only": (
        "Σ_j dS_ij = Σ_j P_ij (dP_ij − D_i) = D_i − D_i = 0 for every row, so the gradient is zero whatever rows are left out; "
        "the mutants bias_over_*_gradient leave out keys instead"
    ),
    "an empty row sum of one: total.masked_fill(total == 0, 1)": "a row without a key has weights of zero, and 0 / 1 = 0 (EMPTY-1)",
    "dk or dbias of half inputs summed in bfloat16, 257 to 513 terms": (
        "within class C of float16: its bound grows with the number of terms, the error with its root; float32 inputs show it"
    ),
    "the output of a sink that joins the row sum and not the maximum": (
        "e^(z − m) overflows where e^(m − z), which a kernel with the maximum has, underflows: zero either way. The lse is "
        "infinite, and ∞/∞ in a gradient is NaN: SinksWithoutTheMaximum (SINK-6)"
    ),
    "scores of half inputs rounded to bfloat16 before the maximum": (
        "within class C of float16 on 17 keys of scores in the thousands; float32 inputs show it (mask_added_in_half)"
    ),
}
