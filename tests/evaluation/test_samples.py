"""Files of other tools, read by what is in them."""

import gzip
import json
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darling_plugin.errors import DarlingError
from darling_plugin.evaluation.measures import figures
from darling_plugin.evaluation.samples import Samples, classes_of, read_samples


def read(tmp_path, rows, **options):
    path = tmp_path / "some file"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    bad = []
    return read_samples(path, lambda line, fault: bad.append((line, fault)), **options), bad


def test_noveltybenchs_files(tmp_path):
    generations = {"id": "curated-7", "prompt": "p", "model": "m", "generations": ["a", "b", "a"]}
    partitions = generations | {"partition": [0, 1, 0], "distinct": 1}
    scores = partitions | {"generation_scores": [7, 3, 0], "partition_scores": [7, 3], "utility": 1.0}
    (found,), bad = read(tmp_path, [generations])
    assert (found.id, found.responses, found.labels, found.quality, bad) == (
        "curated-7",
        ["a", "b", "a"],
        None,
        None,
        [],
    )
    (found,), _ = read(tmp_path, [partitions])
    assert found.labels == [0, 1, 0]
    (found,), _ = read(tmp_path, [scores])
    assert found.quality == [7.0, 3.0, 7.0], "a duplicate's score is its class's"
    (found,), bad = read(tmp_path, [scores | {"generation_scores": [7, 3, 5], "quality": 5.0}])
    assert (found.quality, bad) == ([7.0, 3.0, 5.0], []), "in DARLING's copy it has its own"
    zeros = {"generations": ["a", "b", "b", "c"], "partition": [0, 1, 1, 2], "partition_scores": [0, 3, 7]}
    (found,), _ = read(tmp_path, [scores | zeros | {"generation_scores": [0, 3, 5, 7]}])
    assert found.quality == [0.0, 3.0, 5.0, 7.0], "also where a class's is 0"


def test_a_runs_log_is_its_last_evaluation(tmp_path):
    def group(step, split, quality):
        return {
            **{"step": step, "split": split, "prompt": "p", "responses": ["a", "b"], "labels": [0, 1]},
            **{"quality": quality, "diversity": [1, 1], "reward": quality},
        }

    rows = [group(1, "train", [0, 0]), group(2, "eval", [1, 0]), group(4, "eval", [1, 1]), group(5, "train", [0, 1])]
    (found,), _ = read(tmp_path, rows)
    assert found.quality == [1.0, 1.0]
    (found,), _ = read(tmp_path, rows, split="train")
    assert found.quality == [0.0, 1.0]
    (found,), _ = read(tmp_path, rows, step=2)
    assert found.quality == [1.0, 0.0]
    for logged in (rows, [{"prompt": "p", "responses": ["a"]}]):
        with pytest.raises(DarlingError, match="no such split or step"):
            read(tmp_path, logged, step=3)


def test_of_a_runs_log_only_what_is_read_can_be_at_fault(tmp_path):
    whole = {"split": "train", "prompt": "p", "responses": ["a", "b"], "labels": [0, 1], "quality": [0, 1]}
    unlogged = whole | {"responses": [None, None]}
    train = [unlogged | {"step": 1}, unlogged | {"step": 2}, whole | {"step": 2}]
    found, bad = read(tmp_path, [*train, whole | {"step": 2, "split": "eval"}])
    assert (len(found), bad) == (1, [])
    found, bad = read(tmp_path, train)
    ((line, said),) = bad
    assert (len(found), line) == (1, 2) and "not logged" in said
    found, bad = read(tmp_path, [*train, "{"])
    assert [line for line, _ in bad] == [2, 4], "of which step that would be is not known"
    for bad_end in (unlogged | {"step": 3}, whole | {"step": 1, "split": "eval", "quality": [1e200, 0]}):
        faults = []
        path = tmp_path / "bad end"
        path.write_text("".join(json.dumps(each) + "\n" for each in (*train, bad_end)))
        with pytest.raises(DarlingError, match="1 lines that cannot"):
            read_samples(path, lambda line, said, to=faults: to.append(line))
        assert faults == [4], "no other step or split is read in its place"
    faults = []
    path.write_text("".join(json.dumps(unlogged | {"step": 7}) + "\n" for _ in range(30)))
    with pytest.raises(DarlingError, match="30 lines that cannot"):
        read_samples(path, lambda line, said: faults.append(line))
    assert faults == list(range(1, 11)), "no more are named than ten"


