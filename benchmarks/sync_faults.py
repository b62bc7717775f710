"""What each of the weight sync's two comparisons makes of a fault: a tensor left as it was, or never loaded.

python benchmarks/sync_faults.py MODEL TRAINED

Offline, not through vLLM: transformers' own model stands in for vLLM's, with a head of its own like the repacked one
that CPU vLLM makes of a tied embedding. *Left behind*: TRAINED is MODEL after some steps of training, as `make demo`
leaves it in runs/demo/model, and one tensor at a time, then all of them, is put back to MODEL's. *Never loaded*: one
tensor of MODEL at a time has the values with which vLLM starts, drawn by vLLM's own function; of each kind the layer
that moves log-probabilities least and the one that does most. `named` are vLLM's tensors that the comparison of the
weights names, which stops the run. bfloat16, as in a run. Here TRAINED had 50 steps of docs/study.md's
`reasoning_novelty`.
"""

import argparse
from collections.abc import Iterator
from itertools import chain

import torch
from common import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from darling_plugin.openrlhf.weight_sync import CHECK_TEXTS, Comparison, relative_error, tensor_fingerprints

EMBEDDING = "model.embed_tokens.weight"
KINDS = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
HEAD = "the head, where it is tied to the embedding"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("trained")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    before, trained = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval().requires_grad_(False)
        for path in (arguments.model, arguments.trained)
    )
    save(
        "sync_faults",
        "What the weight sync's comparisons make of a fault",
        __doc__,
        chain(left_behind(before, trained, tokenizer), never_loaded(before, tokenizer)),
    )


class Played(torch.nn.Module):
    """A model as CPU vLLM has it, as far as a sync is compared: beside its tensors a head that was repacked."""

    def __init__(self, model, head: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.head = torch.nn.Module()
        self.head.weight = torch.nn.Parameter(torch.empty(0, dtype=head.dtype))
        self.head.input_size = head.shape[1]
        self.head.cpu_linear = lambda inputs, weight, bias: inputs @ head.T

    def tensors(self) -> int:
        return 1 + sum(1 for _ in self.model.named_parameters())


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters()}


def sent(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor_fingerprints(each) for name, each in tensors.items()}


def left_behind(before, trained, tokenizer) -> Iterator[dict]:
    """A row a fault; `trained` is as it was afterwards."""
    own, old = weights(trained), weights(before)
    whole = [log_probabilities(trained, tokenizer, text) for text in CHECK_TEXTS]
    sent_first, sent_now = sent(old), sent(own)

    def row(fault: str, names: list[str]) -> dict:
        head = old[EMBEDDING] if fault == HEAD or EMBEDDING in names else own[EMBEDDING]
        comparison = Comparison()
        comparison.make(sent_first, Played(before, old[EMBEDDING]))
        put(trained, {name: old[name] for name in names})
        played = Played(trained, head)
        comparison.make(sent_now, played)
        gaps = [gap(trained, tokenizer, k, whole, head) for k in range(len(CHECK_TEXTS))]
        put(trained, own)
        return line(f"left behind: {fault}", comparison.differing, played, gaps)

    layers = len(trained.model.layers)
    some = [f"model.layers.{k}.{kind}" for k in (0, layers - 1) for kind in KINDS]
    changed = [name for name in own if not torch.equal(own[name], old[name])]
    yield row(HEAD, [])
    yield from (row(name, [name]) for name in some if name in changed)
    yield row("all tensors", changed)


def never_loaded(model, tokenizer) -> Iterator[dict]:
    """Two rows a kind of tensor; `model` is as it was afterwards."""
    from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

    own = weights(model)
    whole = [log_probabilities(model, tokenizer, text) for text in CHECK_TEXTS]
    sent_first = sent(own)

    def dummy(name: str) -> torch.Tensor:
        filled = torch.empty_like(own[name])
        initialize_single_dummy_weight(filled)
        return filled

    def first_gap(name: str) -> float:
        put(model, {name: dummy(name)})
        found = gap(model, tokenizer, 0, whole, own[EMBEDDING])
        put(model, own)
        return found

    def row(fault: str, name: str | None) -> dict:
        head = dummy(EMBEDDING) if fault == HEAD else own[EMBEDDING]
        put(model, {name: dummy(name)} if name else {})
        played, comparison = Played(model, head), Comparison()
        comparison.make(sent_first, played)
        gaps = [gap(model, tokenizer, k, whole, head) for k in range(len(CHECK_TEXTS))]
        put(model, own)
        return line(f"never loaded: {fault}", comparison.unloaded, played, gaps)

    yield row(HEAD, None)
    yield row("the embedding alone", EMBEDDING)
    yield row("model.norm.weight", "model.norm.weight")
    prefix = "model.layers.0."
    for kind in [name.removeprefix(prefix) for name in own if name.startswith(prefix)]:
        found = {k: first_gap(f"model.layers.{k}.{kind}") for k in range(len(model.model.layers))}
        for which, layer in (("least", min(found, key=found.get)), ("most", max(found, key=found.get))):
            yield row(f"{kind}, {which}: layer {layer}", f"model.layers.{layer}.{kind}")


def put(model, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.data = tensors[name]


def line(fault: str, named: dict[str, str], played: Played, gaps: list[float]) -> dict:
    of_vllm = [name for name in named if name.startswith(("model.model.", "head"))]  # not those that were sent
    return {
        "fault": fault,
        "named": f"{len(of_vllm)} of {played.tensors()}",
        "log-probabilities": f"{gaps[0]:.2%}",
        "of the second text": f"{gaps[1]:.2%}",
    }


def gap(model, tokenizer, text: int, whole: list[torch.Tensor], head: torch.Tensor) -> float:
    """From what the model gave when it was whole."""
    return relative_error(log_probabilities(model, tokenizer, CHECK_TEXTS[text], head), whole[text])


@torch.inference_mode()
def log_probabilities(model, tokenizer, text: str, head: torch.Tensor | None = None) -> torch.Tensor:
    """(n,) float32 of the text's tokens but the first; `head` in place of the model's own."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    logits = model.model(ids).last_hidden_state @ (model.lm_head.weight if head is None else head).T
    return logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


if __name__ == "__main__":
    main()
