"""The agent of maths with a second try, step by step and in OpenRLHF's own loop."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf.utils.agent")

AGENT_FILE = Path(__file__).resolve().parents[1] / "examples" / "agent_math_retry.py"
PROMPT = "<|im_start|>user\nWhat is 6 times 7?<|im_end|>\n<|im_start|>assistant\n"
HANGS = r"It is \boxed{9^{9^{9^{9}}}}."


def load_agent_module():
    # By path, as OpenRLHF's vllm_engine.py loads an agent.
    import importlib.util

    spec = importlib.util.spec_from_file_location("agent_module", AGENT_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


agent_module = load_agent_module()


async def episode(*actions: str, label="42") -> list[dict]:
    instance = agent_module.AgentInstance()
    await instance.reset({"observation": PROMPT, "label": label})
    states = [{"observation_text": PROMPT, "action_text": action, "label": label} for action in actions]
    return [await instance.step(state) for state in states]


@pytest.mark.parametrize(
    "actions, rewards, turns",
    [
        ([r"\boxed{42}"], [1.0], 1),
        ([r"\boxed{41}", r"\boxed{42}"], [0.0, 0.5], 2),
        ([r"\boxed{41}", r"\boxed{43}"], [0.0, 0.0], 2),
        (["", "I do not know."], [0.0, 0.0], 2),
    ],
)
def test_rewards_and_turns(actions, rewards, turns):
    steps = asyncio.run(episode(*actions))
    assert [step["rewards"].item() for step in steps] == rewards
    assert [step["scores"].item() for step in steps] == rewards
    assert [step["done"] for step in steps] == [False] * (turns - 1) + [True]
    assert all(set(step["extra_logs"]) == {"math_unchecked", "turns"} for step in steps)
    assert [step["extra_logs"]["turns"].item() for step in steps] == list(range(1, turns + 1))
    assert all(step["extra_logs"]["math_unchecked"].item() == 0 for step in steps)


def test_the_environment_says_that_the_answer_is_wrong_once():
    first, second = asyncio.run(episode("41", "43"))
    assert "not correct" in first["environment_feedback"]
    assert first["environment_feedback"].endswith("<|im_start|>assistant\n")
    assert second["environment_feedback"] == ""


def test_a_check_that_hangs_ends_its_episode_and_blocks_no_other(monkeypatch):
    monkeypatch.setattr(agent_module.reward_math, "DEADLINE", 2.0)

    async def ticks() -> int:
        count, end = 0, time.monotonic() + 1
        while time.monotonic() < end:
            await asyncio.sleep(0.01)
            count += 1
        return count

    async def together():
        return await asyncio.gather(episode(HANGS), episode("41", "42"), ticks())

    (hung,), others, count = asyncio.run(together())
    assert hung["done"] and hung["rewards"].item() == 0.0
    assert {key: value.item() for key, value in hung["extra_logs"].items()} == {"math_unchecked": 1.0, "turns": 1.0}
    assert [step["rewards"].item() for step in others] == [0.0, 0.5]
    assert count > 10


def test_errors_are_loud():
    with pytest.raises(ValueError, match="label None"):
        asyncio.run(episode("42", label=None))
    with pytest.raises(ValueError, match="apply_chat_template"):
        asyncio.run(agent_module.AgentInstance().reset({"observation": "What is 6 times 7?", "label": "42"}))


class Characters:
    """A tokenizer: a token is a character."""

    def __call__(self, text, **kwargs):
        return {"input_ids": torch.tensor([[ord(char) for char in text]], dtype=torch.long)}


class Scripted:
    """An engine that says what it is told to."""

    def __init__(self, *actions):
        self.actions = list(actions)

    async def generate(self, tokens, sampling_params, multi_modal_data=None):
        text = self.actions.pop(0)
        output = SimpleNamespace(text=text, token_ids=[ord(char) for char in text], finish_reason="stop")
        return SimpleNamespace(outputs=[output])


@pytest.mark.parametrize("actions, reward, turns", [(["42"], 1.0, 1), (["41", "42"], 0.5, 2), (["41", "43"], 0.0, 2)])
def test_in_openrlhfs_loop(actions, reward, turns):
    executor = agent_module.AgentExecutor()
    sampling_params = SimpleNamespace(max_tokens=None, logprobs=None)
    engine = Scripted(*actions)
    response = asyncio.run(executor.execute(PROMPT, "42", sampling_params, 1000, Characters(), engine))
    assert engine.actions == []
    assert (response["reward"], response["scores"].item()) == (reward, reward)
    assert len(response["action_ranges"]) == turns
    said = "".join(chr(token) for token in response["observation_tokens"])
    assert said == PROMPT + agent_module.TRY_AGAIN.join(actions)
    assert response["extra_logs"]["turns"].item() == turns
