"""The hooks that log, on OpenRLHF's own classes, without Ray: metrics, partitions.jsonl, a run that resumes."""

import json
import math
import statistics
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from openrlhf.trainer import ppo_trainer
from openrlhf.utils import logging_utils
from ray.util.queue import Empty
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_batches import Tokenizer, make_experiences, make_maker

from darling_plugin import DarlingError, metrics
from darling_plugin.log import append_partitions
from darling_plugin.openrlhf import hooks


def test_every_metric_of_a_step(installed, configured):
    configured(diversity_floor=0.5)
    quality, labels = [[1.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]], [[0, 0, 0, 1], [0, 0, 0, 0]]
    maker = make_maker()
    maker.compute_advantages_and_returns(make_experiences(quality, labels, [8]))
    assert maker.darling_metrics == pytest.approx(
        {
            "darling/quality": 5 / 8,
            "darling/diversity": (3 * 1 / 3 + 1) / 8,
            "darling/classes_per_group": 1.5,
            "darling/one_class_share": 0.5,
            "darling/flat_share": 0.5,
            # counted 0.5, 0.5, 0.5, 1 about 0.625, times the quality: -1/8, 0, -1/8, 3/8
            "darling/signal": statistics.pstdev([-1 / 8, 0, -1 / 8, 3 / 8]) / 2,
            "darling/floor_share": 7 / 8,
            "darling/weight": 1.0,
            "darling/reward": (0.5 + 0 + 0.5 + 1 + 4 * 0.25) / 8,
            "darling/quality_only_groups": 0.0,
            "darling/scoring_seconds": 0.5,
            "darling/scoring_wait_seconds": 2.5,
            # ranks of diversity -1/2, -1/2, -1/2, 3/2, of length -3/2 to 3/2, of quality 1/2, -3/2, 1/2, 1/2
            "darling/monitor/diversity_with_length": 3 / (3 * 5) ** 0.5,
            "darling/monitor/diversity_with_quality": 1 / 3,
            "darling/monitor/other_class_length": 4 / 2,
        }
    )


def test_the_step_is_logged_and_weighed_with_openrlhfs_number(installed, configured, tmp_path):
    # A run that resumes after step 6 begins so.
    configured(log_dir=str(tmp_path), diversity_floor=0.0, weight_schedule="0:0,14:1")

    class Trainer(ppo_trainer.BasePPOTrainer):
        def __init__(self):
            self.args = SimpleNamespace(
                train=SimpleNamespace(dynamic_batch_enable=False),
                rollout=SimpleNamespace(batch_size=1, n_samples_per_prompt=3),
            )
            self.tokenizer = Tokenizer()
            self.experience_maker = make_maker(n=3)
            self.experience_maker.make_experience_batch = self.experience_maker.compute_advantages_and_returns
            self.actor_model_group = SimpleNamespace(async_run_method_batch=lambda **kwargs: [])
            self.critic_model_group = self.vllm_engines = None
            self.wandb_logger = self.tensorboard_logger = None

        def ppo_train(self, global_step):
            return {"policy_loss": 0.5}

    import ray

    class NoRay:
        get = staticmethod(lambda refs: refs)

    assert ppo_trainer.ray is ray
    ppo_trainer.ray = NoRay
    try:
        experiences = make_experiences([[1.0, 0.5, 0.25]], [[0, 1, 1]], [2, 1], order=[2, 0, 1])
        status, step = Trainer().train_step(experiences, 6)
    finally:
        ppo_trainer.ray = ray
    assert step == 7 and status["policy_loss"] == 0.5
    assert status["darling/diversity"] == pytest.approx(2 / 3)
    (line,) = (tmp_path / "partitions.jsonl").read_text().splitlines()
    record = json.loads(line)
    reward = [1.0, 0.5 * 0.75, 0.25 * 0.75]  # 1 - W + W * diversity, with W = 7 / 14
    assert record.pop("advantage") == pytest.approx([value - sum(reward) / 3 for value in reward])
    assert status["darling/weight"] == 0.5
    assert record == {
        "step": 7,
        "split": "train",
        "prompt": "prompt 0",
        "responses": ["1", "11 12", "21 22 23"],  # the tokens under the action mask, in the group's order
        "labels": [0, 1, 1],
        "quality": [1.0, 0.5, 0.25],
        "diversity": [1.0, 0.5, 0.5],
        "reward": reward,
        "weight": 0.5,
        "length_penalty": [0.0, 0.0, 0.0],
        "response_length": [1, 2, 3],
        "truncated": [False, False, False],
    }


