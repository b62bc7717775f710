"""`--darling.cpu`: OpenRLHF's whole loop (Ray, vLLM, DeepSpeed) on a machine without a GPU.

Each shim says what stood in the way and when it can go. Nothing here is imported or active without the flag, but for
the stand-in of flash-attn that `--help` needs.

Every run starts by proving its weight sync: vLLM starts with random weights, the trainer's are sent, and
weight_sync.py compares the two; again after every later sync.
"""

import functools
import gc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf.seams import installed_seam, wrap

# Flags a CPU cannot honour: they place work on GPUs, split a model over them, or speed it up there.
SET_FLAGS = {
    "--ds.attn_implementation": "sdpa",
    "--vllm.sync_backend": "gloo",
    "--vllm.tensor_parallel_size": "1",
    "--ds.tensor_parallel_size": "1",
    "--ds.ring_attn_size": "1",
}
ADD_FLAGS = ("--vllm.enforce_eager", "--ds.adam_offload")
DROP_FLAGS = (
    "--ds.packing_samples",
    "--train.dynamic_batch_enable",
    "--train.colocate_all",
    "--train.colocate_actor_ref",
    "--train.colocate_critic_reward",
    "--vllm.enable_sleep",
    "--ds.enable_sleep",
    "--vllm.sync_with_ray",
    "--ds.use_liger_kernel",
    "--ds.load_in_4bit",
)

# OpenRLHF reserves a GPU and a CPU for every model and engine. On a CPU both are only names, and these are enough for
# the recipes at hand. Can go when OpenRLHF's resources can be set. The dashboard is ten processes more to start.
LOGICAL_RESOURCES = {"num_gpus": 64, "num_cpus": 64, "include_dashboard": False}

LONGEST_COMPILATION = 20 * 60  # seconds; DeepSpeed's Adam takes two minutes of two cores

_installed = False


def adapt_flags(argv: list[str]) -> list[str]:
    """OpenRLHF's arguments with those replaced or dropped that need a GPU; says which on stderr.

    Flags must be spelled out: an abbreviated one passes through. Can go when OpenRLHF chooses such defaults itself.
    """
    kept, changed, skip_value = [], [], False
    for word in argv:
        name = word.split("=", 1)[0]
        if skip_value:
            skip_value = False
        elif name in DROP_FLAGS:
            changed.append(f"without {name}")
        elif name in SET_FLAGS:
            skip_value = "=" not in word
        elif name not in ADD_FLAGS:
            kept.append(word)
    for name, value in SET_FLAGS.items():
        kept += [name, value]
        changed.append(f"{name} {value}")
    changed += ADD_FLAGS
    print(f"[darling] CPU mode runs OpenRLHF with {', '.join(changed)}", file=sys.stderr)
    return [*kept, *ADD_FLAGS]


