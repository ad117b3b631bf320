#!/bin/sh
# Serves BASE (default: serving/nvae) with the official image: gRPC on 8500, REST on 8501.
set -eu
base=$(realpath "${1:-serving/nvae}")
files=$(dirname "$(realpath "$0")")
exec docker run --rm -p 8500:8500 -p 8501:8501 \
  --mount "type=bind,source=$base,target=/models/nvae,readonly" \
  --mount "type=bind,source=$files,target=/serving,readonly" \
  tensorflow/serving:2.19.0 \
  --model_config_file=/serving/models.config \
  --model_config_file_poll_wait_seconds=30 \
  --allow_version_labels_for_unavailable_models \
  --enable_batching --batching_parameters_file=/serving/batching_parameters.txt \
  --monitoring_config_file=/serving/monitoring.config
