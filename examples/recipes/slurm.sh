#!/usr/bin/env bash
# A Ray cluster over SLURM's nodes, and one recipe on it.
#
#   sbatch --nodes=8 examples/recipes/slurm.sh deepscaler_qwen3_14b darling [flags that override]
#   sbatch --nodes=1 examples/recipes/slurm.sh wildchat_llama8b additive
#
# Submit from the repository's root, with the Python environment of the training active: SLURM hands it to the nodes.
# The checkout, the data, the output folder and Hugging Face's cache must lie on a disk that all nodes share.
# DATA, OUT and HEAD_IP override the recipe's data file, its output folder and the address of Ray's head. Options of
# sbatch override those below: --cpus-per-task=96 where nodes have so many. The limit of 72 hours is more than each recipe's
# own (README.md); what ends there all the same goes on by the same command with the same OUT and --ckpt.load_enable.
#SBATCH --job-name=darling
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=72:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "usage: sbatch --nodes=N examples/recipes/slurm.sh RECIPE [VARIANT] [flags that override]" >&2
  exit 2
fi
RECIPE=$1
VARIANT=${2:-darling}
RECIPES=$SLURM_SUBMIT_DIR/examples/recipes
if [[ ! -f $RECIPES/$RECIPE.sh ]]; then
  echo "no recipe $RECIPES/$RECIPE.sh: submit from the repository's root" >&2
  exit 2
fi

case $RECIPE in
  wildchat*) DATA=${DATA:-$SLURM_SUBMIT_DIR/data/wildchat10k.jsonl} ;;
  *) DATA=${DATA:-$SLURM_SUBMIT_DIR/data/deepscaler10k.jsonl} ;;
esac
OUT=${OUT:-$SLURM_SUBMIT_DIR/runs/$RECIPE-$VARIANT-$SLURM_JOB_ID}

PORT=6379
DASHBOARD=8265
GPUS=${SLURM_GPUS_ON_NODE:-8}
CPUS=${SLURM_CPUS_PER_TASK:-$(nproc)}
export SRUN_CPUS_PER_TASK=$CPUS # srun does not take sbatch's number by itself: the task would have one core
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
# Of all its addresses the first IPv4 one that is not the loopback: /etc/hosts names that on many systems.
HEAD_IP=${HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="$HEAD" hostname --all-ip-addresses |
  tr ' ' '\n' | grep -E '^[0-9]+(\.[0-9]+){3}$' | grep -v '^127\.' | head -n 1 || true)}
if [[ -z $HEAD_IP ]]; then
  echo "$HEAD has no IPv4 address but the loopback: set HEAD_IP to one that the nodes reach" >&2
  exit 1
fi

echo "Ray's head on $HEAD ($HEAD_IP), ${#NODES[@]} nodes of $GPUS GPUs and $CPUS cores"
srun --nodes=1 --ntasks=1 --nodelist="$HEAD" --overlap \
  ray start --head --block --node-ip-address="$HEAD_IP" --port="$PORT" --num-gpus="$GPUS" --num-cpus="$CPUS" \
  --dashboard-host=0.0.0.0 --dashboard-port="$DASHBOARD" &
for node in "${NODES[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
    ray start --block --address="$HEAD_IP:$PORT" --num-gpus="$GPUS" --num-cpus="$CPUS" &
done

# On the head's node: from elsewhere a Ray client would be needed. Gives up after ten minutes.
on_head() { srun --nodes=1 --ntasks=1 --nodelist="$HEAD" --overlap "$@"; }
for _ in {1..60}; do
  ready=$(on_head python3 -c "
import ray
ray.init(address='$HEAD_IP:$PORT', logging_level='ERROR')
print(sum(node['Alive'] for node in ray.nodes()))
" 2>/dev/null | tail -n 1 || echo 0)
  [[ $ready == "${#NODES[@]}" ]] && break
  sleep 10
done
if [[ $ready != "${#NODES[@]}" ]]; then
  echo "$ready of ${#NODES[@]} nodes joined the Ray cluster within ten minutes" >&2
  exit 1
fi

# The working directory is the shared checkout itself, not an upload: what the recipe writes stays where OUT says.
RUNTIME_ENV=$(python3 -c "
import json, sys
print(json.dumps({'env_vars': dict(zip(('DATA', 'OUT'), sys.argv[1:]))}))
" "$DATA" "$OUT")
JOB=darling-$SLURM_JOB_ID
JOBS=http://$HEAD_IP:$DASHBOARD
on_head ray job submit --address="$JOBS" --submission-id="$JOB" --no-wait --runtime-env-json="$RUNTIME_ENV" \
  -- bash "$RECIPES/$RECIPE.sh" "$VARIANT" "${@:3}"

# The log's end is not the job's: a connection that breaks must not end the allocation of a run that goes on.
silent=0
while ((silent < 30)); do
  on_head ray job logs --address="$JOBS" --follow "$JOB" || true
  state=$(on_head python3 -c "
from ray.job_submission import JobSubmissionClient
print(JobSubmissionClient('$JOBS').get_job_status('$JOB').value)
" 2>/dev/null | tail -n 1 || true)
  case $state in
    SUCCEEDED) exit 0 ;;
    FAILED | STOPPED)
      echo "the job $JOB ended: $state" >&2
      exit 1
      ;;
    "") silent=$((silent + 1)) ;;
    *) silent=0 ;;
  esac
  sleep 10
done
echo "Ray's head has not said for five minutes how the job $JOB is" >&2
exit 1
