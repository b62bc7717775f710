"""All that knows OpenRLHF and Ray: it carries the method into OpenRLHF's training loop.

launch.py, native.py    the two ways in: the launcher, and `--plugin darling_plugin` of an OpenRLHF with patches/
worker.py               what Ray runs first in every worker, and the guard that notices when it did not
seams.py                the functions of OpenRLHF that are wrapped, as each release has them
contract.py             every name of OpenRLHF's objects that is read, written or called
hooks.py                what stands around the seams
partition_actor.py      the Ray actors that hold the partition model
  batching.py           which groups they measure together
  watchdog.py           what happens when the model hangs
  gpu_memory.py         what the model holds of a GPU, and gives back
  scoring_time.py       how long scoring will take, and how many actors hide it
placement.py            where they run
responses.py            OpenRLHF's response dicts: read, and what is added to them
experiences.py          OpenRLHF's experiences as (P, n) tensors, and back
group_tables.py         a few groups as tables, in W&B and TensorBoard
actor_trial.py          a partition model loaded where the actors will run, for `python3 -m darling_plugin.check`
cpu.py                  --darling.cpu
  weight_sync.py        the proof that vLLM computes with the trainer's weights
"""
