"""GPU shares under --train.colocate_all: what the launcher refuses, and how actors find the models' group."""

import importlib
from unittest.mock import patch

import pytest
from test_launch import ENABLED

from darling_plugin import DarlingError
from darling_plugin.config import DarlingConfig, parse
from darling_plugin.openrlhf import launch, placement

COLOCATED = [*ENABLED, "--train.colocate_all", "--actor.num_gpus_per_node", "2", "--darling.gpus_per_partition_actor"]


@pytest.mark.parametrize(
    ("flags", "free"),
    [
        # Reward model, reference, policy and vLLM leave 0.2 of each of two GPUs.
        (["0.2", "--darling.num_partition_actors", "3"], 0.2),
        (["0.3"], 0.2),
        (["0.3", "--darling.num_partition_actors", "auto"], 0.2),
        (["0.2", "--algo.advantage.estimator", "gae"], 0.0),
        (["0.5", "--algo.kl.init_coef", "0"], 0.4),
        (["0.8", "--reward.remote_url", "reward.py", "--train.async_enable"], 0.6),
    ],
)
def test_a_gpu_share_that_colocated_models_do_not_leave(flags, free):
    with pytest.raises(DarlingError, match=f"at most {free} of each GPU.*colocate_all 2 GPU"):
        launch.check(*parse([*COLOCATED, *flags]))


@pytest.mark.parametrize(
    "flags",
    [
        ["0.2", "--darling.num_partition_actors", "2"],
        ["0.1", "--darling.num_partition_actors", "4"],
        ["0.2", "--darling.num_partition_actors", "auto"],
        ["0", "--darling.num_partition_actors", "9"],
        ["0.4", "--algo.kl.init_coef", "0"],
        ["0.4", "--algo.advantage.estimator", "gae", "--train.colocate_critic_reward"],
    ],
)
def test_a_gpu_share_that_colocated_models_leave(flags):
    launch.check(*parse([*COLOCATED, *flags]))


def test_vllm_does_not_share_a_gpu_with_training_and_only_a_gpu_can_be_given_back():
    with pytest.raises(DarlingError, match="use cross-encoder:/models/x"):
        launch.check(*parse([*COLOCATED, "0.2", "--darling.partition_model", "vllm:/models/x"]))
    with pytest.raises(DarlingError, match="a GPU for partition_sleep to give back"):
        launch.check(*parse([*ENABLED, "--darling.partition_sleep"]))


def test_the_driver_names_the_placement_group_that_train_makes_first():
    made = []
    module = importlib.import_module("ray.util.placement_group")
    original = module.placement_group
    module.placement_group = lambda bundles, **kwargs: made.append(kwargs)
    try:
        with launch._patched_driver(DarlingConfig(enable=True)):
            from ray.util.placement_group import placement_group  # as OpenRLHF's command line does

            with patch.object(placement, "job_name", "{} of job 1".format):
                placement_group([{"GPU": 1}], strategy="PACK")
                placement_group([{"GPU": 1}], strategy="PACK")
        assert made == [{"strategy": "PACK", "name": "models of job 1"}, {"strategy": "PACK"}]
    finally:
        module.placement_group = original