def worker_environment() -> dict[str, str]:
    """Environment of the job's workers; what the user has set already wins.

    DeepSpeed and vLLM choose their CPU back ends by it. Can go when they and Ray need no telling.
    """
    environment = {
        "DS_ACCELERATOR": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Ray gives an actor as many threads as CPUs it reserved, here one; generation and training take turns. A job
        # may be bound to fewer cores than the machine has.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # glibc gives a large tensor's memory back as it is freed, and the kernel zeroes it again for the next one:
        # an eighth of a training step's time. With these it is kept.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    }
    return {name: os.environ.get(name, value) for name, value in environment.items()}


def logical_resources() -> dict[str, int | bool]:
    """Arguments of ray.init. A cluster that is joined through RAY_ADDRESS must have been started with GPUs in name."""
    return {} if os.environ.get("RAY_ADDRESS") else LOGICAL_RESOURCES


def prepare_driver() -> None:
    """What the driver needs to import OpenRLHF. No more: a class it has patched would reach the workers unpatched.

    (Ray sends OpenRLHF's actor classes by value, with the functions of their bases that are no longer importable.)
    """
    os.environ.update(worker_environment())
    # Six thousand modules are imported, by each process of a run. Python's collector looks through them after every
    # 700 new objects, for a fifth of the time that it takes, and finds nothing to free.
    gc.set_threshold(100_000)
    stand_in_for_flash_attn()


def install() -> None:
    """Arms every shim in this process, a Ray worker or vLLM's engine. Safe to call again."""
    global _installed
    if _installed:
        return
    _installed = True
    prepare_driver()
    for module, shim in SHIMS.items():
        wrapt.register_post_import_hook(shim, module)


def install_in_vllm() -> None:
    """vLLM's general plugin: its engine is a process of vLLM's own, which Ray's setup hook does not reach.

    Can go with the shims for vLLM's worker.
    """
    from darling_plugin.config import DarlingConfig

    if DarlingConfig.from_environment().cpu:
        install()


def stand_in_for_flash_attn() -> None:
    """OpenRLHF imports flash_attn at module level, for packing and ring attention; it has no CPU build.

    The names exist and say so when called (CPU mode drops the flags that call them). Can go when
    openrlhf.models.ring_attn_utils imports it on use.
    """
    if "flash_attn" in sys.modules or importlib.util.find_spec("flash_attn") is not None:
        return

    def unavailable(*args: Any, **kwargs: Any) -> None:
        raise DarlingError("flash-attn, for packing or ring attention", "a CPU", "drop the flag that asks for it")

    contents = {
        "flash_attn": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils": (),
        "flash_attn.utils.distributed": ("all_gather",),
    }
    for name, functions in contents.items():
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        for function in functions:
            setattr(module, function, unavailable)


class _CPUDevice(str):
    """What `torch.cuda.current_device()` returns: the CPU to `tensor.to()`, 0 in the string f"cuda:{…}".

    That string only names the replay buffer's unused target device. Can go when it asks for a device, not a number.
    """

    def __format__(self, spec: str) -> str:
        return "0"


def _torch(torch: ModuleType) -> None:
    """OpenRLHF calls these without asking whether CUDA is there. Can go when it uses torch.accelerator."""
    torch.cuda.current_device = lambda: _CPUDevice("cpu")
    torch.cuda.current_stream = lambda *args: None
    for name in ("set_device", "empty_cache", "synchronize"):
        setattr(torch.cuda, name, lambda *args: None)


def _file_baton(module: ModuleType) -> None:
    """A process that is killed while it compiles DeepSpeed's Adam leaves a lock, for which others wait without end.

    Can go when torch's lock says whose it is.
    """

    def wait(wrapped: Callable, baton: Any, args: tuple, kwargs: dict) -> None:
        lock = baton.lock_file_path
        try:
            age = time.time() - os.path.getmtime(lock)
        except FileNotFoundError:
            return  # it has just gone
        found = f"{lock}, {age / 60:.0f} minutes old: perhaps of a process that was killed"
        if age > LONGEST_COMPILATION:
            raise DarlingError("an extension of torch's that no other process compiles", found, f"rm {lock}")
        print(f"[darling] waiting for {found}; if nothing compiles, rm {lock}", file=sys.stderr)
        wrapped(*args, **kwargs)

    wrap(module.FileBaton, "wait", wait)


def _device_mesh(module: ModuleType) -> None:
    """DeepspeedStrategy.setup_distributed asks for a "cuda" mesh. Can go when it asks DeepSpeed's accelerator."""

    def on_cpu(wrapped: Callable, instance: None, args: tuple, kwargs: dict) -> Any:
        device, *rest = args
        return wrapped("cpu" if device == "cuda" else device, *rest, **kwargs)

    wrap(module, "init_device_mesh", on_cpu)


class _GlooGroup:
    """The one method of vLLM's NCCL communicator that OpenRLHF calls."""

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self._group = stateless_init_torch_distributed_process_group(address, port, rank, world_size, "gloo")

    def broadcast(self, tensor: Any, src: int, stream: None) -> Any:
        """Returns the tensor's fingerprints, made where it was sent."""
        import torch

        from darling_plugin.openrlhf import weight_sync

        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        fingerprints = weight_sync.tensor_fingerprints(tensor)
        for each in (tensor, fingerprints):
            self._group.broadcast([each], options).wait()
        return fingerprints


def _cpu_info(cpuinfo: ModuleType) -> None:
    """DeepSpeed asks it three times for what takes a second to find out. Can go when DeepSpeed keeps the answer."""
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)


