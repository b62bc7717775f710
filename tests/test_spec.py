"""load_partition_model: from a spec to a model, and the user's own code."""

import pickle
import sys

import pytest

from darling_plugin.errors import DarlingError
from darling_plugin.partition import (
    Group,
    check_partition_spec,
    load_partition_model,
)
from darling_plugin.partition.models.lexical import Lexical
from darling_plugin.partition.options import read_option
from darling_plugin.registry import register_partition_model
from darling_plugin.user_code import import_user_code

# --- load_partition_model


MINE = """
from darling_plugin import Group, PairwiseModel, PartitionModel

class Mine(PairwiseModel):
    threshold = 0.5
    def similarity(self, pairs):
        return [1.0] * len(pairs)

class WithPath(Mine):
    def __init__(self, path, *, threshold=None):
        super().__init__(threshold=threshold)
        self.path = path

class AnyOption(Mine):
    def __init__(self, **options):
        super().__init__()
        self.options = options

class Unfinished(PairwiseModel):
    threshold = 0.5

class NotAModel:
    pass

def function(groups):
    return []
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_models.py"
    path.write_text(MINE)
    return path


def test_a_registered_name():
    model = load_partition_model("lexical", threshold=0.7, clustering="greedy")
    assert (type(model), model.threshold, model.clustering) == (Lexical, 0.7, "greedy")
    assert load_partition_model("lexical", threshold=None, clustering=None).threshold == 0.5


def test_a_registered_name_with_its_argument(mine):
    register_partition_model("with-path")(import_user_code(str(mine)).WithPath)
    model = load_partition_model("with-path:org/name", threshold=0.2)
    assert (model.path, model.threshold) == ("org/name", 0.2)
    assert load_partition_model("with-path:/models/x:1").path == "/models/x:1"
    with pytest.raises(DarlingError, match="missing a required argument: 'path'"):
        load_partition_model("with-path")


def test_registered_names_win(monkeypatch, mine):
    monkeypatch.syspath_prepend(str(mine.parent))
    (mine.parent / "lexical.py").write_text(MINE)
    with pytest.raises(DarlingError, match="fit Lexical"):
        load_partition_model("lexical:Mine")


def test_a_module_and_a_class(monkeypatch, mine):
    package = mine.parent / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(mine.parent))
    model = load_partition_model("my_package.models:Mine", threshold=0.9)
    assert type(model) is sys.modules["my_package.models"].Mine
    assert model.threshold == 0.9


def test_a_file_and_a_class(monkeypatch, mine):
    by_path = load_partition_model(f"{mine}:Mine")
    monkeypatch.chdir(mine.parent)
    by_name = load_partition_model("my_models.py:Mine")
    assert type(by_path) is type(by_name)
    assert by_path.partition([Group("p", ["a", "b"])])[0].tolist() == [0, 0]
    assert type(pickle.loads(pickle.dumps(by_path))) is type(by_path)


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"VALUE = {value}\n")
    assert [import_user_code(str(tmp_path / folder / "same.py")).VALUE for folder in "ab"] == [1, 2]


def test_a_class_that_takes_any_option_gets_it(mine):
    assert load_partition_model(f"{mine}:AnyOption", threshold=0.1, clustering=None).options == {"threshold": 0.1}


def test_options_may_follow_as_a_query(mine):
    spec = f"{mine}:AnyOption?max_length=4096&rate=0.5&both=true&where=a:b/c&word=NaN1&empty=null"
    options = load_partition_model(spec, threshold=0.1).options
    assert options == {
        "threshold": 0.1,
        "max_length": 4096,
        "rate": 0.5,
        "both": True,
        "where": "a:b/c",
        "word": "NaN1",
        "empty": "null",
    }
    assert load_partition_model("lexical:2?threshold=0.25").threshold == 0.25


@pytest.mark.parametrize("load", [load_partition_model, check_partition_spec])
@pytest.mark.parametrize(
    ("spec", "options", "found"),
    [
        ("lexcal", {}, "did you mean 'lexical'.*known: .*cross-encoder.*, embedding.*, lexical"),
        ("lexical?threshold", {}, "each given once(.|\n)*'threshold' in 'lexical.threshold'"),
        ("lexical?threshold=", {}, "each given once"),
        ("lexical?threshold=1&threshold=2", {}, "each given once"),
        ("lexical?threshold=1", {"threshold": 0.5}, "what threshold"),
        ("lexical?tempo=1", {}, "options that Lexical takes: size, threshold(.|\n)*tempo=1"),
        ("cross-encodr:/models/x", {}, "did you mean 'cross-encoder'"),
        ("cross-encodr:bert", {}, "did you mean 'cross-encoder'"),
        ("embeding:org/name", {}, "did you mean 'embedding'"),
        ("", {}, "known: .*cross-encoder"),
        ("lexical", {"temperature": 1.0}, "options that Lexical takes: size, threshold(.|\n)*temperature=1.0"),
        ("cross-encoder", {}, "missing a required argument: 'path'"),
        (
            "no_such_package.module:Class",
            {},
            "no module named 'no_such_package'(.|\n)*registered partition model: .*cross-encoder",
        ),
        ("darling_plugin.no_such:Class", {}, "no module named 'darling_plugin.no_such'"),
        (
            "darling_plugin.partition.models.lexical:Lexicl",
            {},
            "no such name; partition models defined there: Lexical",
        ),
        ("collections:OrderedDict", {}, "subclass of darling_plugin.partition.PartitionModel"),
        ("{mine}:Missing", {}, "there: Mine, WithPath, AnyOption, Unfinished"),
        ("{mine}:NotAModel", {}, "subclass of .*PartitionModel"),
        ("{mine}:function", {}, "subclass of .*PartitionModel"),
        ("{mine}:Unfinished", {}, "Unfinished lacks similarity"),
        ("{mine}:WithPath", {}, "missing a required argument: 'path'"),
        ("{mine}:WithPath", {"clustering": "greedy"}, "options that WithPath takes: path, threshold"),
        ("{folder}/nothing.py:Mine", {}, "no such file; .* holds my_models.py"),
        ("{folder}/deep/er/nothing.py:Mine", {}, "no such file; .* holds my_models.py"),
    ],
)
def test_what_cannot_be_loaded_says_why(load, mine, spec, options, found):
    with pytest.raises(DarlingError, match=found):
        load(spec.format(mine=mine, folder=mine.parent), **options)


TYPED = """
from __future__ import annotations
from typing import TYPE_CHECKING, Optional
from darling_plugin import EmbeddingModel, PairwiseModel
from darling_plugin.partition.options import Between, OneOf

