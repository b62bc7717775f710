#!/usr/bin/env bash
# DeepScaleR with Qwen3-4B-Base: competition maths, quality 0 or 1 from Math-Verify, classes ("the same approach?") from
# the maths classifier that was released with DARLING (arXiv 2509.02534, tables 6-8). One node of 8 GPUs with 80 GB;
# OpenRLHF's models, vLLM and the partition actors share all eight. Data: examples/prepare_deepscaler.py.
#
#   bash examples/recipes/deepscaler_qwen3_4b.sh [darling|quality|with_std|additive|ngram] [flags that override]
#
#   ray job submit --address http://127.0.0.1:8265 \
#     --runtime-env-json '{"working_dir": ".", "env_vars": {"DATA": "/shared/deepscaler10k.jsonl", "OUT": "/shared/run"}}' \
#     -- bash examples/recipes/deepscaler_qwen3_4b.sh darling
#
# What differs from the paper:
# - How it chose its 10k problems is not published; ours are a random sample of those whose answer
#   Math-Verify can read.
# - A mini-batch is 512 responses that OpenRLHF mixes by length, not 64 whole groups; advantages are still the group's.
# - The loss is OpenRLHF's mean over all tokens of an optimizer step, not over those of each group.
# - Adam's betas and weight decay are OpenRLHF's; the learning rate is constant, as in the official code.
# - Diversity below 0.1 counts as 0.1, as in the official code; --darling.diversity_floor 0 is the paper's equation.
set -euo pipefail

VARIANT=${1:-darling}
DATA=${DATA:-data/deepscaler10k.jsonl}
OUT=${OUT:-runs/deepscaler_qwen3_4b-$VARIANT}
# What deepscaler_qwen3_14b.sh sets otherwise.
MODEL=${DEEPSCALER_MODEL:-Qwen/Qwen3-4B-Base}
NODES=${DEEPSCALER_NODES:-1}
MICRO_BATCH=${DEEPSCALER_MICRO_BATCH:-4}
GPUS=$((NODES * 8))
EXAMPLES=$(cd "$(dirname "$0")/.." && pwd)

partition_args=(--darling.partition_model darling-qwen3-math)
variant_args=()
case $VARIANT in
  darling) ;;
  quality) variant_args=(--darling.reward quality) ;;
  with_std) variant_args=(--darling.advantage centered_std) ;;
  additive) variant_args=(--darling.reward additive) ;;
  ngram) partition_args=(--darling.partition_model lexical:4 --darling.diversity expected) ;;
  *)
    echo "unknown variant '$VARIANT': the first argument is one of darling, quality, with_std, additive, ngram" >&2
    exit 2
    ;;
esac

model_args=(
  --actor.model_name_or_path "$MODEL"
  --actor.gradient_checkpointing_enable
  --reward.remote_url "$EXAMPLES/reward_math.py"
)

placement_args=(
  --train.colocate_all
  --actor.num_nodes "$NODES"
  --actor.num_gpus_per_node 8
  --vllm.num_engines "$GPUS"
  --vllm.tensor_parallel_size 1
  --vllm.gpu_memory_utilization 0.6
  --vllm.enforce_eager
  --vllm.enable_sleep
  --vllm.sync_backend nccl
  --ds.enable_sleep
  --ds.zero_stage 3
  --ds.packing_samples
)

data_args=(
  --data.prompt_dataset "$DATA"
  --data.input_key input
  --data.label_key answer
  --data.apply_chat_template
  --data.max_len 9216
  # Of the 10,000 as many as fill the batches: of a smaller last one, dynamic batches train nothing.
  --data.max_samples 9984
)

rollout_args=(
  --rollout.batch_size 256
  --rollout.n_samples_per_prompt 8
  --rollout.max_new_tokens 8192
  --rollout.temperature 1.0
  --rollout.micro_batch_size 8
)

train_args=(
  # 64 prompts x 8 responses: four optimizer steps a rollout.
  --train.batch_size 512
  --train.micro_batch_size "$MICRO_BATCH"
  --train.dynamic_batch_enable
  --train.max_tokens_per_gpu 16384
  --train.num_episodes 10
  --algo.advantage.estimator dr_grpo
  --algo.kl.init_coef 0
  --actor.eps_clip 0.2
  --actor.adam.lr 1e-6
  --actor.lr_scheduler constant
)

darling_args=(
  --darling.enable
  "${partition_args[@]}"
  # Policy and vLLM take 0.2 of each GPU; one partition actor beside them makes 0.6.
  --darling.num_partition_actors "$GPUS"
  --darling.gpus_per_partition_actor 0.2
  --darling.log_dir "$OUT"
  ${variant_args[@]+"${variant_args[@]}"} # an empty array is unbound to bash before 4.4
)

log_args=(
  --logger.tensorboard_dir "$OUT/tensorboard"
  # A run that resumes goes on in the same folder; otherwise OpenRLHF names it by the minute.
  --logger.wandb.run_name "$(basename "$OUT")"
  --ckpt.output_dir "$OUT/model"
  --ckpt.path "$OUT/checkpoints"
  --ckpt.save_steps 25
  --ckpt.save_hf
)

python3 -m darling_plugin \
  "${model_args[@]}" "${placement_args[@]}" "${data_args[@]}" "${rollout_args[@]}" "${train_args[@]}" \
  "${darling_args[@]}" "${log_args[@]}" "${@:2}"