def test_the_monitors_signs_are_logged_with_the_step_and_taken_from_the_samples(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path))
    experiences = make_experiences([[1.0, 0.5, 0.25]], [[0, 1, 1]], [2, 1], order=[2, 0, 1])
    for experience, values in zip(experiences, ([math.nan, 0.25], [0.75]), strict=True):  # of places 2, 0 and 1
        experience.info["darling_repetition"] = torch.tensor(values)
    maker = make_maker(n=3)
    maker.compute_advantages_and_returns(experiences)
    assert maker.darling_metrics["darling/monitor/repetition"] == 0.5
    (record,) = maker.darling_records
    assert record["signs"] == {"repetition": [0.25, 0.75, None]}
    assert not any(key.startswith("darling") for experience in experiences for key in experience.info)


class RayOfOneProcess:
    """Ray as far as an evaluation's records are sent: through a queue that both sides know by its name."""

    def __init__(self):
        self.sent = []
        put = SimpleNamespace(remote=self.sent.append)
        get = SimpleNamespace(remote=self.take)
        self.get_actor = {"evaluations of this job": SimpleNamespace(put=put, get=get)}.__getitem__

    def take(self, timeout):
        return self.sent.pop(0) if self.sent else Empty()

    def get(self, result):
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def ray_of_one_process(monkeypatch):
    ray = RayOfOneProcess()
    monkeypatch.setattr(hooks, "ray", ray)
    monkeypatch.setattr(hooks.placement, "job_name", "{} of this job".format)
    return ray


class Maker:
    """What _train_step reads of an experience maker after a step."""

    darling_metrics: ClassVar = {"darling/diversity": 0.99, "darling/flat_share": 0.2}
    darling_records: ClassVar = [{"prompt": "p", "responses": [[1]], "labels": [0]}]
    darling_texts: ClassVar = SimpleNamespace(result=lambda: [["1"]])
    darling_quality_only: ClassVar = [True]
    darling_examples: ClassVar = {}


def test_each_step_is_logged_watched_and_may_be_the_last(configured, tmp_path, monkeypatch, caplog):
    configured(log_dir=str(tmp_path), on_error="quality_only")
    monkeypatch.setattr(metrics.SignalWatch, "STEPS", 2)
    monkeypatch.setattr(metrics.SignalWatch, "MOST", 2)
    monkeypatch.setattr(hooks, "FALLBACK_GROUPS", 3)
    trainer = SimpleNamespace(
        experience_maker=Maker(), tokenizer=Tokenizer(), wandb_logger=None, tensorboard_logger=None
    )
    for step in (1, 2):
        status, _ = hooks._train_step(lambda step=step: ({"loss": 0.5}, step), trainer, {"global_step": step - 1})
        assert status == {"loss": 0.5, **Maker.darling_metrics}
    (warning,) = caplog.records
    assert "In 2 of 2 steps" in warning.message
    with pytest.raises(DarlingError, match="3 of them could not be partitioned"):
        hooks._train_step(lambda: ({}, 3), trainer, {"global_step": 2})
    lines = (tmp_path / "partitions.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3], "the step that stopped the run, too"


def trained_step(maker, training):
    """_train_step around what OpenRLHF does in a step: the advantages, then `training`."""

    def original():
        maker.compute_advantages_and_returns(make_experiences([[1.0, 0.5]], [[0, 1]], [2]))
        training()
        return {}, 5

    trainer = SimpleNamespace(experience_maker=maker, tokenizer=Tokenizer())
    return hooks._train_step(original, trainer, {"global_step": 4})


def test_the_logs_texts_are_decoded_while_the_policy_trains(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path))
    trains, decoded = threading.Event(), threading.Event()

    class Slow(Tokenizer):
        def batch_decode(self, all_ids, skip_special_tokens):
            assert trains.wait(30), "the step waits for its log before it trains"
            decoded.set()
            return super().batch_decode(all_ids, skip_special_tokens)

    def training():
        assert not decoded.is_set()
        trains.set()
        assert decoded.wait(30), "nothing is decoded while the policy trains"

    maker = make_maker(n=2)
    maker.tokenizer = Slow()
    trained_step(maker, training)
    (line,) = map(json.loads, (tmp_path / "partitions.jsonl").read_text().splitlines())
    assert (line["step"], line["responses"]) == (5, ["1", "11 12"])


