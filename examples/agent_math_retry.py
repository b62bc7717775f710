r"""OpenRLHF agent: maths with one second try. Right at once earns 1, right after being told so 0.5, else 0.

    pip install ".[math]"
    python3 -m darling_plugin … --train.agent_func_path agent_math_retry.py --data.label_key answer \
        --data.apply_chat_template

Answers are checked by reward_math.py, which lies beside this file, with its labels and its errors. The second turn is
written in ChatML, as Qwen and SmolLM2 speak it: for another chat template change TRY_AGAIN, or a prompt stops the run.
An answer that cannot be checked ends the episode with 0: nobody knows whether to ask for another one.
"""

import asyncio
import importlib.util
from pathlib import Path

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

# OpenRLHF loads this file by path, so its folder is not where Python looks for modules.
_spec = importlib.util.spec_from_file_location("reward_math", Path(__file__).with_name("reward_math.py"))
reward_math = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reward_math)

REWARD_OF_TURN = {1: 1.0, 2: 0.5}
TURN_MARK = "<|im_start|>"
# The model's own <|im_end|> comes before it.
TRY_AGAIN = (
    "\n<|im_start|>user\nThat is not correct. Look for the mistake and answer once more.<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class AgentInstance(AgentInstanceBase):
    """One prompt's environment; OpenRLHF makes one for each response."""

    def __init__(self):
        self.turns = 0

    async def reset(self, states: dict, **kwargs) -> dict:
        if TURN_MARK not in states["observation"]:
            raise ValueError(f"prompt without {TURN_MARK}: set --data.apply_chat_template, or change TRY_AGAIN")
        return states

    async def step(self, states: dict, **kwargs) -> dict:
        self.turns += 1
        # In a thread: the event loop also feeds vLLM.
        correct, unchecked = await asyncio.to_thread(reward_math.check_answer, states["action_text"], states["label"])
        done = correct or unchecked or self.turns == len(REWARD_OF_TURN)
        reward = torch.tensor(REWARD_OF_TURN[self.turns] if correct else 0.0)
        return {
            "rewards": reward,  # OpenRLHF adds up the turns' rewards; a turn without a right answer has 0
            "scores": reward,
            "environment_feedback": "" if done else TRY_AGAIN,
            "done": done,
            "extra_logs": {
                "math_unchecked": torch.tensor(float(unchecked)),
                "turns": torch.tensor(float(self.turns)),
            },
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(AgentInstance)