if TYPE_CHECKING:
    from nowhere import Thing

class Typed(PairwiseModel):
    threshold = 0.5
    option_limits = {"size": Between(1, 9), "mode": OneOf(("fast", "exact"))}
    def __init__(
        self, count: int = 1, *, size: Optional[int] = None, rate: float | None = None, both: bool = False,
        name: str = "", mode: str = "fast", either: int | str = 0, thing: Thing = None, bare=None,
        threshold: float | None = None,
    ):
        raise AssertionError("built")
    def similarity(self, pairs):
        return [1.0] * len(pairs)

class Handing(Typed):
    option_limits = {"rate": Between(0)}
    def __init__(self, **options):
        super().__init__(**options)

class Cosine(EmbeddingModel):
    threshold = 0.5
    def embed(self, texts):
        return []
"""


@pytest.fixture
def typed(tmp_path):
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    return path


@pytest.mark.parametrize("name", ["Typed", "Handing"])
@pytest.mark.parametrize(
    ("query", "needed"),
    [
        ("both=no", "true or false as both of the partition model"),
        ("both=1", "true or false as both"),
        ("size=8.5", "a whole number from 1 to 9 as size"),
        ("size=abc", "a whole number from 1 to 9 as size"),
        ("size=true", "a whole number from 1 to 9 as size"),
        ("size=-1", "a whole number from 1 to 9 as size"),
        ("size=0", "a whole number from 1 to 9 as size"),
        ("size=10", "a whole number from 1 to 9 as size"),
        ("rate=fast", "a number"),
        ("rate=nan", "a number"),
        ("rate=1_0", "a number"),
        ("mode=exactly", "a known word as mode(.|\n)*did you mean 'exact'. known: fast, exact"),
        ("threshold=50", "a number from 0 to 1 as threshold"),
        ("threshold=-1", "a number from 0 to 1 as threshold"),
    ],
)
def test_options_are_checked_by_the_annotations_and_limits_before_anything_is_built(typed, name, query, needed):
    for load in (load_partition_model, check_partition_spec):
        with pytest.raises(DarlingError, match=needed):
            load(f"{typed}:{name}?{query}")


@pytest.mark.parametrize(
    "query",
    ["both=False", "both=true", "size=9", "rate=1e-3", "rate=3", "name=7", "mode=exact", "threshold=0.0", "thing=x"],
)
def test_what_the_annotations_allow_passes(typed, query):
    assert check_partition_spec(f"{typed}:Typed?{query}").__name__ == "Typed"


def test_a_text_becomes_what_the_annotation_names(typed):
    cls = import_user_code(str(typed)).Typed
    texts = {"name": "7", "size": "7", "rate": "7", "both": "False", "either": "x", "thing": "7", "bare": "7"}
    found = {option: read_option(cls, option, text) for option, text in texts.items()}
    assert found == {"name": "7", "size": 7, "rate": 7.0, "both": False, "either": "x", "thing": 7, "bare": 7}
    assert found["both"] is False and type(found["rate"]) is float
    assert read_option(cls, "either", "8") == 8


def test_the_argument_after_the_colon_is_read_by_its_annotation(typed):
    register_partition_model("typed")(import_user_code(str(typed)).Typed)
    check_partition_spec("typed:3")
    with pytest.raises(DarlingError, match="a whole number as count(.|\n)*'three'"):
        check_partition_spec("typed:three")


@pytest.mark.parametrize("threshold", [-1, 50, 1.0001, float("nan")])
@pytest.mark.parametrize("spec", ["default", "head:/x", "lexical", "cross-encoder:/x", "vllm:/x", "judge:http://x"])
def test_a_threshold_that_no_similarity_can_have_is_refused_of_every_model(spec, threshold):
    with pytest.raises(DarlingError, match="a number from 0 to 1 as threshold"):
        check_partition_spec(spec, threshold=threshold)
    with pytest.raises(DarlingError, match="a number from 0 to 1 as threshold"):
        check_partition_spec(f"{spec}?threshold={threshold}")


def test_cosines_may_be_negative(typed):
    for spec in ("embedding", f"{typed}:Cosine"):
        assert check_partition_spec(spec, threshold=-1)
        with pytest.raises(DarlingError, match="a number from -1 to 1 as threshold"):
            check_partition_spec(spec, threshold=-1.5)


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ("cross-encoder:/x?max_length=0", "from 1 as max_length of the partition model CrossEncoder"),
        ("cross-encoder:/x?max_response_length=-1", "from 1 as max_response_length"),
        ("cross-encoder:/x?both_orders=no", "true or false as both_orders"),
        ("cross-encoder:/x?compile_after=-1", "a number from 0 as compile_after"),
        ("cross-encoder:/x?dtype=bf16", "known: bfloat16, float16"),
        ("cross-encoder:/x?clustering=gready", "did you mean 'greedy'"),
        ("darling-modernbert?both_orders=1", "true or false as both_orders of the partition model DarlingModernBert"),
        ("embedding?dtype=int8", "known: bfloat16"),
        ("default?dtype=int8", "known: bfloat16"),
        ("darling-modernbert?input=offical", "known: trained, official"),
        ("darling-modernbert?max_response_length=0", "a whole number from 1"),
        ("head:/x?compile_after=-1", "a number from 0 as compile_after"),
        ("answer?clustering=avrage", "known: union_find"),
        ("vllm:/x?gpu_memory_utilization=20", "from 0.01 to 1 as gpu_memory_utilization"),
        ("vllm:/x?special_tokens=a,b", "three special_tokens"),
        ("served:http://x?max_length=7", "from 8 as max_length"),
        ("judge:http://x?max_chars=249", "from 250 as max_chars"),
        ("judge:http://x?task=math", "did you mean 'maths'"),
        ("judge:localhost", "the URL of a chat server"),
    ],
)
def test_the_options_of_the_built_in_models_are_checked_before_they_are_built(spec, needed):
    with pytest.raises(DarlingError, match=needed):
        check_partition_spec(spec)


def test_never_compiling_can_be_asked_for():
    check_partition_spec("cross-encoder:/x?compile_after=Infinity")


def test_checking_a_spec_builds_nothing(mine):
    assert check_partition_spec("cross-encoder:/no/such/folder").__name__ == "CrossEncoder"
    assert check_partition_spec(f"{mine}:Mine", threshold=0.4).__name__ == "Mine"


# --- import_user_code


def test_errors_of_the_users_own_code_pass_through(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import no_such_dependency\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("broken_inside", str(tmp_path / "broken_inside.py")):
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            import_user_code(name)
    before = set(sys.modules)
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(ZeroDivisionError):
            import_user_code(str(tmp_path / "raises.py"))
    assert not [name for name in set(sys.modules) - before if "raises" in name]


def test_a_file_runs_once(tmp_path):
    (tmp_path / "counts.py").write_text("VALUES = []\n")
    first = import_user_code(str(tmp_path / "counts.py"))
    assert import_user_code(str(tmp_path / "counts.py")) is first
    assert sys.modules[first.__name__] is first


@pytest.mark.parametrize("options", [{"max_length": True}, {"both_orders": 1}, {"threshold": False}])
def test_a_bool_is_no_number_and_a_number_no_bool_in_python_either(options):
    with pytest.raises(DarlingError, match=f"as {next(iter(options))} of the partition model CrossEncoder"):
        load_partition_model("cross-encoder:nowhere", **options)
