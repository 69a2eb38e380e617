#!/usr/bin/env bash
# An environment that holds another reader of our format, outside of this tree: lerobot 0.4.4 for v3.0, 0.3.3 for v2.1.
#
#   scripts/judge_environment.sh 0.4.4      prints the path of its python
#
# Built once, below ~/.cache/deftly (DEFTLY_JUDGES names another folder), pinned by lerobot-VERSION.lock: 2 GB with the CPU build of torch, 8 GB
# where only PyPI's own build can be reached. Its torchcodec decodes with the system's ffmpeg (apt-get install -y ffmpeg).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${1:?usage: judge_environment.sh 0.4.4|0.3.3}
[ -f "$here/lerobot-$version.lock" ] || { echo "there is no lerobot-$version.lock beside this script" >&2; exit 2; }
home=${DEFTLY_JUDGES:-$HOME/.cache/deftly}/lerobot-$version
if [ ! -e "$home/complete" ]; then
    echo "building the environment of lerobot $version in $home (once; gigabytes)" >&2
    rm -rf "$home"
    python3 -m venv "$home"
    # The CPU index is asked beside PyPI: its build of the same version wins where it is there, and brings no CUDA.
    PIP_DISABLE_PIP_VERSION_CHECK=1 nice -n 19 "$home/bin/python" -m pip install --quiet --no-cache-dir --retries 2 -c "$here/lerobot-$version.lock" \
        --extra-index-url https://download.pytorch.org/whl/cpu "lerobot==$version" torch torchvision >&2
    touch "$home/complete"
fi
echo "$home/bin/python"
