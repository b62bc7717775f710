"""examples/reward_athene.py: what it shows the reward model, and where it reads the score."""

import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel, PreTrainedTokenizerFast

from darling_plugin.openrlhf import cpu

FILE = Path(__file__).parents[1] / "examples" / "reward_athene.py"
WORDS = ["what", "is", "a", "bird", "an", "animal", "with", "wings"]


class Athene(LlamaPreTrainedModel):
    """The layout of the released checkpoint."""

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = torch.nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("athene")
    special = ["<unk>", "<eos>", "<end>", "<cls>", "<user>", "<assistant>"]
    backend = Tokenizer(models.WordLevel({w: k for k, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<eos>",
        cls_token="<cls>",
        extra_special_tokens=["<end>", "<user>", "<assistant>"],
    )
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content | trim }} <end> {% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    Athene(config).save_pretrained(folder)
    return folder


@pytest.fixture
def athene(folder, monkeypatch):
    cpu.stand_in_for_flash_attn()
    monkeypatch.setenv("ATHENE_RM", str(folder))
    spec = importlib.util.spec_from_file_location("reward_athene", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(athene, folder, text: str) -> float:
    """The head at the CLS token after `text`, from the checkpoint's own layout, in the 16 bits that OpenRLHF loads."""
    _, tokenizer = athene.load()
    model = Athene.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor([tokenizer(f"{text} <cls>", add_special_tokens=False)["input_ids"]])
    assert ids[0, -1] == tokenizer.cls_token_id and (ids != tokenizer.unk_token_id).all()
    with torch.no_grad():
        return model.v_head(model.model(ids).last_hidden_state[0, -1]).item()


# As the policy's tokenizer decodes it: in its own template, with its own ending.
PROMPT = "SYSTEM QUESTION what is a bird ANSWER in short ->"


@pytest.mark.parametrize("ending", ["<end>", "<eos>", "<end><eos>", ""])
def test_the_score_is_read_at_the_cls_token_after_the_models_own_template(athene, folder, ending):
    found = athene.reward_func([f"{PROMPT} an animal{ending}"], [PROMPT], ["what is a bird"])
    score = expected(athene, folder, "<user> what is a bird <end> <assistant> an animal <end>")
    assert found["rewards"].tolist() == pytest.approx([score], rel=2e-2)
    assert torch.equal(found["rewards"], found["scores"])
    at_the_last_token = expected(athene, folder, "<user> what is a bird <end> <assistant> an animal")
    assert abs(at_the_last_token - score) > 0.1, "else this test could not tell"


def test_the_response_is_what_follows_the_prompt(athene):
    _, tokenizer = athene.load()
    assert athene.without_end(" wings <end><eos>", tokenizer) == " wings "
    scores = [
        athene.reward_func([f"{before} wings"], [PROMPT], ["a"])["rewards"].item()
        for before in (PROMPT, PROMPT[15:])  # OpenRLHF cuts the beginning of a long prompt off
    ]
    assert scores[0] == scores[1]
    with pytest.raises(ValueError, match="does not start with its prompt"):
        athene.reward_func(["a bird"], [PROMPT], ["a"])


def test_threads_load_one_model_and_one_computes(athene, folder, monkeypatch):
    athene.load.cache_clear()
    score, threads = athene.score, set()
    monkeypatch.setattr(athene, "score", lambda *given: threads.add(threading.get_ident()) or score(*given))
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda k: athene.reward_func([f"{PROMPT} a bird"], [PROMPT], ["a"]), range(4)))
    assert athene.load.cache_info().misses == 1 and len(threads) == 1
    assert len({score["rewards"].item() for score in scores}) == 1


def test_a_model_without_cls_token_is_refused(athene, folder, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.cls_token = None
    tokenizer.save_pretrained(tmp_path)
    athene.MODEL = str(tmp_path)
    with pytest.raises(ValueError, match="no CLS token"):
        athene.load()
