"""vLLM changes the process it runs in (threads, environment, seeds), so the real one gets a process of its own."""

import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import preloaded
import pytest
import torch
import transformers
from tiny_classifiers import make_classifier as make_any_classifier
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

from darling_plugin.errors import DarlingError
from darling_plugin.partition import Pair, load_partition_model

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then"]
TOKENS = {word: k for k, word in enumerate(["<pad>", "<unk>", "<sep>", *WORDS])}
POSITIONS = 600
BLOCK = 128  # tokens; vLLM caches whole blocks, on a CPU of this size


def make_classifier(folder, num_labels, end="<sep>"):
    """A random Qwen3 classifier; its tokenizer ends each text with `end`."""
    tokenizer = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A <sep> $B {end}", special_tokens=[(name, TOKENS[name]) for name in ("<sep>", end)]
    )
    own = {"pad_token": "<pad>", "unk_token": "<unk>", "sep_token": "<sep>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **own).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the least that vLLM's attention on a CPU takes
        max_position_embeddings=POSITIONS,
        num_labels=num_labels,
        initializer_range=0.3,
        pad_token_id=TOKENS["<pad>"],
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def settle(path):
    """In config.json what darling-train-partition writes there."""
    config = json.loads((Path(path) / "config.json").read_text())
    config["darling_partition"] = {"threshold": 0.4, "max_length": 50, "special_tokens": ["the", "<sep>", "then"]}
    config["darling_partition"]["logit_shift"] = 0.7
    (Path(path) / "config.json").write_text(json.dumps(config))


def some_pairs():
    """All pairs of three groups of five responses, shuffled. In each group one response of 300 words stands first."""
    draw = random.Random(0)

    def text(words):
        return " ".join(draw.choices(WORDS, k=words))

    groups = [[text(n) for n in (300, 1, 20, 299, 400)] for _ in range(3)]  # some pairs are longer than POSITIONS
    pairs = [Pair("p", *two) for group in groups for two in itertools.combinations(group, 2)]
    draw.shuffle(pairs)
    return pairs


def score_in_vllm(path):
    """Scores of some_pairs(), and of each request its tokens and how many of them came from the cache."""
    model = load_partition_model(f"vllm:{path}", dtype="float32")
    requests, encode = [], model.llm.encode

    def recording(prompts, **options):
        outputs = encode(prompts, **options)
        requests.append([(list(output.prompt_token_ids), output.num_cached_tokens) for output in outputs])
        return outputs

    model.llm.encode = recording
    with ThreadPoolExecutor(1) as thread:  # as the partition actor: loaded in one thread, called in another
        scores = thread.submit(model.similarity, some_pairs()).result().tolist()
    alone = [model.similarity([pair]).item() for pair in some_pairs()[:4]]
    return {"scores": scores, "alone": alone, "requests": requests[0], "again": again_after_an_error(model)}


def again_after_an_error(model):
    """Scores of some_pairs() after a step that failed on them, which is to have left nothing in an empty cache."""
    executor = model.llm.llm_engine.engine_core.engine_core.model_executor
    execute, model.llm.encode = executor.execute_model, type(model.llm).encode.__get__(model.llm)
    assert model.llm.reset_prefix_cache()

    def fail(*arguments, **options):
        executor.execute_model = execute
        raise RuntimeError("CUDA out of memory")

    executor.execute_model = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        model.similarity(some_pairs())
    return model.similarity(some_pairs()).tolist()


@pytest.fixture(scope="module")
def in_vllm(tmp_path_factory):
    """For each classifier, by name: what a process of its own answers, and its folder."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    paths = {
        "two labels": make_classifier(tmp_path_factory.mktemp("two"), 2),
        "one label, padding at the end": make_classifier(tmp_path_factory.mktemp("one"), 1, end="<pad>"),
        "trained here": make_classifier(tmp_path_factory.mktemp("trained"), 2),
    }
    settle(paths["trained here"])
    answer = tmp_path_factory.mktemp("answer") / "answer.json"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [preloaded.python(), __file__, str(answer), *paths.values()],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=240,  # vLLM's scheduler is known to go round in circles
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answers = json.loads(answer.read_text())
    return {name: (paths[name], each) for name, each in zip(paths, answers, strict=True)}


@pytest.fixture(params=["two labels", "one label, padding at the end"])
def scored(request, in_vllm):
    return in_vllm[request.param]


@pytest.mark.parametrize("name", ["two labels", "one label, padding at the end", "trained here"])
def test_vllm_scores_like_the_cross_encoder(in_vllm, name):
    path, answer = in_vllm[name]
    expected = load_partition_model(f"cross-encoder:{path}", dtype="float32").similarity(some_pairs())
    assert expected.max() - expected.min() > 0.2  # else nothing here could fail
    assert answer["scores"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answer["alone"] == pytest.approx(expected[:4].tolist(), abs=1e-4)
    assert answer["again"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_pairs_of_all_lengths_were_compared_some_of_them_cut(in_vllm):
    lengths = [len(tokens) for tokens, _ in in_vllm["two labels"][1]["requests"]]
    assert min(lengths) < 30 and lengths.count(POSITIONS) >= 6 and max(lengths) == POSITIONS


def test_the_first_responses_tokens_are_computed_once(scored):
    requests = scored[1]["requests"]
    hits, seen = [], set()
    for tokens, cached in requests:
        blocks = [tuple(tokens[:end]) for end in range(BLOCK, len(tokens), BLOCK)]  # the last token is always computed
        assert cached == BLOCK * sum(block in seen for block in blocks)
        seen.update(tuple(tokens[:end]) for end in range(BLOCK, len(tokens) + 1, BLOCK))
        hits.append(cached)
    # A group has 4 pairs that begin with the 300 words: the first computes them, three find two blocks of them.
    assert hits.count(2 * BLOCK) >= 9
    assert [tokens for tokens, _ in requests] == sorted(tokens for tokens, _ in requests)


class StandInLLM:
    """vLLM's LLM as far as it is used; its logits say how many tokens it read and which was the last."""

    attn_type = "decoder"

    def __init__(self, path, **options):
        self.options, self.requests = options, []
        self.model_config = SimpleNamespace(attn_type=self.attn_type)

    def encode(self, prompts, *, pooling_params, pooling_task, use_tqdm):
        assert (pooling_params, pooling_task, use_tqdm) == ({"use_activation": False}, "classify", False)
        self.requests.append([prompt["prompt_token_ids"] for prompt in prompts])
        logits = [torch.tensor([-len(ids) / 9, ids[-1] / 9]) for ids in self.requests[-1]]
        return [SimpleNamespace(outputs=SimpleNamespace(data=data)) for data in logits]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # put back what is set on loading
    module = SimpleNamespace(LLM=StandInLLM, PoolingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_scores_come_back_in_the_order_of_the_pairs(stand_in, tmp_path):
    model = load_partition_model(f"vllm:{make_classifier(tmp_path, 2)}")
    pairs = [Pair("p", a, b) for a in ("the tree", "a", "mat cat sat") for b in ("dog ran", "then", "on a mat under")]
    scores = model.similarity(pairs)
    for pair, score in zip(pairs, scores.tolist(), strict=True):
        first, second = pair.first.split(), pair.second.split()
        length, last = len(first) + len(second) + 2, TOKENS["<sep>"]
        assert score == pytest.approx(torch.tensor([-length / 9, last / 9]).softmax(0)[1].item())
    assert model.llm.requests[0] == sorted(model.llm.requests[0])
    assert model.similarity([]).shape == (0,)
    assert model.similarity(pairs[4:5]).tolist() == pytest.approx(scores[4:5].tolist())


def test_padding_at_the_end_is_not_read(stand_in, tmp_path):
    model = load_partition_model(f"vllm:{make_classifier(tmp_path, 2, end='<pad>')}")
    model.similarity([Pair("p", "cat", "dog"), Pair("p", "<pad>", "<pad>")])
    cat, sep, dog, pad = (TOKENS[word] for word in ("cat", "<sep>", "dog", "<pad>"))
    assert model.llm.requests == [[[pad, sep], [cat, sep, dog]]]


def test_options_reach_vllm_which_runs_in_this_process(stand_in, tmp_path):
    path = make_classifier(tmp_path, 2)
    default = load_partition_model(f"vllm:{path}", threshold=0.3, clustering="greedy")
    assert (default.threshold, default.clustering, default.max_length) == (0.3, "greedy", POSITIONS)
    assert default.llm.options["gpu_memory_utilization"] == 0.2 and default.llm.options["dtype"] == "auto"
    own = load_partition_model(f"vllm:{path}", max_length=20, gpu_memory_utilization=0.5, dtype="bfloat16")
    assert own.llm.options["max_model_len"] == own.max_length == 20
    assert own.llm.options["gpu_memory_utilization"] == 0.5 and own.llm.options["dtype"] == "bfloat16"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_the_longer_response_is_cut_at_its_end(stand_in, tmp_path):
    model = load_partition_model(f"vllm:{make_classifier(tmp_path, 2)}", max_length=20)
    short, long = "the cat", " ".join(WORDS * 3)
    model.similarity([Pair("p", long, short)])
    model.similarity([Pair("p", short, long)])
    short, long = ([TOKENS[word] for word in text.split()] for text in (short, long))
    end = [TOKENS["<sep>"]]
    assert model.llm.requests == [[long[:16] + end + short + end], [short + end + long[:16] + end]]


def test_what_training_chose_is_taken_over(stand_in, tmp_path):
    path = make_classifier(tmp_path, 2)
    plain = load_partition_model(f"vllm:{path}").similarity([Pair("p", "cat", "dog")])
    settle(path)
    model = load_partition_model(f"vllm:{path}")
    assert (model.threshold, model.max_length) == (0.4, 50)
    [score] = model.similarity([Pair("p", "cat", "dog")])
    assert model.llm.requests == [[[TOKENS[word] for word in "the cat <sep> dog then".split()]]]
    expected = torch.tensor([-5 / 9, TOKENS["then"] / 9 + 0.7]).softmax(0)[1]
    assert score == pytest.approx(float(expected)) and score != pytest.approx(float(plain))
    own = load_partition_model(f"vllm:{path}", threshold=0.9, max_length=20, special_tokens="<sep>,<sep>,<sep>")
    assert (own.threshold, own.max_length) == (0.9, 20)


def test_without_vllm_the_error_says_what_to_install_or_to_use(stand_in, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    path = make_classifier(tmp_path, 2)
    with pytest.raises(DarlingError, match=f"(?s)pip install vllm.*cross-encoder:{path}"):
        load_partition_model(f"vllm:{path}")


def test_a_model_that_vllm_cannot_load_is_an_error_with_its_cause(stand_in, tmp_path):
    def full(path, **options):
        raise ValueError("Free memory on device cuda:0 (1.5/79.2 GiB) is less than desired")

    stand_in.LLM = full
    with pytest.raises(DarlingError, match="(?s)0.2 of a GPU.*1.5/79.2 GiB.*gpu_memory_utilization"):
        load_partition_model(f"vllm:{make_classifier(tmp_path, 2)}")


def test_an_encoder_is_refused(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(StandInLLM, "attn_type", "encoder_only")
    with pytest.raises(DarlingError, match="(?s)BertForSequenceClassification.*encoder_only.*cross-encoder:"):
        load_partition_model(f"vllm:{make_any_classifier(tmp_path, 'bert')}")


def test_a_checkpoint_without_a_classification_head_is_refused(stand_in, tmp_path):
    path = make_classifier(tmp_path, 2)
    transformers.Qwen3ForCausalLM(Qwen3Config.from_pretrained(path)).save_pretrained(path)
    with pytest.raises(DarlingError, match="(?s)a sequence classifier.*Qwen3ForCausalLM"):
        load_partition_model(f"vllm:{path}")


def test_special_tokens_and_another_tokenizer(stand_in, tmp_path):
    path, other = make_classifier(tmp_path / "a", 2), tmp_path / "b"
    shutil.copytree(path, other)
    (Path(path) / "tokenizer.json").unlink()
    options = {"tokenizer": str(other), "max_response_length": 2}
    model = load_partition_model(f"vllm:{path}", special_tokens="the,<sep>,then", **options)
    assert model.llm.options["tokenizer"] == str(other)
    model.similarity([Pair("p", "cat sat on", "dog ran")])
    assert model.llm.requests == [[[TOKENS[word] for word in "the cat sat <sep> dog ran then".split()]]]
    with pytest.raises(DarlingError, match="(?s)three special_tokens.*'<sep>,then'"):
        load_partition_model(f"vllm:{path}", special_tokens="<sep>,then", **options)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([score_in_vllm(path) for path in sys.argv[2:]]))
