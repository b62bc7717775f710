"""User code of the end-to-end test: writes down the experiences as OpenRLHF hands them to the training actors."""

import json
import os
import sys

import wrapt

from darling_plugin import register_advantage  # noqa: F401  (proves that user code can use the public names)


def _write_down(wrapped, maker, args, kwargs):
    experiences = wrapped(*args, **kwargs)
    samples = [
        {
            "place": place,
            "prompt": experience.prompts[row],
            "reward": experience.rewards[row].item(),
            "advantages": experience.advantages[row][experience.action_mask[row].bool()].tolist(),
        }
        for experience in experiences
        for row, place in enumerate(experience.index)
    ]
    with open(os.environ["DARLING_TEST_SPY"], "a") as file:
        file.write(json.dumps(samples) + "\n")
    return experiences


# The hooks import this file as they install, after OpenRLHF's module; elsewhere there is nothing to watch.
if "openrlhf.trainer.ppo_utils.experience_maker" in sys.modules:
    wrapt.wrap_function_wrapper(
        sys.modules["openrlhf.trainer.ppo_utils.experience_maker"],
        "RemoteExperienceMaker.make_experience_batch",
        _write_down,
    )
