"""The partition actor's own code, without Ray: what it adds to responses, and what it does when things go wrong."""

import asyncio
import json
import logging
import math
import os
import platform
import subprocess
import sys

import numpy
import pytest
import torch
from actor_groups import Letters, broken, column, make_actor, responses, score

from darling_plugin import DarlingError
from darling_plugin.evaluation.methods import METHODS
from darling_plugin.maths import CORES
from darling_plugin.openrlhf import partition_actor, placement
from darling_plugin.openrlhf.responses import LABEL, decode
from darling_plugin.partition import CLUSTERINGS, load_partition_model
from darling_plugin.partition.cuts import Cuts
from darling_plugin.partition.models.lexical import Lexical
from darling_plugin.registry import register_advantage, register_partition_model


def test_labels_and_diversity_ride_in_extra_logs(configured):
    scored = score(make_actor(configured), responses("an apple", "a pear", "an apple"))
    assert column(scored, "darling_label") == [0, 1, 0]
    assert column(scored, "darling_diversity") == pytest.approx([0.5, 1.0, 0.5])
    assert column(scored, "darling_group") == [7, 7, 7]
    assert column(scored, "darling_quality_only") == [0, 0, 0]
    assert column(scored, "theirs") == [1.0, 1.0, 1.0]
    assert not {"darling_similarity", "darling_text_missing", "darling_cut_share"} & set(scored[0]["extra_logs"])
    for response in scored:
        logs = response["extra_logs"]
        assert 0 <= logs["darling_scored_at"] - logs["darling_generated_at"] < 60e6
        assert torch.tensor([logs["darling_scored_at"]]).dtype == torch.int64, "float32 would round it to minutes"


def test_only_the_responses_own_tokens_are_partitioned_as_far_as_openrlhf_keeps_them(configured):
    group = responses("same", "same but longer")
    assert column(score(make_actor(configured), group, max_len=6), "darling_label") == [0, 0]
    # Two turns: what the environment said in between is not the model's.
    turns = responses("ab-env-cd", "abcd")
    turns[0]["action_ranges"] = [(2, 4), (9, 11)]
    assert column(score(make_actor(configured), turns), "darling_label") == [0, 0]


def test_what_the_monitor_sees_in_the_texts_rides_along(configured, temporary_model):
    scored = score(make_actor(configured), responses("the answer is 4. bye", "a b c d e f a b c d e f"))
    assert column(scored, "darling_after_answer") == [pytest.approx(3 / 20), pytest.approx(math.nan, nan_ok=True)]
    assert column(scored, "darling_repetition")[1] == pytest.approx(3 / 9)
    temporary_model("broken", broken)
    failed = make_actor(configured, on_error="quality_only", partition_model="broken")
    assert "darling_repetition" in score(failed, responses("a", "b"))[0]["extra_logs"]


def test_what_breaks_a_sign_is_no_failing_partition(configured, monkeypatch, caplog):
    def breaks(prompt, text):
        raise IndexError("of a text that nobody thought of")

    monkeypatch.setattr(partition_actor, "text_signs", breaks)
    actor = make_actor(configured, on_error="fail")
    for _ in range(2):
        scored = score(actor, responses("a", "b", "a"))
        assert column(scored, "darling_label") == [0, 1, 0]
        assert all(math.isnan(value) for value in column(scored, "darling_repetition"))
    assert caplog.text.count("no signs in darling/monitor") == 1 and "nobody thought of" in caplog.text


def test_empty_responses_are_one_class(configured):
    scored = score(make_actor(configured), responses("", " ", "an apple", ""))
    assert column(scored, "darling_label") == [0, 0, 1, 0]


def test_a_group_of_one(configured):
    scored = score(make_actor(configured), responses("an apple"), split="eval")
    assert column(scored, "darling_label") == [0]
    assert column(scored, "darling_diversity") == [1.0]


def test_a_quality_gate(configured):
    group = responses("an apple", "an apple", "a pear", "an apple", rewards=[1.0, 0.0, 1.0, 1.0])
    scored = score(make_actor(configured, quality_gate="above:0"), group)
    assert column(scored, "darling_label") == [0, -1, 1, 0]
    assert column(scored, "darling_diversity") == pytest.approx([0.5, 0.0, 1.0, 0.5])
    none_correct = score(make_actor(configured, quality_gate="above:0"), responses("a", "b", rewards=[0.0, 0.0]))
    assert column(none_correct, "darling_label") == [-1, -1]
    assert column(none_correct, "darling_quality_only") == [0, 0], "that is a result, not a failure"


