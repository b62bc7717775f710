"""The hooks as they are installed, and those of the sample generator, on OpenRLHF's own classes, without Ray."""

import sys
from types import SimpleNamespace

import pytest
from openrlhf.trainer.ppo_utils import experience_maker, samples_generator
from ray import cloudpickle
from training_batches import Tokenizer

from darling_plugin import DarlingError
from darling_plugin.openrlhf import hooks, placement, seams, worker
from darling_plugin.openrlhf.scoring_time import Step
from darling_plugin.openrlhf.seams import installed_seam


@pytest.mark.parametrize("role", ["evaluation", "train_step"])
def test_a_hook_pickles_by_name_as_rays_export_of_actor_classes_needs(installed, role):
    # The async trainer's process, hooked itself, sends the classes of its actors by value, methods they inherit too.
    seam = installed_seam(role)
    hook = seam.resolve()
    assert seams.is_hooked(hook)
    dumped = cloudpickle.dumps(hook)
    assert seam.function.encode() in dumped and len(dumped) < 200
    assert cloudpickle.loads(dumped) is hook


def test_install_is_idempotent_and_removable(configured):
    configured()
    seam = installed_seam("advantages")
    original = seam.resolve()
    assert not seams.is_hooked(original)
    hooks.install(experience_maker)
    wrapped = seam.resolve()
    assert seams.is_hooked(wrapped) and wrapped.darling_original is original
    hooks.install(experience_maker)
    assert seam.resolve() is wrapped
    hooks.uninstall(experience_maker)
    hooks.uninstall(experience_maker)
    assert seam.resolve() is original


def test_every_seam_has_a_hook_and_every_hook_a_seam():
    assert set(hooks.WRAPPERS) == {seam.role for seam in seams.FIRST}


def test_the_guard_stops_a_process_without_hooks(configured, monkeypatch):
    configured()
    monkeypatch.setattr(worker, "_ran", False)
    with pytest.raises(DarlingError, match="the worker's setup hook did not run"):
        worker.require_hooks()
    monkeypatch.setattr(worker, "_ran", True)
    assert installed_seam("advantages").module in sys.modules
    with pytest.raises(DarlingError, match="compute_advantages_and_returns is not hooked"):
        worker.require_hooks()


@pytest.mark.parametrize(
    ("colocate_all", "gpus", "expected"), [(True, 0.2, "the shared one"), (True, 0.0, None), (False, 0.2, None)]
)
def test_partition_actors_go_where_the_models_are(configured, monkeypatch, colocate_all, gpus, expected):
    configured(gpus_per_partition_actor=gpus)
    started, waited = [], []
    monkeypatch.setattr(hooks, "PartitionPool", lambda config, tokenizer, **options: started.append(options))
    monkeypatch.setattr(hooks.ray, "get", lambda refs: waited.append((refs, len(started))))
    engines = [SimpleNamespace(__ray_ready__=SimpleNamespace(remote=f"engine {k}".strip)) for k in range(2)]
    monkeypatch.setattr(placement, "job_name", {"models": "by name"}.__getitem__)
    monkeypatch.setattr(hooks.ray.util, "get_placement_group", {"by name": "the shared one"}.__getitem__)
    args = SimpleNamespace(
        train=SimpleNamespace(colocate_all=colocate_all, agent_func_path=None),
        reward=SimpleNamespace(remote_url=None),
        rollout=SimpleNamespace(batch_size=32, n_samples_per_prompt=8, max_new_tokens=None),
        data=SimpleNamespace(max_len=2048),
    )
    hooks.install(samples_generator)
    try:
        samples_generator.SamplesGenerator(SimpleNamespace(args=args), [], None, Tokenizer(), engines)
    finally:
        hooks.uninstall(samples_generator)
    assert waited == ([(["engine 0", "engine 1"], 0)] if expected else []), "vLLM's engines start before, and alone"
    assert started == [{"quality_expected": False, "colocate_with": expected, "step": Step(32, 8, 2048)}]


@pytest.fixture
def generator(configured, monkeypatch):
    """A sample generator that dispatches as the hook has it; its partition actors note what they are given."""
    configured()

    def dispatch(self, prompts, labels, *, images=None, **generate_kwargs):
        return [f"ref of {prompt}" for prompt in prompts]

    monkeypatch.setattr(samples_generator.SamplesGenerator, installed_seam("dispatch").function, dispatch)
    hooks.install(samples_generator)
    generator = object.__new__(samples_generator.SamplesGenerator)
    generator.args = SimpleNamespace(eval=SimpleNamespace(n_samples_per_prompt=4))
    generator.darling_pool = SimpleNamespace(submit=lambda ref, **keywords: (ref, keywords))
    yield generator
    hooks.uninstall(samples_generator)


@pytest.mark.parametrize(("keywords", "split"), [({}, "train"), ({"n_samples_per_prompt": 4}, "eval")])
def test_every_group_is_dispatched_to_a_partition_actor(generator, keywords, split):
    scored = generator._dispatch_prompts_to_vllm(["a", "b"], ["", ""], max_len=64, temperature=1.0, **keywords)
    assert scored == [(f"ref of {prompt}", {"split": split, "max_len": 64}) for prompt in ("a", "b")]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({}, r"(?s)max_len among.*\{'top_p': 1.0\}"),
        ({"max_len": None}, "'max_len': None"),
        ({"max_len": 64, "n_samples_per_prompt": 8}, "(?s)by evaluation alone, as 4.*found:  8"),
    ],
)
def test_a_generation_that_is_not_as_the_contract_says_stops(generator, keywords, said):
    with pytest.raises(DarlingError, match=said):
        generator._dispatch_prompts_to_vllm(["a"], [""], top_p=1.0, **keywords)
