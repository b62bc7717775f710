#!/usr/bin/env bash
# SmolLM2-135M-Instruct learns to name many right answers: DARLING on two CPU cores, no GPU.
# What differs from a quality-only run are the darling_args alone.
set -euo pipefail

MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
OUT=${OUT:-runs/demo}
STEPS=${STEPS:-8}
EXAMPLES=$(cd "$(dirname "$0")" && pwd)

model_args=(
  --actor.model_name_or_path "$MODEL"
  --actor.num_gpus_per_node 1
  --vllm.num_engines 1
  --ds.zero_stage 2
)

data_args=(
  --data.prompt_dataset "$EXAMPLES/data/many_answers.jsonl"
  --data.input_key input
  --data.label_key answers
  --data.apply_chat_template
  --data.max_len 128
  --data.max_samples $((STEPS * 8))
  --reward.remote_url "$EXAMPLES/reward_named_answer.py"
)

rollout_args=(
  --rollout.batch_size 8
  --rollout.n_samples_per_prompt 8
  --rollout.micro_batch_size 16
  --rollout.max_new_tokens 12
  --rollout.temperature 1.0
)

train_args=(
  --train.batch_size 64
  --train.micro_batch_size 16
  --algo.advantage.estimator dr_grpo
  --algo.kl.init_coef 0
  --actor.adam.lr 4e-5
  --actor.lr_scheduler constant
)

darling_args=(
  --darling.enable
  --darling.log_dir "$OUT"
)
# DARLING=0 trains on quality alone, for comparison.
if [[ ${DARLING:-1} == 0 ]]; then darling_args=(); fi

log_args=(
  --logger.tensorboard_dir "$OUT/tensorboard"
  --ckpt.output_dir "$OUT/model"
  --ckpt.path "$OUT/checkpoints"
)

"${PYTHON:-python3}" -m darling_plugin --darling.cpu \
  "${model_args[@]}" "${data_args[@]}" "${rollout_args[@]}" "${train_args[@]}" "${darling_args[@]}" "${log_args[@]}" "$@"