def test_a_gate_sees_the_whole_group(configured):
    group = responses("a", "b", "c", "d", rewards=[0.1, 0.4, 0.2, 0.3])
    assert column(score(make_actor(configured, quality_gate="top:0.5"), group), "darling_label") == [-1, 0, -1, 1]


def test_a_gate_takes_whole_numbers(configured):
    group = responses("a", "b", "c", rewards=[1, 0, 1])
    assert column(score(make_actor(configured, quality_gate="reference:0.5"), group), "darling_label") == [0, -1, 1]


def test_similarities_ride_along_where_the_training_step_needs_them(configured):
    identity = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    texts = ("an apple", "a pear", "an apple")
    for flags in ({"diversity": "pairs"}, {"diversity": "expected"}, {"clustering": "average"}):
        scored = score(make_actor(configured, **flags), responses(*texts))
        assert column(scored, "darling_similarity") == identity
        assert column(scored, "darling_diversity") == [0.5, 1.0, 0.5]
        assert column(scored, "darling_threshold") == [0.5] * 3
        place = CLUSTERINGS.index(flags.get("clustering", "union_find"))
        assert column(scored, "darling_clustering") == [place] * 3
    left_out = make_actor(configured, diversity="pairs", quality_gate="above:0")
    scored = score(left_out, responses(*texts, rewards=[1.0, 1.0, 0.0]))
    assert column(scored, "darling_similarity") == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    nobody = score(left_out, responses("a", "b", rewards=[0.0, 0.0]))
    assert column(nobody, "darling_similarity") == [[0, 0], [0, 0]]


def test_similarities_ride_along_as_float16_where_the_reward_or_the_advantage_alone_reads_them(configured):
    texts = ("an apple", "an apple pie", "a pear")
    for flags in ({"reward": "redundancy"}, {"reward": "quality", "advantage": "reads"}):
        register_advantage("reads")(lambda reward, similarity: reward)
        actor = make_actor(configured, **flags)
        scored = score(actor, responses(*texts))
        rows = column(scored, "darling_similarity")
        assert {row.dtype for row in rows} == {numpy.dtype("float16")}
        exact = column(
            score(make_actor(configured, diversity="pairs", **flags), responses(*texts)), "darling_similarity"
        )
        assert isinstance(exact[0], list), "classes or diversity are made of these again"
        assert numpy.array_equal(rows, numpy.array(exact).astype("float16"))
        assert exact[0][0] == 1 and 0 < exact[0][1] < 1 and exact[0][2] == 0
        # As OpenRLHF makes a tensor of it.
        (tensor,) = {torch.tensor([row]).dtype for row in rows}
        assert tensor == torch.float16
    of_labels = score(make_actor(configured, reward="quality", advantage="inverse_class_size"), responses(*texts))
    assert "darling_similarity" not in of_labels[0]["extra_logs"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_similarities_alone_carries_them_512_bytes_a_group_of_16(configured, method):
    actor = make_actor(configured, **METHODS[method])
    sent = 0
    for number in range(2):
        scored = score(actor, responses(*(f"answer {k % 5}" for k in range(16))), number)
        for response in scored:
            row = response["extra_logs"].get("darling_similarity")
            assert row is None or row.dtype == numpy.float16
            sent += 0 if row is None else row.nbytes
    asks = ("redundancy", "marginal_relevance", "nearest_neighbour", "reasoning_novelty", "leave_one_out")
    assert sent == (2 * 16 * 16 * 2 if method in asks else 0)


def test_a_reward_models_gate_is_left_to_the_training_step(configured, temporary_model):
    later = make_actor(configured, quality_expected=False, quality_gate="above:0")
    scored = score(later, responses("a", "b", "a", rewards=[None] * 3))
    assert column(scored, "darling_label") == [0, 1, 0]
    assert column(scored, "darling_similarity") == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    temporary_model("labels", lambda self, groups: [[0, 1, 0] for _ in groups])
    labels = make_actor(configured, quality_expected=False, quality_gate="above:0", partition_model="labels")
    scored = score(labels, responses("a", "b", "c", rewards=[None] * 3))
    assert column(scored, "darling_similarity") == [[1, 0, 1], [0, 1, 0], [1, 0, 1]], "a model of classes alone"


def test_actors_do_not_start_32_compiler_processes_each(configured, monkeypatch):
    from torch._inductor.config import decide_compile_threads

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(96))
    for actors, threads in ((1, 32), (8, 12), (200, 1)):
        monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
        make_actor(configured, num_partition_actors=actors)
        assert decide_compile_threads() == threads
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "5")
    make_actor(configured, num_partition_actors=8)
    assert decide_compile_threads() == 5, "the user's"


