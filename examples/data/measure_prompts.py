"""Measure how often a model, as it is, earns the reward of each prompt of the demo; see README.md beside it."""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from reward_named_answer import MAX_NAMED_ANSWERS, named_answers, reward_func
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from darling_plugin.queries import response_of

# Below, most groups of responses earn nothing at all; above, there is little left to learn.
LEARNABLE_RANGE = (0.15, 0.70)


@torch.no_grad()
def sample_queries(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, samples: int, max_new_tokens: int
) -> list[str]:
    """Return ``samples`` texts, each the prompt followed by one response drawn at temperature 1."""
    prompt_ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    # The prompt is read once and its cache shared by all samples: on a CPU that halves the time. The last token
    # stays out because generate() needs one token to start from.
    cache = model(input_ids=prompt_ids[:, :-1], use_cache=True).past_key_values
    cache.batch_repeat_interleave(samples)
    input_ids = prompt_ids.repeat(samples, 1)
    output_ids = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    return tokenizer.batch_decode(output_ids, skip_special_tokens=False)


def measure_prompt(queries: list[str], prompt: str, answers: str) -> dict:
    """Return the mean reward of the queries, what they answered, and how many went past the cap."""
    rewards = reward_func(queries, [prompt] * len(queries), [answers] * len(queries))["rewards"].tolist()
    responses = [response_of(query, prompt).split("<|im_end|>")[0] for query in queries]
    named = [named_answers(response, answers) for response in responses]
    rewarded = [answer_list for answer_list, reward in zip(named, rewards, strict=True) if reward]
    valid = Counter(answer for answer_list in rewarded for answer in answer_list)
    return {
        "mean_reward": sum(rewards) / len(rewards),
        "valid_answers": dict(valid.most_common()),
        "over_cap": sum(len(answer_list) > MAX_NAMED_ANSWERS for answer_list in named),
        "responses": [[response, reward] for response, reward in zip(responses, rewards, strict=True)],
    }


def print_summary(results: list[dict], samples: int) -> None:
    """Print the figures over all prompts, then one line for each prompt."""
    low, high = LEARNABLE_RANGE
    means = [result["mean_reward"] for result in results]
    distinct = [len(result["valid_answers"]) for result in results]
    in_range = sum(low <= mean <= high for mean in means)
    over_cap = sum(result["over_cap"] for result in results)
    for result in sorted(results, key=lambda result: result["mean_reward"]):
        frequent = ", ".join(f"{answer} {count}" for answer, count in list(result["valid_answers"].items())[:4])
        print(f"{result['mean_reward']:.3f}  {len(result['valid_answers']):3d}  {result['input']}  [{frequent}]")
    print(f"prompts {len(means)}, samples each {samples}")
    print(f"mean reward {sum(means) / len(means):.3f}, lowest {min(means):.3f}, highest {max(means):.3f}")
    print(f"within [{low}, {high}]: {in_range} ({in_range / len(means):.0%})")
    print(f"distinct valid answers a prompt: mean {sum(distinct) / len(distinct):.1f}, fewest {min(distinct)}")
    print(f"responses over the cap: {over_cap} ({over_cap / (len(means) * samples):.2%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "many_answers.jsonl")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--samples", type=int, default=16, help="responses for each prompt")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(device).eval()

    results = []
    for row in tqdm([json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]):
        chat = [{"role": "user", "content": row["input"]}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        queries = sample_queries(model, tokenizer, prompt, args.samples, args.max_new_tokens)
        results.append({"input": row["input"], **measure_prompt(queries, prompt, row["answers"])})

    args.out.write_text(json.dumps({"seed": args.seed, "samples": args.samples, "prompts": results}, indent=1))
    print_summary(results, args.samples)


if __name__ == "__main__":
    main()
