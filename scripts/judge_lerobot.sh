#!/usr/bin/env bash
# The independent judge: lerobot, in environments of its own outside of this tree, opens our datasets and reads the same values; and what it
# records is read by us. lerobot 0.4.4 judges v3.0, 0.3.3 judges v2.1 (what we export, and what we read of other people's).
#
#   scripts/judge_lerobot.sh [DATASET ...]       v3.0 datasets of your own
#
# Without a dataset it generates a small one, and takes the real ones where DEFTLY_REAL_DATA names a folder that holds them. The environments
# are built by judge_environment.sh. Exit code 1: a difference, which is printed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ours=${DEFTLY_PYTHON:-$here/../.venv/bin/python}
v30=$("$here/judge_environment.sh" 0.4.4)
v21=$("$here/judge_environment.sh" 0.3.3)
export OMP_NUM_THREADS=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Nothing is asked of the hub, and no cache outlives the judgement.
export PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
export HF_HOME="$work/hub" HF_DATASETS_CACHE="$work/cache" HF_LEROBOT_HOME="$work/lerobot"

judge() { # judge PYTHON DATASET
    "$ours" "$here/judge_lerobot.py" export "$2" "$work/expected"
    nice -n 5 "$1" "$here/judge_lerobot.py" compare "$2" "$work/expected"
}

reread() { # reread PYTHON FOLDER
    "$1" "$here/judge_lerobot.py" record "$2" "$work/expected" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    "$ours" "$here/judge_lerobot.py" reread "$2" "$work/expected"
}

datasets=("$@")
if [ ${#datasets[@]} -eq 0 ]; then
    "$ours" -m deftly.cli.main data generate --episodes 24 --workers 1 --out "$work/generated"
    datasets=("$work/generated")
    if [ -d "${DEFTLY_REAL_DATA:-}" ]; then
        "$ours" -m deftly.cli.main data import rlds "$DEFTLY_REAL_DATA/bridge_sample" "$work/bridge"
        "$ours" -m deftly.cli.main data import lerobot-v2.1 "$DEFTLY_REAL_DATA/g1_sample" "$work/g1"
        datasets+=("$work/bridge" "$work/g1")
        judge "$v21" "$DEFTLY_REAL_DATA/g1_sample"
    fi
fi
for dataset in "${datasets[@]}"; do
    judge "$v30" "$dataset"
    "$ours" -m deftly.cli.main data export "$dataset" "$work/v2.1"
    judge "$v21" "$work/v2.1"
    rm -rf "$work/v2.1"
done
reread "$v30" "$work/recorded"
reread "$v21" "$work/recorded-v2.1"