def test_a_pipe_is_read_whole(tmp_path):
    lines = [json.dumps({"prompt": f"p{k}", "responses": ["a"], "quality": [k], "more": ""}) for k in range(64)]
    lines = [line[:-2] + "y" * (511 - len(line)) + line[-2:] + "\n" for line in lines]  # 512 bytes each
    for content in ("".join(lines).encode(), gzip.compress("".join(lines).encode())):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        found = read_samples(Path(f"/dev/fd/{reading}"), pytest.fail)
        assert [each.quality for each in found] == [[float(k)] for k in range(64)]
        os.close(reading)


def test_splits_of_a_data_set_are_all_read(tmp_path):
    rows = [{"prompt": f"p{k}", "responses": ["a"], "split": name} for k, name in enumerate(("one", "two", "two"))]
    found, bad = read(tmp_path, rows)
    assert ([each.prompt for each in found], bad) == (["p0", "p1", "p2"], [])
    found, _ = read(tmp_path, [rows[0], rows[1] | {"split": "eval"}])
    assert [each.split for each in found] == ["one", "eval"], "a log has none but train and eval"
    found, _ = read(tmp_path, rows, split="two")
    assert [each.prompt for each in found] == ["p1", "p2"]
    assert classes_of(tmp_path / "some file", found) == "as the file has them"
    found, _ = read(tmp_path, [{"prompt": "p", "responses": ["a"]}, rows[0] | {"split": "train"}])
    assert len(found) == 2, "one of no split is of no other"


def test_null_is_no_id(tmp_path):
    found, _ = read(tmp_path, [{"prompt": "p", "responses": ["a"], "id": each} for each in (None, 0, "x")])
    assert [each.id for each in found] == ["1", "0", "x"]
    found, _ = read(tmp_path, [{"doc_id": None, "arguments": [["Q", {}]], "resps": [["a"]]}] * 2)
    assert [each.id for each in found] == ["1", "2"]


def test_a_message_may_have_no_content_or_parts(tmp_path):
    def message(content):
        return [{"role": "assistant", "content": content}]

    parts = [{"type": "text", "text": "one"}, {"type": "image", "image": "i.png"}, {"type": "text", "text": "two"}]
    responses = [message(None), message(parts), message("as it is"), [*message("above"), *message(None)]]
    (found,), bad = read(tmp_path, [{"prompt": message([*parts[:2], "three"]), "responses": responses}])
    assert (found.prompt, bad) == ("one\nthree", [])
    assert found.responses == ["", "one\ntwo", "as it is", "above\n"]


def test_what_the_quality_gate_left_out_has_no_class_and_the_group_is_partitioned_again(tmp_path):
    (found,), bad = read(tmp_path, [{"prompt": "p", "responses": ["a", "b"], "labels": [0, -1], "quality": [1, 0]}])
    assert (found.labels, found.quality, bad) == (None, [1.0, 0.0], [])


def test_a_runs_log_says_what_made_its_classes(tmp_path):
    path, of_run = tmp_path / "partitions.jsonl", [Samples("1", "p", ["a"], split="eval")]
    assert classes_of(path, of_run) == "as the file has them"
    model = {"class": "some.module.Default", "threshold": 0.3, "clustering": "union_find"}
    for written in ("[", "{}", '{"partition_model": {"class": 3}}'):
        (tmp_path / "run.json").write_text(written)
        assert classes_of(path, of_run) == "as the file has them"
    for text, said in (("whole", ""), ("after:</think>", ", after:</think>")):
        (tmp_path / "run.json").write_text(json.dumps({"partition_model": model, "darling": {"partition_text": text}}))
        assert classes_of(path, of_run) == f"as the file has them, by Default, union_find, threshold 0.3{said}"


