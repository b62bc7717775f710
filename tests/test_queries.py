"""The response in a query: whatever a tokenizer or OpenRLHF's cut made of the prompt; in OpenRLHF's executors too."""

import asyncio
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from darling_plugin.queries import response_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# Each becomes another character in NFC: a decomposed é, angstrom, ohm, kelvin, a bracket.
UNSTABLE = ["cafe\u0301", "5 \u212b", "3 \u2126", "4 \u212a", "\u2329x\u232a"]


def tokenizer_of(normalizer=None) -> PreTrainedTokenizerFast:
    """Bytes, as those of Qwen and SmolLM2; a token is a byte or a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: k for k, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=["<|im_start|>", "<|im_end|>"])


class Says:
    """An engine that answers with one text."""

    def __init__(self, tokenizer, text):
        self.tokens, self.text, self.given = tokenizer(text, add_special_tokens=False)["input_ids"], text, None

    async def generate(self, tokens, sampling_params, multi_modal_data=None):
        self.given = tokens
        output = SimpleNamespace(text=self.text, token_ids=self.tokens, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def execute(executor, tokenizer, prompt, label, response, max_length=4000, max_tokens=200):
    engine = Says(tokenizer, response)
    sampling = SimpleNamespace(max_tokens=max_tokens, logprobs=None)
    done = asyncio.run(executor.execute(prompt, label, sampling, max_length, tokenizer, engine))
    return done, engine


def rewards_of(file: str):
    agent = pytest.importorskip("openrlhf.utils.agent")
    return agent.SingleTurnAgentExecutor(str(EXAMPLES / file))


NORMALIZERS = {"none": None, "NFC": normalizers.NFC(), "NFKC": normalizers.NFKC()}


@pytest.mark.parametrize("text", UNSTABLE)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_openrlhf_gets_the_reward_whatever_the_tokenizer_makes_of_the_prompt(normalizer, text):
    tokenizer = tokenizer_of(NORMALIZERS[normalizer])
    prompt = CHAT.format(f"{text}: name a fruit, {text}, not {text}")
    executor = rewards_of("reward_named_answer.py")
    for response, reward in (("An apple.<|im_end|>", 1.0), ("I do not know.", 0.0)):
        done, engine = execute(executor, tokenizer, prompt, "apple|fruit", response)
        changes = tokenizer.decode(engine.given) != prompt
        assert changes == (normalizer != "none"), "else this test could not tell"
        assert done["reward"] is not None and done["reward"].item() == reward


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("text", ["word " * 100, "e\u0301 " * 200, "\u4f60\u597d" * 100])
@pytest.mark.parametrize("left", [40, 41, 42, 43, 60, 61, 62])
def test_openrlhf_gets_the_reward_of_a_prompt_that_it_cuts(normalizer, text, left):
    tokenizer = tokenizer_of(NORMALIZERS[normalizer])
    prompt = CHAT.format(f"Name an apple. {text}")
    executor = rewards_of("reward_named_answer.py")
    for response, reward in (("An apple.", 1.0), ("No.", 0.0)):
        done, engine = execute(executor, tokenizer, prompt, "apple", response, left + 100, 100)
        assert len(engine.given) == left
        assert done["reward"] is not None and done["reward"].item() == reward


def load(file: str):
    pytest.importorskip("openrlhf.utils.agent")
    spec = importlib.util.spec_from_file_location("agent_module", EXAMPLES / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("left", [None, 60])
@pytest.mark.parametrize("text", UNSTABLE)
def test_the_agent_is_rewarded_whatever_becomes_of_its_prompt(text, left):
    tokenizer = tokenizer_of(normalizers.NFC())
    executor = load("agent_math_retry.py").AgentExecutor()
    prompt = CHAT.format(f"{text} " * 30 + "What is 6 times 7?")
    lengths = {} if left is None else {"max_length": left + 100, "max_tokens": 100}
    done, engine = execute(executor, tokenizer, prompt, "42", "It is 42.", **lengths)
    assert left is None or len(engine.given) == left
    assert done["reward"] == 1.0


@pytest.mark.parametrize(
    "response", ["", "An apple.", "\u0301x", "e\u0301", "\n", "<|im_start|>user\nWhat?<|im_end|>\n"]
)
def test_the_response_stays_as_it_is(response):
    prompt = CHAT.format("cafe\u0301 " * 20)
    assert response_of(prompt + response, prompt) == response
    assert response_of(prompt.replace("e\u0301", "\xe9") + response, prompt) == response
    cut = prompt.replace("e\u0301", "\xe9")[50:]
    assert response_of(cut + response, prompt) == response
    assert response_of("\ufffd" + cut + response, prompt) == response


def test_a_prompt_that_lost_its_spaces_is_known_by_its_end():
    prompt = CHAT.format("Hello , world ! Again .") + "Hi.<|im_end|>\n" + CHAT.format("Bye .")
    query = prompt.replace(" ,", ",").replace(" .", ".").replace(" !", "!")  # as clean_up_tokenization_spaces does
    assert response_of(f"{query}Yes.", prompt) == "Yes."
    again = f"Yes.<|im_end|>\n{CHAT.format('Bye .')}No."
    assert response_of(query + again, prompt) == again


@pytest.mark.parametrize("query", ["", "An apple.", "\n", "stant\n", CHAT[:-5].format("What?")])
def test_a_query_without_its_prompt_is_refused(query):
    with pytest.raises(ValueError, match="does not start with its prompt"):
        response_of(query, CHAT.format("What?"))


def test_a_long_prompt_takes_no_time():
    prompt = "ab" * 200_000
    assert response_of(prompt[200_000:] + "c", prompt) == "c"
    with pytest.raises(ValueError, match="does not start"):
        response_of("x" * 100_000, prompt)
