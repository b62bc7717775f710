"""CPU mode's proof of each weight sync: vLLM computes with the weights that the trainer sent.

Row by row, without rounding: CPU vLLM repacks its matrices, but an input that is 1 in one column and 0 elsewhere makes
any kernel give that column back. Each row of a tensor as sent must be a row that vLLM computes with, and the other way
round. Of a matrix 16 columns are read, and where a row stands is not compared. Which tensors can be followed like
that, their first sync shows; what vLLM never loaded has the values with which it started.

And end to end: both sides' log-probabilities of some text must agree but for rounding. That finds most of what is
wrong from the first sync on and cannot be followed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from darling_plugin.errors import DarlingError

COLUMNS = 16  # of a matrix that are compared
PIECE = 32  # elements of a vector, such as a bias, that are compared as one row: vLLM joins the biases of q, k and v
NOT_WHOLE = "this model's weights do not reach CPU vLLM whole: report the model, run it on a GPU"
REPORT = "darling: what did the last sync leave?"  # in place of a tensor's name; see :func:`check`
# Of the log-probabilities' spread. Rounding made at most 3.2 % in 385 healthy syncs in bfloat16 and 7.2 % in 159 of a
# trainer in float16; a head that was never loaded 281 %, a layer's tensor 5.9 % or more (docs/how-it-works.md).
TOLERANCE = 0.25
# vLLM starts with values drawn evenly from -1e-3 to 1e-3 (its load format "dummy", see cpu.py), rounded to bfloat16:
# the largest of a tensor that it has not loaded since lies here.
UNLOADED = (0.9e-3, 1.01e-3)
CHECK_TEXTS = (  # the second is for a second look
    "In 1969 two people walked on the Moon while a third waited in orbit, and half a billion watched. If 3 apples "
    "cost 2 dollars, then 12 apples cost 8, because 12 / 3 = 4 and 4 * 2 = 8. Name a river in Europe: the Danube, "
    "which flows through ten countries from Germany to the Black Sea. Is light a wave? Yes, and a particle as well.",
    "Pour the warm milk over the flour, add two eggs and a pinch of salt, and let the dough rest for an hour. Dear "
    "Ms. Alvarez, thank you for your letter of May 14; we will refund the full amount within ten days. The quick "
    "brown fox jumps over the lazy dog, and why not? Answer: def mean(values): return sum(values) / len(values)",
)


def columns(width: int) -> torch.Tensor:
    """Which columns of a matrix of that width are compared: COLUMNS evenly spaced ones, all of a narrower one."""
    return torch.arange(min(COLUMNS, width)) * width // min(COLUMNS, width)


def fingerprints(rows: torch.Tensor) -> torch.Tensor:
    """(n, k) numbers -> (n,) int64, equal for rows that are equal in bfloat16, vLLM's dtype; 0 for a row of zeros."""
    rows = rows.to(torch.bfloat16)
    # Kernels lose the sign of zero and what is too small for a normal number.
    rows = torch.where(rows.abs() < torch.finfo(torch.bfloat16).tiny, 0, rows).contiguous()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**63), 2**63 - 1, (rows.shape[1],), generator=generator) | 1
    return (rows.view(torch.int16).long() * factors).sum(1)


def tensor_rows(tensor: torch.Tensor) -> torch.Tensor:
    """What is compared of a tensor: a matrix's rows at :func:`columns`, a vector's pieces of PIECE elements."""
    if tensor.dim() < 2:
        width = PIECE if tensor.numel() % PIECE == 0 else tensor.numel()
        return tensor.reshape(-1, width)
    rows = tensor.reshape(len(tensor), -1)
    return rows[:, columns(rows.shape[1])]


def tensor_fingerprints(tensor: torch.Tensor) -> torch.Tensor:
    """Those of a tensor's rows, int64 (rows,)."""
    return fingerprints(tensor_rows(tensor))