def test_what_darling_partition_writes(tmp_path):
    (found,), _ = read(tmp_path, [{"prompt": "p", "responses": ["a", "b"], "labels": [0, 0], "diversity": [0, 0]}])
    assert found.labels == [0, 0] and found.quality is None


def test_lm_evals_samples(tmp_path):
    row = {
        **{"doc_id": 3, "doc": {"question": "2+2?"}, "target": "4", "resps": [["It is 4."]], "filtered_resps": ["4"]},
        **{"arguments": {"gen_args_0": {"arg_0": "Q: 2+2?\nA:", "arg_1": {"until": []}}}, "filter": "none"},
        **{"metrics": ["exact_match"], "exact_match": 1.0},
    }
    (found,), _ = read(tmp_path, [row])
    assert (found.id, found.prompt, found.responses) == ("3", "Q: 2+2?\nA:", ["It is 4."])
    assert (found.quality, found.reference) == ([1.0], "4")
    (found,), _ = read(tmp_path, [row | {"arguments": [["Q", {}]], "resps": [["a", "b", "c"]]}])
    assert (found.prompt, found.responses, found.quality) == ("Q", ["a", "b", "c"], None), "one metric for three"


def test_lm_eval_writes_each_document_once_a_filter(tmp_path):
    row = {"doc_id": 3, "arguments": [["Q", {}]], "resps": [["a"]], "metrics": ["exact_match"]}
    rows = [row | {"filter": "strict-match", "exact_match": 0}, row | {"filter": "flexible", "exact_match": 1}]
    (found,), bad = read(tmp_path, rows)
    assert (found.quality, bad) == ([0.0], [])


def test_a_loglikelihood_task_of_lm_eval_is_named_as_one(tmp_path):
    good = {"doc_id": 1, "arguments": [["Q", {}]], "resps": [["a"]]}
    for resps in ([[["-6.5", "False"]], [["-7.1", "True"]]], [[[-6.5, False]]], [[-123.4]]):
        (found,), ((line, fault),) = read(tmp_path, [good, good | {"doc_id": 2, "resps": resps}])
        assert (found.id, line) == ("1", 2) and "loglikelihood task" in fault


KEYS = "prompt responses generations labels partition quality generation_scores partition_scores step split id".split()
KEYS += "resps arguments metrics target filter input output score completion answers".split()
KEYS += "a_reward b_reward advantage".split()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(["a", "", "1", "score"])
    | st.sampled_from([10**400, 1e308, -1e308, 1e100, sys.float_info.max]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "a"]), inner, max_size=2),
    max_leaves=6,
)
TEXTS = st.lists(st.text(max_size=3), min_size=1, max_size=3)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES | TEXTS, max_size=8), max_size=4))
def test_whatever_a_line_holds_it_is_read_or_named(tmp_path_factory, rows):
    good = {"prompt": "p", "responses": ["a"]}
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, good]), encoding="utf-8")
    bad = []
    try:
        found = read_samples(path, lambda line, fault: bad.append(line))
    except DarlingError:  # the good line is of no step
        return
    assert set(bad) <= set(range(1, len(rows) + 1))
    for each in found:
        n = len(each.responses)
        assert n and all(values is None or len(values) == n for values in (each.quality, each.labels))
        assert each.quality is None or all(abs(quality) <= 1e100 for quality in each.quality)
        assert all(map(math.isfinite, figures(each, each.labels or [0] * n, [1, 2], verifiable=False).values()))
        assert each.labels is None or min(each.labels) >= 0


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "completions.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DarlingError, match="a parquet file that pyarrow can read"):
        read_samples(path, pytest.fail)


def test_verls_rows_are_grouped_by_prompt_and_the_last_step_is_read(tmp_path):
    rows = [
        {"input": f"q{k % 2}", "output": f"o{k}", "gts": "4", "score": float(k), "step": step, "acc": 9}
        for step in (1, 2)
        for k in range(4)
    ]
    found, _ = read(tmp_path, rows)
    assert [(each.prompt, each.responses, each.quality) for each in found] == [
        ("q0", ["o0", "o2"], [0.0, 2.0]),
        ("q1", ["o1", "o3"], [1.0, 3.0]),
    ]
    assert found[0].reference == "4"
    found, _ = read(tmp_path, rows, quality_key="acc", step=1)
    assert found[1].quality == [9.0, 9.0]


