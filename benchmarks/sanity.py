"""Partitions of each model side by side, for a person to read.

python benchmarks/sanity.py

SmolLM2-135M-Instruct answers each prompt of NoveltyBench's curated half eight times at temperature 1; the page
runs/sanity/index.html shows each group with the classes of every partition model. Nothing of it is committed.
"""

import html
import json
from pathlib import Path

import torch
from common import ROOT, console
from rich.progress import track

from darling_plugin.partition import Group, load_partition_model, measure

PROMPTS = ROOT.parent / "shared/data/noveltybench/curated_odd.jsonl"
MODEL = ROOT / "models/SmolLM2-135M-Instruct"
OUT = ROOT / "runs/sanity"
SAMPLES, NEW_TOKENS = 8, 160
MODELS = ("lexical", "embedding", "embedding?threshold=0.6", "default")
COLOURS = ("#cfe8ff", "#ffe3c2", "#d5f2d0", "#f6d3e4", "#e4dcfb", "#fff3b0", "#c9efea", "#e2e2e2")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    groups = sampled(OUT / "responses.jsonl")
    partitions = {}
    for spec in MODELS:
        name, _, query = spec.partition("?")
        options = {"threshold": float(query.split("=")[1])} if query else {}
        partitions[spec] = measure(load_partition_model(name, **options), groups)
        classes = [int(each.labels.max()) + 1 for each in partitions[spec]]
        console.print(f"{spec}: {sum(classes) / len(classes):.2f} classes of {SAMPLES} responses")
    (OUT / "index.html").write_text(page(groups, partitions), encoding="utf-8")
    console.print(f"look at {(OUT / 'index.html').relative_to(ROOT)}")


def sampled(path: Path) -> list[Group]:
    """The groups in `path`, sampled where it is missing."""
    if not path.exists():
        prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in sample(prompts)), encoding="utf-8")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Group(row["prompt"], row["responses"]) for row in rows]


def sample(prompts: list[str]) -> list[dict]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    rows = []
    for prompt in track(prompts, "sampling"):
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(
                **inputs, do_sample=True, temperature=1.0, num_return_sequences=SAMPLES, max_new_tokens=NEW_TOKENS
            )
        answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "responses": answers})
    return rows


def page(groups: list[Group], partitions: dict) -> str:
    head = "".join(f"<th>{html.escape(spec)}</th>" for spec in partitions)
    parts = []
    for k, group in enumerate(groups):
        rows = []
        for i, response in enumerate(group.responses):
            cells = "".join(
                f'<td style="background:{COLOURS[label % len(COLOURS)]}">{label}</td>'
                for each in partitions.values()
                if (label := int(each[k].labels[i])) is not None
            )
            rows.append(f"<tr>{cells}<td class=text>{html.escape(response)}</td></tr>")
        title = f"<h2>{k + 1}. {html.escape(group.prompt)}</h2>"
        parts.append(f"{title}<table><tr>{head}<th>response</th></tr>{''.join(rows)}</table>")
    style = (
        "body{font:14px sans-serif;max-width:1200px;margin:auto}table{border-collapse:collapse}"
        "td{padding:3px 8px;text-align:center;vertical-align:top}tr{border-top:1px solid #ddd}"
        "td.text{text-align:left;white-space:pre-wrap}"
    )
    return f"<!doctype html><meta charset=utf-8><title>Partitions</title><style>{style}</style>{''.join(parts)}\n"


if __name__ == "__main__":
    main()
