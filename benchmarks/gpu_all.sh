#!/bin/sh
# Everything that waits for a GPU: similarity kernel and tests first, then training, most of
# whose time is compiling. In the project's folder: sh benchmarks/gpu_all.sh [FOLDER]
# Results also go to FOLDER. Needs torch with Triton; train_step.py and the tests name what else they need when it is
# missing, and the rest goes on. Each part has a limit of its own; together they take less than ten minutes.
python=${PYTHON:-python3}
out=${1:-}
failed=0

part() {
    seconds=$1
    shift
    echo "== $*"
    timeout "$seconds" "$@" || { echo "== failed: $*"; failed=1; }
}

part 60 "$python" benchmarks/kernel.py
part 90 "$python" -m pytest -q -p no:cacheprovider -x tests/model/test_fused.py
part 120 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py
part 320 "$python" benchmarks/train_step.py --device cuda
if [ -n "$out" ]; then cp benchmarks/results/train_step_cuda*.json "$out"; fi
exit $failed
