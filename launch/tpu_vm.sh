#!/usr/bin/env bash
# Trains on a slice of TPU VMs: the same command on every worker. Run on your machine.
#
#   TPU=my-slice ZONE=us-west4-a launch/tpu_vm.sh --config configs/segnet_camvid.py \
#     --workdir /mnt/shared/segnet
#
# The repository is at ~/jaxseg of each worker; see docs/pods.md.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?its zone}"
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd jaxseg && exec .venv/bin/python train.py$arguments"
