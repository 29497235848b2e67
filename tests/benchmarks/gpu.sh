#!/usr/bin/env bash
# Everything to be known about minimask on a GPU, in one go, from a checkout: nothing is installed or fetched.
#
#   tests/benchmarks/gpu.sh OUT [DATA]
#
# OUT gets a log of each part, figures as JSON and Markdown, and weights. DATA is a folder with the nuclei,
# train.json and images/ (the packaged ones otherwise). Needs what minimask needs, but for pycocotools, and CuPy;
# pytest for the tests, torch and torchvision to compare with. It ends within MINUTES (9.5), whatever happens:
# each part has its own limit, what a part has found by then is kept, and the next begins.
set -uo pipefail
out=$(mkdir -p "${1:?usage: gpu.sh OUT [DATA]}" && cd "$1" && pwd) || exit 1
data=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
end=$(($(date +%s) + $(awk "BEGIN {print int(${MINUTES:-9.5} * 60)}")))
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$(mktemp -d)}
failed=0

part() { # NAME SECONDS COMMAND...: at most so long, the log's end shown
    local name=$1 limit=$2 begin now left status
    shift 2
    begin=$(date +%s)
    left=$((end - begin - 10))
    limit=$((limit < left ? limit : left))
    if [ "$limit" -lt 5 ]; then
        echo "$name: no time left" | tee -a "$out/summary.txt"
        failed=1
        return
    fi
    echo "== $name"
    # INT first: training saves then, and pytest tells what it has.
    timeout --signal=INT --kill-after=8 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    now=$(date +%s)
    tail -n "${SHOWN:-15}" "$out/$name.log"
    [ "$status" -eq 0 ] || failed=1
    echo "$name: exit status $status after $((now - begin)) s of at most $limit" | tee -a "$out/summary.txt"
}

: >"$out/summary.txt"
part machine 30 bash -c "nvidia-smi; $python -m minimask info"

# Kernels compile once, for whatever comes then; and a wrong one is known before time is spent on measuring.
# Only files that have such tests: others may import what is missing here.
mapfile -t files < <(grep -l "mark\.gpu" tests/test_*.py)
part tests 170 "$python" -m pytest -m gpu -W default -p no:cacheprovider --maxfail=40 --tb=short --durations=10 \
    -rs "${files[@]}"

SHOWN=60 part benchmarks-whole 110 "$python" -m tests.benchmarks.gpu whole roi nms memory profile \
    --json "$out/whole.json" --markdown "$out/whole.md"
if [ -n "$data" ]; then
    given=(--config nuclei --set model.name=maskrcnn_small --set train.steps=1500 --data "$data/train.json" --images "$data/images")
else
    given=(--config nuclei --set model.name=maskrcnn_small --set train.steps=1500 --data nuclei)
fi
part training 170 "$python" -m minimask train --device cuda "${given[@]}" --output "$out/train"
# The weights alone: half of the checkpoint, to be evaluated elsewhere.
[ -f "$out/train/checkpoint.npz" ] && part weights 20 "$python" - "$out/train/checkpoint.npz" "$out/weights.npz" <<'END'
import sys
from dataclasses import replace
from minimask.weights.checkpoint import load_checkpoint, save_checkpoint

checkpoint = load_checkpoint(sys.argv[1])
save_checkpoint(sys.argv[2], replace(checkpoint, momentum={}))
print(f"step {checkpoint.step}")
END
SHOWN=60 part benchmarks-conv 90 "$python" -m tests.benchmarks.gpu conv --seconds 0.05 \
    --json "$out/conv.json" --markdown "$out/conv.md"
SHOWN=40 part benchmarks-tf32 60 "$python" -m tests.benchmarks.gpu whole --tf32 --seconds 0.1 \
    --json "$out/tf32.json" --markdown "$out/tf32.md"
cat "$out/summary.txt"
exit "$failed"