def loaded_rows(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By name, the rows of whatever vLLM's model computes with: its parameters, and its repacked matrices."""
    loaded = {}
    for name, layer in model.named_modules():
        for own, parameter in layer.named_parameters(recurse=False):
            if parameter.numel():  # a repacked matrix leaves an empty one
                loaded[f"{name}.{own}"] = tensor_rows(parameter.data)
        if hasattr(layer, "cpu_linear"):
            kept = layer.weight.numel()
            width = layer.weight.shape[1] if kept else layer.input_size
            dtype = layer.weight.dtype
            probe = torch.nn.functional.one_hot(columns(width), width).to(dtype)
            loaded[f"{name}, repacked"] = layer.cpu_linear(probe, layer.weight, None).T
    return loaded


def missing(rows: Mapping[str, torch.Tensor], among: Iterable[torch.Tensor]) -> dict[str, str]:
    """The tensors with rows that are not `among` the others, and how many; rows of zeros may be padding."""
    others = torch.cat([*among, torch.zeros(1, dtype=torch.int64)])
    found = torch.isin(torch.cat(list(rows.values())), others).split([len(each) for each in rows.values()])
    return {
        name: f"{len(each) - int(each.sum())} of {len(each)} rows"
        for name, each in zip(rows, found, strict=True)
        if not each.all()
    }


class Comparison:
    """What vLLM's worker knows of its syncs: which tensors can be followed, and which of them the last one left."""

    def __init__(self) -> None:
        self.tensors = 0
        self.followed: set[str] = set()
        self.unfollowed: dict[str, str] = {}
        self.unfollowed_since_last: dict[str, str] = {}
        self.unloaded: dict[str, str] = {}
        self.differing: dict[str, str] = {}

    def make(self, sent: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
        """Compares after a sync. `sent`: each tensor's fingerprints, made where the trainer sent it.

        Whether a tensor can be followed shows at the first sync in which it is not 0 throughout, as new biases are:
        zeros are found anywhere.
        """
        rows_loaded = loaded_rows(model)
        loaded = {name: fingerprints(rows) for name, rows in rows_loaded.items()}
        unlike = missing(sent, loaded.values()) | missing(loaded, sent.values())
        self.tensors = len(sent)
        self.differing = {name: rows for name, rows in unlike.items() if name in self.followed}
        self.unfollowed_since_last = {}
        for name, rows in {**sent, **loaded}.items():
            if rows.any() and name not in self.followed and name not in self.unfollowed:
                if name in unlike:
                    self.unfollowed_since_last[name] = unlike[name]
                else:
                    self.followed.add(name)
        self.unfollowed |= self.unfollowed_since_last
        self.unloaded = {
            name: self.unfollowed[name]
            for name, rows in rows_loaded.items()
            if name in self.unfollowed and UNLOADED[0] < rows.abs().max() < UNLOADED[1]
        }


def check(trainer: Any, logger: Any, *, log_probabilities: bool) -> None:
    """Raises DarlingError unless every vLLM engine computes with the trainer's weights.

    Args:
        log_probabilities: whether to compare those too; vLLM's generation must not be paused then.
    """
    reports = comparisons(trainer)
    differing = {name: rows for report in reports for name, rows in report.differing.items()}
    if differing:
        raise DarlingError(
            "vLLM to compute with exactly the weights that the trainer sent, after each weight sync",
            f"other weights in {listed(differing)}",
            NOT_WHOLE,
        )
    unloaded = {name: rows for report in reports for name, rows in report.unloaded.items()}
    if unloaded:
        raise DarlingError(
            "vLLM to load every tensor that it computes with from the trainer, at the first weight sync",
            f"the values with which vLLM started in {listed(unloaded)}",
            NOT_WHOLE,
        )
    unknown = {name: rows for report in reports for name, rows in report.unfollowed_since_last.items()}
    if unknown:
        logger.warning(
            f"CPU mode: not found in vLLM as sent: {listed(unknown)}. Either vLLM loads these in another form, or it "
            "does not load them: the log-probabilities alone tell, and they do not see each tensor"
        )
    unfollowed = {name: rows for report in reports for name, rows in report.unfollowed.items()}
    followed = f"{reports[0].tensors} tensors, {len(unfollowed)} of them not to be followed"
    if not log_probabilities:
        logger.info(f"CPU mode: weights synced, {followed}")
        return
    for text in CHECK_TEXTS:
        gap = log_probability_gap(trainer, text)
        logger.info(
            f"CPU mode: weights synced, {followed}, log-probabilities of vLLM and the trainer differ by {gap:.2%}"
        )
        if gap <= TOLERANCE:
            return
    raise DarlingError(
        f"vLLM and the trainer to agree on log-probabilities after a weight sync, within {TOLERANCE:.0%}",
        f"a difference of {gap:.2%} of their spread; not found in vLLM as sent: {listed(unfollowed) or 'nothing'}",
        NOT_WHOLE,
    )


def comparisons(trainer: Any) -> list[Comparison]:
    """What each vLLM worker found at the last sync."""
    import ray

    # An engine passes on to its worker no other call than this one of OpenRLHF's, which our shim answers.
    answers = ray.get([engine.update_weight.remote(REPORT, None, None) for engine in trainer.vllm_engines])
    return [comparison for workers in answers for comparison in workers]


def listed(tensors: Mapping[str, str], most: int = 8) -> str:
    shown = [f"{name} ({rows})" for name, rows in list(tensors.items())[:most]]
    return ", ".join([*shown, f"{len(tensors) - most} more"] if len(tensors) > most else shown)


def log_probability_gap(trainer: Any, text: str) -> float:
    """How far a vLLM engine's log-probabilities of a text's tokens lie from the trainer's: ‖theirs - ours‖ / ‖spread‖.

    The spread is that of the trainer's around their mean. The text is cut to the run's longest sequence. Of several
    engines the largest.
    """
    ours, theirs = log_probabilities(trainer, text)
    return max(relative_error(each, ours) for each in theirs)


def relative_error(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """‖theirs - ours‖ / ‖ours - mean of ours‖, of (n,) log-probabilities; NaN when one is."""
    return ((theirs - ours).norm() / (ours - ours.mean()).norm()).item()


def log_probabilities(trainer: Any, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of the text's tokens but the first, the trainer's and each vLLM engine's, float32 (n,)."""
    import ray
    from vllm import SamplingParams

    tokens = trainer.tokenizer(text=text, add_special_tokens=False)["input_ids"][: trainer.args.data.max_len - 1]
    workers = trainer.actor_model_group._actor_handlers
    ours = ray.get([worker.__ray_call__.remote(at_temperature_one, torch.tensor([tokens])) for worker in workers])[0]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    theirs = []
    for engine in trainer.vllm_engines:
        found = ray.get(engine.generate.remote(tokens, params)).prompt_logprobs[1:]
        theirs.append(torch.tensor([each[token].logprob for each, token in zip(found, tokens[1:], strict=True)]))
    return ours[0].float(), theirs


def at_temperature_one(worker: Any, sequences: torch.Tensor) -> torch.Tensor:
    """OpenRLHF's forward as vLLM's prompt log-probabilities are: without the sampling temperature."""
    actor = worker.actor
    temperature, actor.temperature = actor.temperature, 1.0
    try:
        mask = torch.ones_like(sequences)
        return worker.forward(sequences, action_mask=mask[:, 1:], attention_mask=mask)
    finally:
        actor.temperature = temperature
