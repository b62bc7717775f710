"""What each of the weight sync's two comparisons makes of a fault: a tensor that training changed, left as it was.

python benchmarks/sync_faults.py MODEL TRAINED

TRAINED is MODEL after some steps of training, as `make demo` leaves it in runs/demo/model. One tensor at a time, then
all of them, is put back to MODEL's, and the rest is TRAINED's: that is what vLLM would compute with. Rows that are not
found make the first comparison stop a run; for the second log-probabilities have to differ by 25 %, and in healthy
syncs they do by 2 or 3 (docs/how-it-works.md). bfloat16, as in a run. Measured with the trainer's state after 12 steps
of docs/study.md's `classes`.
"""

import argparse

import torch
from common import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from darling_plugin.openrlhf.weight_sync import CHECK_TEXTS, missing, relative_error, tensor_fingerprints

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
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        for path in (arguments.model, arguments.trained)
    )
    save(
        "sync_faults",
        "What the weight sync's comparisons make of a fault",
        __doc__,
        faults(before, trained, tokenizer),
    )


def faults(before, trained, tokenizer) -> list[dict]:
    """A row a fault; `trained` is as it was afterwards."""
    whole = [log_probabilities(trained, tokenizer, text) for text in CHECK_TEXTS]
    own = {name: parameter.data for name, parameter in trained.named_parameters()}
    old = {name: parameter.data for name, parameter in before.named_parameters()}

    def row(fault: str, names: list[str]) -> dict:
        for name, parameter in trained.named_parameters():
            parameter.data = (old if name in names else own)[name]
        of_head = old[EMBEDDING] if fault == HEAD else None
        gaps = [
            relative_error(log_probabilities(trained, tokenizer, text, of_head), expected)
            for text, expected in zip(CHECK_TEXTS, whole, strict=True)
        ]
        for name, parameter in trained.named_parameters():
            parameter.data = own[name]
        compared = [EMBEDDING] if fault == HEAD else names
        unlike = [
            name
            for name in compared
            if missing({name: tensor_fingerprints(own[name])}, [tensor_fingerprints(old[name])])
        ]
        return {
            "left as it was": fault,
            "tensors with rows not found": f"{len(unlike)} of {len(compared)}",
            "log-probabilities": f"{gaps[0]:.2%}",
            "of the second text": f"{gaps[1]:.2%}",
        }

    layers = len(trained.model.layers)
    some = [f"model.layers.{k}.{kind}" for k in (0, layers - 1) for kind in KINDS]
    changed = [name for name in own if not torch.equal(own[name], old[name])]
    return [row(HEAD, []), *(row(name, [name]) for name in some if name in changed), row("all tensors", changed)]


@torch.inference_mode()
def log_probabilities(model, tokenizer, text: str, head: torch.Tensor | None = None) -> torch.Tensor:
    """(n,) float32 of the text's tokens but the first; `head` in place of the model's own."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    logits = model.model(ids).last_hidden_state @ (model.lm_head.weight if head is None else head).T
    return logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


if __name__ == "__main__":
    main()
