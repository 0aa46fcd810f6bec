#!/usr/bin/env bash
# Attention on a CUDA machine: torch's kernels, flex compiled, a Triton kernel of ours and six wrong ones, JAX, tf32 both ways,
# streams, graphs, a device that is lost, and more than 2^31 elements. It downloads nothing and ends within eight minutes.
#
#     benchmarks/device.sh results/2026-12-01-device      # a folder that it makes: verdict files, what was printed, a table
#
# It needs this project installed with torch 2.11 or later; Triton and JAX where they are. In the environment:
#     DEVICE=cpu       runs what of it a CPU can, Triton in its interpreter
#     ONLY=triton,tf32 runs the steps whose names begin so
#     SHARE=0.2        each step gets this share of its time
#     JOBS=3           steps at a time
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?name a folder for the results}" && cd "$1" && pwd)
device=${DEVICE:-cuda}
jobs=${JOBS:-3}
python=${PYTHON:-python}
share=${SHARE:-1}
total=470
export PYTHONPATH="$PWD/benchmarks:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 CI=true XLA_PYTHON_CLIENT_PREALLOCATE=false
if [ "$device" = cpu ]; then export TRITON_INTERPRET=1; fi
began=$SECONDS
: > "$out/steps.tsv"

wanted() {  # NAME
    [ -z "${ONLY:-}" ] && return 0
    local one
    for one in ${ONLY//,/ }; do case $1 in "$one"*) return 0 ;; esac; done
    return 1
}

one() {  # NAME EXPECTED-EXIT SECONDS OPTIONS...: a run, and its line in the table; what is cut off has exit 124
    local name=$1 expected=$2 seconds left code since=$SECONDS
    seconds=$("$python" -c "print(max(1, round($3 * $share)))"); shift 3
    left=$((total - since + began))
    if [ $left -lt 10 ]; then printf '%s\t%s\tnot run: no time was left\t0\n' "$name" "$expected" >> "$out/steps.tsv"; return; fi
    timeout --signal=INT --kill-after=10 "$((seconds + 25 < left ? seconds + 25 : left))" "$python" -m pytest "$@" \
        --impl-device="$device" --tier="${tier:-smoke}" --isolate --budget="$seconds" --explain-budget="$((seconds / 3))" --allow-incomplete \
        --verdicts="$out/$name.jsonl" -q -p no:cacheprovider > "$out/$name.txt" 2>&1
    code=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$expected" "$code" "$((SECONDS - since))" >> "$out/steps.tsv"
    echo "$name: exit $code"
}

step() {  # the same beside others, or not at all
    wanted "$1" || return 0
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    one "$@" &
}

alone() {  # the same when all others have ended: it needs the whole memory
    wanted "$1" || return 0
    wait
    one "$@"
}

"$python" - "$device" > "$out/machine.txt" <<'PYTHON'
import importlib.metadata as metadata
import sys
import torch
print(torch.cuda.get_device_name() if sys.argv[1] == "cuda" else f"the device {sys.argv[1]}")
for name in ("torch", "triton", "jax", "numpy"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not there")
PYTHON
cat "$out/machine.txt"
has() { "$python" -c "import $1" 2> /dev/null; }

# TORCH
step sdpa-math 0 25 --impl=sdpa-math
step sdpa-flash any 25 --impl=sdpa-flash
if [ "$device" != cpu ]; then
    step sdpa-efficient any 25 --impl=sdpa-efficient
    step sdpa-cudnn any 25 --impl=sdpa-cudnn
fi
step sdpa any 25 --impl=torch.nn.functional.scaled_dot_product_attention
step flex-compiled any 45 --impl=gpu_kernels.flex_compiled --few-shapes --impl-dtypes=float32,bfloat16

# TF32: with it operands have 11 bits. Class A must refuse that and class T take it; without it both hold.
tf32=(--impl=sdpa-math --impl-dtypes=float32 --clauses=SHAPE-1,ACCURACY --without=backward)
if [ "$device" != cpu ]; then
    export TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1
    step tf32-as-class-A 1 12 "${tf32[@]}"
    step tf32-as-class-T 0 12 "${tf32[@]}" --accuracy=T
    unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE
fi
step ieee-as-class-A 0 12 "${tf32[@]}"
step ieee-as-class-T 0 12 "${tf32[@]}" --accuracy=T

# TRITON
if has triton; then
    triton=(--impl-dtypes=float32,bfloat16,float16 --without=backward)  # a forward kernel
    if [ "$device" = cpu ]; then triton=(--impl-dtypes=float32 --without=backward --few-shapes); fi
    step triton-right 0 30 --impl=triton_attention.attend "${triton[@]}"
    for wrong in rescale corner groups strides tail base; do
        step "triton-wrong-$wrong" 1 20 "--impl=triton_attention.$wrong" "${triton[@]}" --dialect causal_alignment=bottom_right --maxfail=1
    done
fi

# JAX
if has jax; then step jax any 35 --impl=jax.nn.dot_product_attention --few-shapes; fi

# WHAT ONLY A DEVICE HAS
streams=(--impl-dtypes=float32 --clauses=MODE-6,MODE-7)
if [ "$device" != cpu ]; then
    step stream-wrong 1 12 --impl=gpu_kernels.on_default_stream "${streams[@]}"
    step graph-wrong 1 12 --impl=gpu_kernels.plan_of_warm_up "${streams[@]}"
    if has triton; then step lost-device 1 20 --impl=gpu_kernels.beyond_its_memory --impl-dtypes=float32 --clauses=SHAPE-1,MASK-1,CAUSAL-2; fi
    overflow=(--impl-dtypes=bfloat16 --clauses=SHAPE-2 --without=backward)
    tier=thorough alone overflow-sdpa-flash any 40 --impl=sdpa-flash "${overflow[@]}"
    if has triton; then tier=thorough alone overflow-triton any 40 --impl=triton_attention.attend "${overflow[@]}"; fi
fi
wait

# THE TABLE
"$python" - "$out" "$((SECONDS - began))" <<'PYTHON'
import json
import sys
from datetime import date
from pathlib import Path

from attnspec.conformance.verdicts.lines import judged
from attnspec.conformance.verdicts.verdict import BROKEN
from attnspec.spec import index

out, seconds = Path(sys.argv[1]), sys.argv[2]
machine = out.joinpath("machine.txt").read_text().splitlines()
lines = [f"# Attention on {machine[0]}", "", f"{date.today()} · {', '.join(machine[1:])} · {seconds} s in all", ""]
lines += ["| step | exit | expected | seconds | judged | broken (*SHOULD*) |", "|---|---|---|---|---|---|"]
wrong = 0
for line in sorted(out.joinpath("steps.tsv").read_text().splitlines()):
    name, expected, code, spent = line.split("\t")
    path = out / f"{name}.jsonl"
    said = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    cells = [x for x in said if x["kind"] == "cell"]
    asked = sum(judged(x["problems"]) for x in cells)
    broken = sorted({x["clause"] for x in cells if x["problems"].keys() & {verdict.value for verdict in BROKEN}})
    broken = [x if index()[x].level == "MUST" else f"*{x}*" for x in broken]
    as_expected = code == expected or (expected == "any" and code in ("0", "1"))
    wrong += not as_expected
    lines.append(f"| {name} | {code if as_expected else f'**{code}**'} | {expected} | {spent} | {asked} | {', '.join(broken)} |")
out.joinpath("README.md").write_text("\n".join(lines) + "\n")
out.joinpath("steps.tsv").unlink()
print("\n".join(lines))
sys.exit(int(wrong > 0))
PYTHON
