"""All that knows OpenRLHF and Ray: it carries the method into OpenRLHF's training loop.

launch.py, native.py    the two ways in: the launcher, and `--plugin darling_plugin` of an OpenRLHF with patches/
worker.py               what Ray runs first in every worker, and the guard that notices when it did not
seams.py                the functions of OpenRLHF that are wrapped, as each release has them
contract.py             every name of OpenRLHF's objects that is read, written or called
hooks.py                what stands around the seams
partition_actor.py      the Ray actors that hold the partition model
  batching.py           which groups they measure together
  watchdog.py           what happens when the model hangs
placement.py            where they run
responses.py            OpenRLHF's response dicts: read, and what is added to them
experiences.py          OpenRLHF's experiences as (P, n) tensors, and back
cpu.py                  --darling.cpu
"""
