#!/usr/bin/env bash
# WildChat with Llama-3.1-8B-Instruct: open-ended prompts, quality from Athene-RM-8B, classes from the classifier that
# was released with DARLING (arXiv 2509.02534, tables 6-8). One node of 8 GPUs with 80 GB; OpenRLHF's models, vLLM and the
# partition actors share all eight. Data: examples/prepare_wildchat.py.
#
#   bash examples/recipes/wildchat_llama8b.sh [darling|quality|with_std|additive|ngram] [flags that override]
#
#   ray job submit --address http://127.0.0.1:8265 \
#     --runtime-env-json '{"working_dir": ".", "env_vars": {"DATA": "/shared/wildchat10k.jsonl", "OUT": "/shared/run"}}' \
#     -- bash examples/recipes/wildchat_llama8b.sh darling
#
# What differs from the paper:
# - The sigmoid of Athene's score is the quality. The scores are raw and mostly negative (median -2.2 in the deciles of
#   the official evaluation code), and a negative quality times diversity would punish diversity, as it does in the
#   official training code. The sigmoid makes them positive and keeps their order. It is part of every variant;
#   `quality` can also do without: append --darling.quality_transform raw.
# - The loss is OpenRLHF's mean over all tokens of an optimizer step, not over those of each group.
# - Adam's betas and weight decay are OpenRLHF's; the learning rate is constant, as in the official code.
# - Diversity below 0.1 counts as 0.1, as in the official code; --darling.diversity_floor 0 is the paper's equation.
set -euo pipefail

VARIANT=${1:-darling}
DATA=${DATA:-data/wildchat10k.jsonl}
OUT=${OUT:-runs/wildchat_llama8b-$VARIANT}
EXAMPLES=$(cd "$(dirname "$0")/.." && pwd)

partition_args=(--darling.partition_model darling-modernbert)
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
  --actor.model_name_or_path meta-llama/Llama-3.1-8B-Instruct
  --actor.gradient_checkpointing_enable
  # Not --reward.model_name_or_path: OpenRLHF reads a reward model at the response's last token, Athene-RM is read at a
  # CLS token after it. Each rollout actor holds a copy, 16 GB of its GPU.
  --reward.remote_url "$EXAMPLES/reward_athene.py"
)

placement_args=(
  --train.colocate_all
  --actor.num_nodes 1
  --actor.num_gpus_per_node 8
  --ref.num_nodes 1
  --ref.num_gpus_per_node 8
  --vllm.num_engines 8
  --vllm.tensor_parallel_size 1
  --vllm.gpu_memory_utilization 0.5
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
  # The label is the prompt as the user wrote it, which Athene-RM sees in its own chat template.
  --data.label_key input
  --data.apply_chat_template
  --data.max_len 1536
  # Of the 10,000 as many as fill the batches: of a smaller last one, dynamic batches train nothing.
  --data.max_samples 9984
)

rollout_args=(
  --rollout.batch_size 32
  --rollout.n_samples_per_prompt 8
  --rollout.max_new_tokens 1024
  --rollout.temperature 1.0
  --rollout.micro_batch_size 8
)

train_args=(
  # 32 prompts x 8 responses: one optimizer step a rollout, on-policy.
  --train.batch_size 256
  --train.micro_batch_size 4
  --train.dynamic_batch_enable
  --train.max_tokens_per_gpu 16384
  --train.num_episodes 10
  --algo.advantage.estimator dr_grpo
  --algo.kl.init_coef 0.001
  --algo.kl.use_loss
  --algo.kl.estimator k3
  --actor.adam.lr 1e-6
  --actor.lr_scheduler constant
)

darling_args=(
  --darling.enable
  "${partition_args[@]}"
  --darling.quality_transform sigmoid
  # Policy, reference and vLLM take 0.2 of each GPU; one partition actor beside them makes 0.8.
  --darling.num_partition_actors 8
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
  --ckpt.save_steps 200
  --ckpt.save_hf
)

python3 -m darling_plugin \
  "${model_args[@]}" "${placement_args[@]}" "${data_args[@]}" "${rollout_args[@]}" "${train_args[@]}" \
  "${darling_args[@]}" "${log_args[@]}" "${@:2}"