THREADS = """
import os, sys
from darling_plugin.config import DarlingConfig
from darling_plugin.openrlhf import placement
if sys.argv[1] == "in an actor":
    placement.stay_within_own_cores(DarlingConfig())
from tokenizers import Tokenizer, models, pre_tokenizers
words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
before = len(os.listdir("/proc/self/task"))
words.encode_batch(["a b " * 50] * 1000)
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_an_actors_tokenizer_has_the_threads_that_it_reserved():
    environment = {name: value for name, value in os.environ.items() if name != "RAYON_NUM_THREADS"}
    threads = {
        where: int(subprocess.check_output([sys.executable, "-c", THREADS, where], env=environment, text=True))
        for where in ("in an actor", "elsewhere")
    }
    assert threads == {"in an actor": placement.CPUS, "elsewhere": os.cpu_count()}


def test_an_actors_answers_are_read_by_as_many_processes_as_it_reserved_cores(configured):
    actor = make_actor(configured, partition_model="answer")
    assert actor._model._workers._count == placement.CPUS
    scored = score(actor, responses("It is 0.5.", r"\frac{1}{2}", "2"))
    assert column(scored, LABEL) == [0, 0, 1]
    del os.environ[CORES]
    assert load_partition_model("answer")._workers._count == min(4, len(os.sched_getaffinity(0)))


def test_the_share_that_the_model_cut_rides_along_where_it_counts(configured):
    class Short(Lexical):
        def __init__(self):
            super().__init__()
            self.cuts = Cuts()

        def partition(self, groups):
            texts = [response for group in groups for response in group.responses]
            self.cuts.count(len(texts), sum(len(text) > 8 for text in texts), "it reads 8 characters")
            return super().partition(groups)

    register_partition_model("short")(Short)
    actor = make_actor(configured, partition_model="short")
    assert column(score(actor, responses("an apple", "a longer pear")), "darling_cut_share") == [0.5, 0.5]
    assert column(score(actor, responses("an apple", "a pear")), "darling_cut_share") == [0.0, 0.0], "of this call"


def test_a_part_of_the_response_is_compared(configured):
    actor = make_actor(configured, partition_text="after:=>")
    scored = score(actor, responses("long thoughts => red", "others => red", "cut off", ""))
    assert column(scored, "darling_label") == [0, 0, 1, 1], "without the mark a response counts as empty"
    assert column(scored, "darling_text_missing") == [0, 0, 1, 1]
    said_nothing = score(actor, responses("thoughts =>", "none"))
    assert column(said_nothing, "darling_text_missing") == [0, 1], "an empty text is there"
    assert column(said_nothing, "darling_label") == [0, 0]


def test_a_function_of_text_that_raises_is_a_failing_partition(configured, tmp_path):
    file = tmp_path / "part.py"
    file.write_text("def part(prompt, response):\n    return response.split('=>')[1]\n")
    group = ("a => b", "no mark")
    with pytest.raises(DarlingError, match="(?s)a partition of 2 responses.*IndexError"):
        score(make_actor(configured, partition_text=f"{file}:part"), responses(*group))
    kept = make_actor(configured, partition_text=f"{file}:part", on_error="quality_only")
    assert column(score(kept, responses(*group)), "darling_quality_only") == [1, 1]


@pytest.mark.parametrize("on_error", ["fail", "quality_only"])
@pytest.mark.parametrize(
    ("reward", "cause"), [(None, "no reward"), (float("nan"), "reward nan"), (float("inf"), "reward inf")]
)
def test_a_missing_or_infinite_reward_always_stops(configured, on_error, reward, cause):
    group = responses("a", "b", rewards=[1.0, reward])
    with pytest.raises(DarlingError, match=f"(?s){cause}.*response 1 of train prompt 7.*'\\? '"):
        score(make_actor(configured, on_error=on_error), group)


@pytest.mark.parametrize("reward", [[0.5], torch.tensor([0.5]), torch.tensor(0.5), 0.5])
def test_every_form_of_reward_that_openrlhf_takes(configured, reward):
    # A list of one is what OpenRLHF's own reward server answers with.
    scored = score(make_actor(configured, quality_gate="above:0"), responses("a", "b", rewards=[reward, [0.0]]))
    assert column(scored, "darling_label") == [0, -1]
    with pytest.raises(DarlingError, match="reward nan"):
        score(make_actor(configured), responses("a", "b", rewards=[reward, [float("nan")]]))


def test_a_reward_model_scores_later(configured):
    scored = score(make_actor(configured, quality_expected=False), responses("a", "b", rewards=[None, None]))
    assert column(scored, "darling_label") == [0, 1]


def test_a_model_that_raises_stops_the_run_with_the_group_and_the_cause(configured, temporary_model):
    temporary_model("broken", broken)
    actor = make_actor(configured, partition_model="broken")
    with pytest.raises(
        DarlingError,
        match="(?s)ZeroDivisionError: a bug of the model's, for train prompt 7 of this run, which ends .bad.",
    ):
        score(actor, responses("a", "b", prompt="bad"))


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()])
def test_whatever_a_model_raises_is_a_failure_of_its_group_and_not_a_hang(configured, temporary_model, raised):
    def partition(self, groups):
        if any("bad" in group.prompt for group in groups):
            raise raised
        return [[0] * len(group.responses) for group in groups]

    temporary_model("raises", partition)
    actor = make_actor(configured, partition_model="raises", on_error="quality_only")

    async def burst():
        prompts = ["good", "bad", "fine"]
        scores = [actor.score(responses("a", "b", prompt=p), k, "train", 1000) for k, p in enumerate(prompts)]
        return await asyncio.wait_for(asyncio.gather(*scores), 30)

    assert [column(scored, "darling_quality_only")[0] for scored in asyncio.run(burst())] == [0, 1, 0]


def test_quality_only_marks_the_group_and_warns_once(configured, temporary_model, caplog):
    temporary_model("broken", broken)
    actor = make_actor(configured, partition_model="broken", on_error="quality_only")
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            scored = score(actor, responses("a", "b", prompt="bad"), number)
            assert column(scored, "darling_quality_only") == [1, 1]
            assert column(scored, "darling_label") == [-1, -1]
            assert column(scored, "darling_diversity") == [0.0, 0.0]
    (warning,) = caplog.records
    assert "train prompt 1" in warning.message and "a bug of the model's" in warning.message
    assert column(score(actor, responses("a", "b")), "darling_quality_only") == [0, 0]


@pytest.mark.parametrize(
    "result", [lambda n: [0] * (n - 1), lambda n: [float("nan")] * n, lambda n: [-1] * n, lambda n: None]
)
def test_a_result_that_is_no_partition_is_a_failure(configured, temporary_model, result):
    temporary_model("odd", lambda self, groups: [result(len(group.responses)) for group in groups])
    with pytest.raises(DarlingError, match="a partition of 3 responses by 'odd'"):
        score(make_actor(configured, partition_model="odd"), responses("a", "b", "c"))


def test_a_response_that_is_not_text_is_a_failure(configured):
    actor = make_actor(configured)
    actor._tokenizer.decode = lambda ids, skip_special_tokens: b"bytes"
    with pytest.raises(DarlingError, match="(?s)bytes.*train prompt 7"):
        score(actor, responses("a", "b"))


def test_what_was_loaded_is_described(configured):
    described = asyncio.run(make_actor(configured, threshold=0.4, clustering="greedy").describe())
    assert described == {
        "class": "darling_plugin.partition.models.lexical.Lexical",
        "threshold": 0.4,
        "clustering": "greedy",
        "node": platform.node(),
        "device": "a CPU",
    }
    json.dumps(described)


def test_special_tokens_are_not_text():
    assert decode(Letters(), [ord("a"), 0]) == "a"


def test_users_code_is_imported_first(configured, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from darling_plugin import PartitionModel, register_partition_model\n"
        "@register_partition_model('from-a-file')\n"
        "class Mine(PartitionModel):\n"
        "    def partition(self, groups):\n"
        "        return [[0] * len(group.responses) for group in groups]\n"
    )
    actor = make_actor(configured, partition_model="from-a-file", import_path=str(file))
    assert column(score(actor, responses("a", "b")), "darling_label") == [0, 0]
