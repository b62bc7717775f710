"""Names of partition models, rewards and advantages: registered once, found or listed, without heavy imports."""

import importlib
import subprocess
import sys

import pytest
import torch

from darling_plugin import registry
from darling_plugin.errors import DarlingError
from darling_plugin.registry import FunctionRegistry, Registry, advantages, partition_models, rewards


def test_built_in_names():
    assert partition_models.names() == [
        "answer",
        "cross-encoder",
        "darling-modernbert",
        "darling-qwen3-math",
        "default",
        "embedding",
        "head",
        "judge",
        "lexical",
        "noveltybench-deberta",
        "served",
        "vllm",
    ]
    assert rewards.names() == [
        "additive",
        "marginal_relevance",
        "multiply",
        "nearest_neighbour",
        "quality",
        "reasoning_novelty",
        "redundancy",
    ]
    assert advantages.names() == [
        "centered",
        "centered_std",
        "diversity_weighted",
        "inverse_class_size",
        "leave_one_out",
    ]


def test_names_and_specs_are_checked_without_heavy_imports(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from darling_plugin import PairwiseModel\n"
        "class Mine(PairwiseModel):\n"
        "    threshold = 0.5\n"
        "    def similarity(self, pairs):\n"
        "        return [0.0] * len(pairs)\n"
    )
    program = (
        "import sys\n"
        "from darling_plugin.partition import check_partition_spec\n"
        "from darling_plugin.registry import advantages, partition_models, rewards\n"
        "partition_models.names(), rewards.get('multiply'), advantages.get('centered')\n"
        f"check_partition_spec('default'), check_partition_spec({str(tmp_path / 'mine.py')!r} + ':Mine')\n"
        "heavy = {'torch', 'numpy', 'ray', 'scipy', 'transformers', 'sentence_transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_duplicate_name_raises_and_keeps_the_first():
    own = Registry("reward")

    @own.register("mine")
    def first(quality, diversity):
        return quality

    with pytest.raises(DarlingError, match=r"'mine' is already .*first"):

        @own.register("mine")
        def second(quality, diversity):
            return diversity

    assert own.get("mine") is first


def test_registering_returns_the_definition_and_lists_it():
    own = Registry("reward")

    def mine(quality, diversity):
        return quality

    assert own.register("mine")(mine) is mine
    assert "mine" in own
    assert "other" not in own
    assert own.names() == ["mine"]


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(DarlingError) as caught:
        rewards.get("multipy")
    message = str(caught.value)
    assert "a registered reward" in message
    assert "did you mean 'multiply'?" in message
    assert "known: additive, marginal_relevance, " in message


def test_one_file_imported_twice_is_not_a_clash(tmp_path, monkeypatch):
    own = Registry("partition model")
    monkeypatch.setattr(registry, "register_for_test", own.register, raising=False)
    (tmp_path / "twice_registered.py").write_text(
        "from darling_plugin.registry import register_for_test\n@register_for_test('twice')\nclass Model:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("twice_registered")
    importlib.import_module("darling_plugin.user_code").import_user_code(str(tmp_path / "twice_registered.py"))
    assert own.get("twice").__name__ == "Model"


def test_classes_of_one_name_in_two_files_clash(tmp_path, monkeypatch):
    # Neither class has an __init__ of its own: they share their base's, and still are two definitions.
    own = Registry("partition model")
    monkeypatch.setattr(registry, "register_for_test", own.register, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("clash_one", "clash_two"):
        (tmp_path / f"{name}.py").write_text(
            "from darling_plugin.partition import PairwiseModel\n"
            "from darling_plugin.registry import register_for_test\n"
            "@register_for_test('same')\n"
            "class Model(PairwiseModel):\n"
            "    threshold = 0.5\n"
        )
    importlib.import_module("clash_one")
    with pytest.raises(DarlingError, match=r"'same' is already clash_one\.Model"):
        importlib.import_module("clash_two")


def test_a_function_takes_what_its_parameters_name():
    own = FunctionRegistry("reward", "quality")
    inputs = {name: torch.tensor(k) for k, name in enumerate(("quality", "diversity", "similarity", "labels"))}
    functions = {
        "two": lambda q, d: (q, d),
        "second has a default": lambda quality, d=None: (quality, d),
        "the other way round": lambda diversity, quality: (quality, diversity),
        "by position alone": lambda quality, diversity, /: (quality, diversity),
        "any": lambda *numbers: numbers,
        "in C": max,
        "similarity": lambda similarity, quality: (quality, similarity),
        "by name": lambda *, labels, similarity, scale=2: (similarity, labels),
        "all": lambda labels, diversity, quality, similarity: (quality, diversity, similarity, labels),
    }
    for name, function in functions.items():
        own.register(name)(function)
    taken = {name: own.call(name, inputs) for name in functions if name != "in C"}
    assert {name: tuple(int(each) for each in got) for name, got in taken.items()} == {
        "two": (0, 1),
        "second has a default": (0, 1),
        "the other way round": (0, 1),
        "by position alone": (0, 1),
        "any": (0, 1),
        "similarity": (0, 2),
        "by name": (2, 3),
        "all": (0, 1, 2, 3),
    }
    assert {name for name in functions if own.reads(name, "similarity")} == {"similarity", "by name", "all"}
    assert {name for name in functions if own.reads(name, "labels")} == {"by name", "all"}


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda quality: quality, "too many positional arguments"),
        (lambda quality, diversity, embedding: quality, "missing a required argument: 'embedding'"),
        (lambda quality, similarity, embedding: quality, "missing a required argument: 'embedding'"),
        (lambda q, similarity: q, "missing a required argument: 'q'"),
        (lambda diversity, q: q, "missing a required argument: 'q'"),
        (lambda d, quality: quality, "missing a required argument: 'd'"),
        (lambda reward, similarity: reward, "missing a required argument: 'reward'"),
        (lambda quality, simlarity: quality, "'simlarity' is none of these"),
        (lambda quality, label: quality, "'label' is none of these"),
    ],
)
def test_a_function_of_something_else_is_refused_when_it_is_registered(function, found):
    own = FunctionRegistry("reward", "quality")
    with pytest.raises(DarlingError, match=f"(?s)takes of quality, diversity, similarity, labels.*{found}"):
        own.register("mine")(function)
    assert "mine" not in own._entries


def test_what_a_function_needs_and_nobody_gave_is_named():
    with pytest.raises(DarlingError, match="similarity, for the reward 'redundancy'"):
        rewards.call("redundancy", {"quality": torch.ones(1, 2), "similarity": None})


def test_plugins_of_other_packages_are_loaded_once(monkeypatch):
    loaded = []

    class Plugin:
        def load(self):
            loaded.append("plugin")

    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [Plugin()] if group == "darling_plugin.plugins" else []
    )
    rewards.names()
    advantages.names()
    assert loaded == ["plugin"]
