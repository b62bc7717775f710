#!/usr/bin/env bash
# DeepScaleR with Qwen3-14B-Base: competition maths, quality 0 or 1 from Math-Verify, classes ("the same approach?") from
# the maths classifier that was released with DARLING (arXiv 2509.02534, tables 6-8). 8 nodes of 8 GPUs with 80 GB;
# OpenRLHF's models, vLLM and the partition actors share all 64. Data: examples/prepare_deepscaler.py. All but what is set
# here is deepscaler_qwen3_4b.sh, which also says what differs from the paper.
#
#   ray job submit --address http://127.0.0.1:8265 \
#     --runtime-env-json '{"working_dir": ".", "env_vars": {"DATA": "/shared/deepscaler10k.jsonl", "OUT": "/shared/run"}}' \
#     -- bash examples/recipes/deepscaler_qwen3_14b.sh darling
set -euo pipefail

export DEEPSCALER_MODEL=Qwen/Qwen3-14B-Base
export DEEPSCALER_NODES=8
export DEEPSCALER_MICRO_BATCH=1
export OUT=${OUT:-runs/deepscaler_qwen3_14b-${1:-darling}}

exec bash "$(dirname "$0")/deepscaler_qwen3_4b.sh" "$@"