def _weight_sync_group(module: ModuleType) -> None:
    """The group that carries weights to vLLM is NCCL's whatever --vllm.sync_backend says. Can go when it listens."""

    def gloo(master_address: str, master_port: int, rank: int, world_size: int, device: Any) -> _GlooGroup:
        return _GlooGroup(master_address, master_port, rank, world_size)

    module.stateless_init_process_group = gloo


def _vllm_worker(module: ModuleType) -> None:
    """The receiving end allocates on "cuda" and loads tensor by tensor, which CPU vLLM cannot.

    It repacks weights after loading and drops their loaders. Collected, all of them go through vLLM's own reload. Can
    go when OpenRLHF moves to that API.
    """
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    from darling_plugin.openrlhf import weight_sync

    def update_weight(worker: Any, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
        comparison, received, sent = worker.__dict__.setdefault("darling", (weight_sync.Comparison(), [], {}))
        if name == weight_sync.REPORT:
            return comparison
        weight = torch.empty(shape, dtype=dtype)
        sent[name] = worker._model_update_group.broadcast(weight, src=0, stream=None)
        received.append((name, weight))
        if empty_cache:  # set with the last tensor
            model = worker.model_runner.get_model()
            worker.model_runner.reload_weights(weights_iterator=iter(received))
            # A head tied to the embedding gets no weight of its own, so the reload leaves its repacked copy as it was.
            for layer in model.modules():
                if isinstance(layer, ParallelLMHead):
                    layer.quant_method.process_weights_after_loading(layer)
            comparison.make(sent, model)
            received.clear()
            sent.clear()
        return None

    module.WorkerWrap.update_weight = update_weight


def _vllm_arguments(module: ModuleType) -> None:
    """vLLM starts with random weights, so that whatever the first weight sync leaves out is noticed by its check.

    But for models that see images: OpenRLHF does not sync what it does not train of them. Can go with `_trainer`.

    vLLM's engine also does without a process for its one worker, and without compiling the few small functions that
    --vllm.enforce_eager leaves to torch.compile: both cost more time than a CPU run spends in them.
    """

    def init(wrapped: Callable, arguments: Any, args: tuple, kwargs: dict) -> None:
        if "limit_mm_per_prompt" not in kwargs:
            kwargs["load_format"] = "dummy"
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        wrapped(*args, **kwargs)

    wrap(module.AsyncEngineArgs, "__init__", init)


def _trainer(module: ModuleType) -> None:
    """Checks the weight sync: before the first step, with a sync of its own, and after every later one.

    With partial rollout the log-probabilities are compared before the first step alone. Can go when CPU vLLM takes
    weights one by one, as on a GPU.
    """
    from darling_plugin.openrlhf import weight_sync

    def init_checkpoint_states(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> Any:
        states = wrapped(*args, **kwargs)
        trainer.broadcast_to_vllm()
        if pauses_engines(trainer):
            weight_sync.check(trainer, module.logger, log_probabilities=True)
        return states

    def broadcast_to_vllm(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> None:
        wrapped(*args, **kwargs)
        weight_sync.check(trainer, module.logger, log_probabilities=not pauses_engines(trainer))

    def pauses_engines(trainer: Any) -> bool:
        # Partial rollout syncs while generation is paused: asking vLLM anything before it resumes would hang.
        return trainer.args.train.partial_rollout_enable

    resume = installed_seam("resume")
    wrap(resume.owner(), resume.function, init_checkpoint_states)
    wrap(module.BasePPOTrainer, "broadcast_to_vllm", broadcast_to_vllm)


SHIMS: dict[str, Callable[[ModuleType], None]] = {
    "torch": _torch,
    "torch.utils.file_baton": _file_baton,
    "torch.distributed.device_mesh": _device_mesh,
    "cpuinfo": _cpu_info,
    "openrlhf.utils.distributed_util": _weight_sync_group,
    "openrlhf.trainer.ray.vllm_worker_wrap": _vllm_worker,
    "vllm.engine.arg_utils": _vllm_arguments,
    "openrlhf.trainer.ppo_trainer": _trainer,
}