def test_texts_that_cannot_be_decoded_stop_the_step(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path))
    maker = make_maker(n=2)
    maker.tokenizer = None
    with pytest.raises(AttributeError, match="batch_decode"):
        trained_step(maker, lambda: None)


def test_evaluation_keeps_its_rewards_and_logs_its_diversity(installed, configured, tmp_path, ray_of_one_process):
    configured(log_dir=str(tmp_path))
    samples = make_experiences([[1.0, 0.0], [0.5, 0.5]], [[0, 1], [0, 0]], [1, 1, 1, 1])
    loader = [(["default"], [f"prompt {k}"], [""], [None]) for k in range(2)]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 2)
    assert type(logs) is dict, "it goes to loggers and, in the async trainer, through a queue"
    assert logs["eval_default_pass1"] == 0.5 and logs["eval_default_pass2"] == 0.75, "OpenRLHF's own, unshaped"
    assert {key: value for key, value in logs.items() if key.startswith("darling/")} == {
        "darling/quality": 0.5,
        "darling/diversity": 0.5,
        "darling/classes_per_group": 1.5,
        "darling/one_class_share": 0.5,
        "darling/flat_share": 1.0,
        "darling/quality_only_groups": 0.0,
    }
    assert not (tmp_path / "partitions.jsonl").exists(), "the step is known to the trainer alone"
    trainer = SimpleNamespace(_detect_eval_metric_key=lambda metrics: None, tokenizer=Tokenizer())
    ppo_trainer.BasePPOTrainer.save_best_checkpoint(trainer, logs, 3, {})
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"], line["reward"], line["advantage"]) for line in lines] == [
        (3, "eval", [1.0, 0.0], None),
        (3, "eval", [0.5, 0.5], None),
    ]
    assert [line["responses"] for line in lines] == [["1", "11 12"], ["21 22 23", "31 32 33 34"]]
    assert [line["response_length"] for line in lines] == [[1, 2], [3, 4]]
    assert not ray_of_one_process.sent, "each evaluation is taken once"


def test_an_evaluation_whose_groups_do_not_arrive_stops(installed, configured, tmp_path, ray_of_one_process):
    configured(log_dir=str(tmp_path))
    with pytest.raises(DarlingError, match=r"groups of this evaluation(.|\n)*none within 60 s"):
        ppo_trainer.BasePPOTrainer.save_best_checkpoint(SimpleNamespace(), {"eval_default_pass1": 0.5}, 3, {})


def test_an_evaluation_without_samples_logs_nothing(installed, configured, tmp_path, ray_of_one_process):
    configured(log_dir=str(tmp_path))
    logs = ppo_trainer.compute_eval_metrics([], [], 2)
    ppo_trainer.BasePPOTrainer.save_best_checkpoint(SimpleNamespace(), logs, 3, {})
    assert logs == {} and not ray_of_one_process.sent and not list(tmp_path.iterdir())


def test_evaluation_with_one_sample_a_prompt_has_no_diversity(installed, configured):
    configured()
    samples = make_experiences([[1.0], [0.0]], [[0], [0]], [1, 1])
    loader = [(["default"], [f"prompt {k}"], [""], [None]) for k in range(2)]
    logs = ppo_trainer.compute_eval_metrics(loader, samples, 1)
    assert logs["eval_default_pass1"] == 0.5
    assert not [key for key in logs if key.startswith("darling")]


