#!/usr/bin/env bash
# The independent judge: lerobot 0.4.4, in an environment of its own outside of this tree, opens our datasets and reads the same values.
#
#   scripts/judge_lerobot.sh [DATASET ...]
#
# The other way round, what lerobot records is read by us. Without a dataset it generates a small one, and imports the real ones where DEFTLY_REAL_DATA names a folder that holds them.
# The environment is built once, below ~/.cache/deftly (DEFTLY_JUDGE names another folder), pinned by judge_lerobot.lock: 2 GB with
# the CPU build of torch, 8 GB where only PyPI's own build can be reached. Exit code 1: a difference, which is printed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ours=${DEFTLY_PYTHON:-$here/../.venv/bin/python}
judge=${DEFTLY_JUDGE:-$HOME/.cache/deftly/lerobot-0.4.4}
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
if [ ! -e "$judge/complete" ]; then
    echo "building the judge's environment in $judge (once; gigabytes)" >&2
    rm -rf "$judge"
    python3 -m venv "$judge"
    # The CPU index is asked beside PyPI: its build of the same version wins where it is there, and brings no CUDA.
    nice -n 19 "$judge/bin/python" -m pip install --quiet --no-cache-dir --retries 2 -c "$here/judge_lerobot.lock" \
        --extra-index-url https://download.pytorch.org/whl/cpu "lerobot==0.4.4" torch torchvision
    touch "$judge/complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing is asked of the hub, and no cache outlives the judgement.
export PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$work/hub" HF_DATASETS_CACHE="$work/cache" HF_LEROBOT_HOME="$work/lerobot"
datasets=("$@")
if [ ${#datasets[@]} -eq 0 ]; then
    "$ours" -m deftly.cli.main data generate --episodes 24 --workers 1 --out "$work/generated"
    datasets=("$work/generated")
    if [ -d "${DEFTLY_REAL_DATA:-}" ]; then
        "$ours" -m deftly.cli.main data import rlds "$DEFTLY_REAL_DATA/bridge_sample" "$work/bridge"
        "$ours" -m deftly.cli.main data import lerobot-v2.1 "$DEFTLY_REAL_DATA/g1_sample" "$work/g1"
        datasets+=("$work/bridge" "$work/g1")
    fi
fi
for dataset in "${datasets[@]}"; do
    "$ours" "$here/judge_lerobot.py" export "$dataset" "$work/expected"
    nice -n 5 "$judge/bin/python" "$here/judge_lerobot.py" compare "$dataset" "$work/expected"
done
"$judge/bin/python" "$here/judge_lerobot.py" record "$work/recorded" "$work/expected" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
"$ours" "$here/judge_lerobot.py" reread "$work/recorded" "$work/expected"