def test_trls_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    chat = [{"role": "user", "content": "Name a bird."}]
    rows = [
        {"step": 10, "prompt": chat, "completion": [{"role": "assistant", "content": text}]}
        | {"accuracy_reward": 1.0, "format_reward": 0.5, "n_tokens": 275, "advantage": 3.0}
        for text in ("owl", "wren")
    ]
    path = tmp_path / "completions_00010.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (found,) = read_samples(path, pytest.fail)
    assert (found.prompt, found.responses, found.quality) == ("Name a bird.", ["owl", "wren"], [1.5, 1.5])
    assert read_samples(path, pytest.fail, quality_key="format_reward")[0].quality == [0.5, 0.5]
    with pytest.raises(DarlingError, match="numbers as c"):
        read_samples(path, pytest.fail, quality_key="c")


def test_columns_that_may_be_no_rewards_are_named(tmp_path, caplog):
    row = {"prompt": "p", "completion": "a", "correctness": 1.0, "n_tokens": 200, "advantage": 0.5}
    (found,), _ = read(tmp_path, [row])
    assert found.quality == [201.0] and "the sum of correctness, n_tokens" in caplog.text
    caplog.clear()
    (found,), _ = read(tmp_path, [row], quality_key="correctness")
    assert (found.quality, caplog.text) == ([1.0], "")


def test_ms_swifts_steps(tmp_path):
    row = {"step": ["1", "1"], "prompt": ["p", "p"], "completion": ["a", "b"], "accuracy": [1.0, 0.0]}
    (found,), _ = read(tmp_path, [row])
    assert (found.prompt, found.responses, found.quality) == ("p", ["a", "b"], [1.0, 0.0])
    (found,), _ = read(tmp_path, [row | {"step": ["9", "9"]}, row | {"step": ["10", "10"], "completion": ["c", "d"]}])
    assert found.responses == ["c", "d"], "10 comes after 9"
    (found,), _ = read(tmp_path, [row, row | {"step": ["2", "2"]}], step=1)
    assert found.step == 1
    new = {"gen_step": [7, 7], "messages": [[{"role": "user", "content": "p"}]] * 2, "completion": ["a", "b"]}
    new |= {"accuracy": [1.0, 0.0], "format": [0.5, 0.5], "advantages": [1.0, -1.0], "entropy": [0.3, 0.4]}
    (found,), _ = read(tmp_path, [new])
    assert (found.step, found.prompt, found.quality) == (7, "p", [1.5, 0.5]), "neither steps nor entropy are rewards"


def test_bad_lines_are_named_and_the_rest_goes_on(tmp_path):
    good = {"prompt": "p", "responses": ["a"]}
    rows = [good, "{", "[1]", {"prompt": "p"}, {"prompt": "p", "responses": []}, {"prompt": 3, "responses": ["a"]}]
    rows[5:5] = [good | {"partition": [3], "partition_scores": [1]}, good | {"quality": [10**400]}]
    rows += [good | {"labels": [0, 1]}, good | {"quality": [1, 2]}, good | {"quality": [None]}, good]
    found, bad = read(tmp_path, rows)
    assert [line for line, _ in bad] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [each.quality for each in found] == [None] * 3, "a quality that one response lacks is none"
    with pytest.raises(DarlingError, match="none that can be read"):
        read(tmp_path, ["{"])
    with pytest.raises(DarlingError, match="a file with samples"):
        read_samples(tmp_path / "missing", pytest.fail)


def test_a_quality_of_which_no_mean_can_be_made_is_named(tmp_path):
    good = {"prompt": "p", "completion": "a", "a_reward": 1e100, "b_reward": -1.0, "advantage": 0.0}
    huge = [good | {"a_reward": 1e308, "b_reward": 1e308}, good | {"b_reward": -1e101}, good | {"a_reward": 10**400}]
    huge.append({"prompt": "p", "responses": ["a", "b"], "quality": [1e308, 1e308]})
    huge.append({"doc_id": 1, "arguments": [["Q", {}]], "resps": [["a"]], "metrics": ["x"], "x": 1e308})
    (found,), bad = read(tmp_path, [good, *huge])
    assert found.quality == [1e100]
    assert sorted(line for line, _ in bad) == [2, 3, 4, 5, 6]
    assert all("needs a quality from -1e+100 to 1e+100" in fault for _, fault in bad)


