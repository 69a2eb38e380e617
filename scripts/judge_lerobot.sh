#!/usr/bin/env bash
# The independent judge: lerobot 0.4.4, in an environment of its own outside of this tree, opens our datasets and reads the same values.
#
#   scripts/judge_lerobot.sh [DATASET ...]
#
# The other way round, what lerobot records is read by us. Without a dataset it generates a small one, and imports the real ones where
# DEFTLY_REAL_DATA names a folder that holds them. The environment is built by judge_environment.sh.
# Exit code 1: a difference, which is printed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ours=${DEFTLY_PYTHON:-$here/../.venv/bin/python}
judge=$("$here/judge_environment.sh" 0.4.4)
export OMP_NUM_THREADS=1
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
    nice -n 5 "$judge" "$here/judge_lerobot.py" compare "$dataset" "$work/expected"
done
"$judge" "$here/judge_lerobot.py" record "$work/recorded" "$work/expected" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
"$ours" "$here/judge_lerobot.py" reread "$work/recorded" "$work/expected"
