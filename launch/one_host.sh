#!/usr/bin/env bash
# Trains in one process for each GPU of this host.
#
#   launch/one_host.sh --config configs/segnet_camvid.py --workdir runs/segnet
#
# CUDA_VISIBLE_DEVICES says which (all), or GPUS how many; PORT is a free one, PYTHON the
# interpreter. SIGTERM and Ctrl-C stop all processes in good order.
set -euo pipefail
cd "$(dirname "$0")/.."

all=${CUDA_VISIBLE_DEVICES:-$(seq --separator=, 0 $((${GPUS:-$(nvidia-smi --list-gpus | wc -l)} - 1)))}
IFS=, read -ra visible <<<"$all"
gpus=${GPUS:-${#visible[@]}}
if ((gpus > ${#visible[@]})); then
  echo "GPUS=$gpus, but CUDA_VISIBLE_DEVICES=$all has ${#visible[@]}" >&2
  exit 2
fi
coordinator=127.0.0.1:${PORT:-8476}

pids=()
for ((i = 0; i < gpus; i++)); do
  CUDA_VISIBLE_DEVICES=${visible[i]} "${PYTHON:-.venv/bin/python}" train.py "$@" \
    --coordinator="$coordinator" --num_processes="$gpus" --process_id="$i" &
  pids+=("$!")
done
trap 'kill -TERM "${pids[@]}"' TERM
trap : INT # which the terminal sends to all of them

status=0
for pid in "${pids[@]}"; do
  # A signal ends the first wait, but not the process.
  wait "$pid" || wait "$pid" || status=$?
done
exit "$status"