class TensorboardLogger:
    """OpenRLHF's own, as far as a trainer that resumes touches it, without its flags."""

    def __new__(cls, folder):
        args = SimpleNamespace(
            logger=SimpleNamespace(tensorboard_dir=str(folder), wandb=SimpleNamespace(run_name="run"))
        )
        return logging_utils.TensorboardLogger(args)


def scalars(folder, name):
    reader = EventAccumulator(str(folder / "run"))
    reader.Reload()
    return [(point.step, round(point.value, 6)) for point in reader.Scalars(name)]


def make_trainer(tensorboard_logger, checkpoints, step=0, *, resumes, is_async=False):
    ckpt = SimpleNamespace(load_enable=resumes, path=str(checkpoints))
    args = SimpleNamespace(ckpt=ckpt, train=SimpleNamespace(async_enable=is_async))
    trainer = SimpleNamespace(args=args, tensorboard_logger=tensorboard_logger)
    if step:
        (checkpoints / "_actor").mkdir(parents=True)
        trainer.actor_model_group = SimpleNamespace(async_run_method=lambda method_name: [{"global_step": step}])
    return trainer


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("checkpoint", [2, 0])
def test_a_run_that_resumes_logs_no_step_twice(installed, configured, tmp_path, monkeypatch, checkpoint, is_async):
    configured(log_dir=str(tmp_path))
    first = TensorboardLogger(tmp_path / "tensorboard")
    ppo_trainer.BasePPOTrainer.init_checkpoint_states(make_trainer(first, tmp_path, resumes=False))
    for step in (1, 2, 3, 4):
        first.log_train(step, {"reward": step / 10})
        append_partitions(str(tmp_path), [{"step": step, "split": split} for split in ("train", "eval")])
    first.writer.flush()
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "train/reward")] == [1, 2, 3, 4]
    torn = '{"step": 5, "prompt": "é'.encode()[:-1]  # killed within a character
    with (tmp_path / "partitions.jsonl").open("ab") as file:
        file.write(torn)

    monkeypatch.setattr(ppo_trainer, "ray", SimpleNamespace(get=lambda refs: refs))
    second = TensorboardLogger(tmp_path / "tensorboard")
    states = ppo_trainer.BasePPOTrainer.init_checkpoint_states(
        make_trainer(second, tmp_path, checkpoint, resumes=True, is_async=is_async)
    )
    assert states["global_step"] == checkpoint
    for step in range(checkpoint + 1, 6):
        second.log_train(step, {"reward": 7.0})
        append_partitions(str(tmp_path), [{"step": step, "split": "train"}])
    second.writer.flush()
    kept = [(step, step / 10) for step in range(1, checkpoint + 1)]
    found = scalars(tmp_path / "tensorboard", "train/reward")
    assert found == kept + [(step, 7.0) for step in range(checkpoint + 1, 6)]
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5]
    # The async trainer begins with the evaluation of the step it resumes at, the other does not.
    again = int(is_async and checkpoint > 0)
    assert [line["step"] for line in lines if line["split"] == "eval"] == list(range(1, checkpoint + 1 - again))
    superseded = (tmp_path / "partitions.superseded.jsonl").read_bytes().splitlines()
    assert len(superseded) == 2 * (4 - checkpoint) + 1 + again and superseded[-1] == torn


def test_a_run_that_does_not_resume_rewinds_nothing(installed, configured, tmp_path):
    configured(log_dir=str(tmp_path))
    append_partitions(str(tmp_path), [{"step": 1}])
    ppo_trainer.BasePPOTrainer.init_checkpoint_states(make_trainer(None, tmp_path, resumes=False))
    assert (tmp_path / "partitions.jsonl").read_text() == '{"step": 1}\n'


