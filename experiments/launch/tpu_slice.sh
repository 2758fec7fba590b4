#!/usr/bin/env bash
# ResNet-50 on a Cloud TPU slice, from any machine with gcloud:
#     NAME=resnet ZONE=us-west4-a TYPE=v5litepod-32 BUCKET=my-bucket experiments/launch/tpu_slice.sh
# One command on every host of the slice; run it again to resume.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${BUCKET:?}" "${TYPE:=v5litepod-32}"
VERSION=v2-alpha-tpuv5-lite # of the virtual machines; it depends on the kind of chip

gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" >/dev/null 2>&1 ||
	gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" --accelerator-type "$TYPE" --version "$VERSION"

on_every_host() {
	gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

gcloud compute tpus tpu-vm scp --recurse --worker=all --zone "$ZONE" . "$NAME:resnet_jax"
on_every_host "cd resnet_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements-tpu.txt"
on_every_host "mkdir -p ~/bucket && { mountpoint -q ~/bucket || gcsfuse $BUCKET ~/bucket; }"
on_every_host "cd resnet_jax && .venv/bin/resnet-jax train experiments/imagenet/goyal2017.py \
	--data.name array_record:\$HOME/bucket/imagenet --out ~/bucket/runs/goyal"