def test_numbers_that_are_no_rewards_make_no_quality(tmp_path):
    row = {"prompt": "p", "response": "a", "label": 1, "length": 100, "temperature": 0.7, "seed": 0}
    (found,), bad = read(tmp_path, [row])
    assert (found.quality, found.quality_from, bad) == (None, None, [])
    (found,), _ = read(tmp_path, [row | {"my_reward": 0.5, "other_reward": None, "advantage": 1.0}])
    assert (found.quality, found.quality_from) == ([0.5], "my_reward")
    (found,), _ = read(tmp_path, [{"prompt": "p", "completion": "a", "judged": 3, "advantage": 1.0, "entropy": 9.0}])
    assert (found.quality, found.quality_from) == ([3.0], "judged"), "the only one before the advantage"


def test_one_column_rates_every_row_of_a_file(tmp_path):
    """A row that lacks its reward has none: no other number takes its place."""
    row = {"prompt": "p", "completion": "a", "accuracy_reward": 1.0, "length": 500, "advantage": 0.1}
    missing = {"accuracy_reward": None}, {"accuracy_reward": math.nan}
    for other in missing:
        (found,), bad = read(tmp_path, [row, row | other, row])
        assert (found.quality, found.quality_from, bad) == (None, "accuracy_reward", [])
        found, _ = read(tmp_path, [row | other, row | {"prompt": "q"}])
        assert [each.quality for each in found] == [None, [1.0]], "the first row does not decide"
    verl = {"input": "p", "output": "a", "score": math.nan, "reward_format": 50}
    found, bad = read(tmp_path, [verl, verl | {"input": "q", "score": 1}])
    assert [(each.quality, each.quality_from) for each in found] == [(None, "score"), ([1.0], "score")] and not bad


def test_true_and_false_are_qualities_and_texts_are_not(tmp_path):
    row = {"prompt": "p", "response": "a", "score": True}
    (found,), bad = read(tmp_path, [row, row | {"score": False}])
    assert (found.quality, bad) == ([1.0, 0.0], [])
    (found,), ((line, fault),) = read(tmp_path, [row, row | {"score": "good"}])
    assert (found.responses, found.quality, line) == (["a"], [1.0], 2) and "found 'good'" in fault
    group = {"prompt": "p", "responses": ["a", "b"]}
    (found,), ((line, fault),) = read(tmp_path, [group, group | {"quality": ["1", "0"]}])
    assert (found.quality, line) == (None, 2) and "found '1'" in fault
    (found,), bad = read(tmp_path, [group | {"quality": [1, math.nan]}])
    assert (found.quality, bad) == (None, []), "NaN is none"


def test_lines_without_a_step_stay_beside_those_with_one(tmp_path):
    rows = [{"prompt": f"p{k}", "responses": ["a"], **({"step": 3} if k else {})} for k in range(3)]
    found, _ = read(tmp_path, rows)
    assert [each.prompt for each in found] == ["p0", "p1", "p2"]


def test_a_compressed_file_is_read_by_what_is_in_it(tmp_path):
    line = json.dumps({"prompt": "p", "responses": ["a", "b"], "quality": [1, 0]}).encode()
    (tmp_path / "some file").write_bytes(gzip.compress(line + b"\n"))
    bad = []
    (found,) = read_samples(tmp_path / "some file", lambda *fault: bad.append(fault))
    assert (found.responses, found.quality, bad) == (["a", "b"], [1.0, 0.0], [])
    (tmp_path / "some file").write_bytes(gzip.compress(line + b"\n")[:-9])
    with pytest.raises(DarlingError, match="a whole file with samples"):
        read_samples(tmp_path / "some file", lambda *fault: bad.append(fault))