def test_what_was_compared_stands_in_the_log_where_it_is_not_the_whole_response(configured, tmp_path):
    configured(log_dir=str(tmp_path), partition_text="after:12 ")
    record = {"prompt": "p", "responses": [[11, 12, 13], [14], []], "labels": [0, 1, 1]}
    records = [record, {**record, "labels": None}]
    hooks._append(records, hooks._texts(records, Tokenizer(), 3, "train"), 3, "train")
    compared, failed = map(json.loads, (tmp_path / "partitions.jsonl").read_text().splitlines())
    assert compared["responses"] == ["11 12 13", "14", ""]
    assert compared["compared"] == ["13", "", None]
    assert failed["compared"] is None


def test_steps_without_a_signal_are_warned_of(configured, caplog):
    configured()
    trainer = SimpleNamespace()
    for _ in range(25):
        hooks._warn(trainer, {"darling/diversity": 0.99, "darling/flat_share": 0.2})
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and "In 18 of 20 steps or more nearly every response" in warning.message


def test_a_method_that_does_not_go_by_the_diversity_is_not_told_that_it_is_flat(configured, caplog):
    configured(reward="nearest_neighbour")
    trainer = SimpleNamespace()
    for _ in range(metrics.SignalWatch.STEPS + 1):
        hooks._warn(trainer, {"darling/diversity": 0.99, "darling/flat_share": 0.2})
    assert not caplog.messages


def test_a_sign_of_gaming_that_moves_is_warned_of(caplog):
    trainer = SimpleNamespace()
    for step in range(40):
        repetition = 0.1 + 0.01 * (step % 2) + 0.3 * (step >= 20)
        hooks._warn(trainer, {"darling/monitor/repetition": repetition})
    (warning,) = caplog.records
    assert "responses repeat themselves" in warning.message and "darling-report" in warning.message


def test_a_run_in_which_most_groups_fall_back_stops(configured):
    configured(on_error="quality_only", quality_only_limit=0.5)
    trainer = SimpleNamespace()
    for _ in range(10):
        hooks._stop_where_most_fell_back(trainer, [True] * 4 + [False] * 4)
    with pytest.raises(DarlingError, match="at least 50% of the last 64 groups(.|\n)*33 of them could not"):
        hooks._stop_where_most_fell_back(trainer, [True] * 5)
    early = SimpleNamespace()
    hooks._stop_where_most_fell_back(early, [True] * 63)  # a bad beginning is not yet a run
    configured(on_error="quality_only", quality_only_limit=1.0)
    for _ in range(3):
        hooks._stop_where_most_fell_back(early, [True] * 64)


@pytest.mark.parametrize(("kept", "with_text"), [("all", 4), ("none", 0), ("sample:3", 3)])
def test_only_the_wanted_training_groups_are_decoded_and_all_of_an_evaluation(kept, with_text, configured, tmp_path):
    configured(log_dir=str(tmp_path), log_responses=kept, partition_text="after:1")
    calls = []

    class Counting(Tokenizer):
        def batch_decode(self, all_ids, skip_special_tokens):
            calls.append(len(all_ids))
            return super().batch_decode(all_ids, skip_special_tokens)

    records = [{"prompt": f"p{k}", "responses": [[k, 1, 5], [k]], "labels": [0, 1]} for k in range(4)]
    for split in ("train", "eval"):
        hooks._append(records, hooks._texts(records, Counting(), 6, split), 6, split)
    assert calls == ([2 * with_text] if with_text else []) + [8], "all of a step in one call"
    lines = [json.loads(line) for line in (tmp_path / "partitions.jsonl").read_text().splitlines()]
    texts = [line["responses"] for line in lines[:4]]
    assert sum(each == [f"{k} 1 5", f"{k}"] for k, each in enumerate(texts)) == with_text
    assert sum(each == [None, None] for each in texts) == 4 - with_text
    assert [line["compared"] is None for line in lines[:4]] == [each == [None, None] for each in texts]
    assert [line["labels"] for line in lines] == [[0, 1]] * 8 and lines[7]["responses"] == ["3 1 5", "3"]
