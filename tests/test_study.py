"""The study: its arms are commands that the launcher takes, its oracle knows answers, its results become a table."""

import json
import sys
from pathlib import Path

import pytest

from darling_plugin.commands.evaluate import main as evaluate
from darling_plugin.config import DarlingConfig, parse
from darling_plugin.partition import Group

STUDY = Path(__file__).parents[1] / "examples" / "study"
sys.path.insert(0, str(STUDY))

import arms  # noqa: E402
import study  # noqa: E402
import tables  # noqa: E402
import years  # noqa: E402
from answer_named import AnswerNamed  # noqa: E402


@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arms_flags_are_the_launchers(arm):
    config, rest = parse(["--darling.enable", *(flag.format(study=STUDY) for flag in arms.ARMS[arm])])
    config.check()
    assert not rest
    assert (config != DarlingConfig(enable=True)) == (
        arm.removeprefix("years-").removeprefix("long-") not in ("classes", "untrained")
    )


@pytest.mark.parametrize("arm", [arm for arm in arms.ARMS if not arm.endswith("untrained")])
def test_classes_are_joined_by_union_find_but_in_the_arm_that_is_named_after_another(arm, tmp_path):
    argv, _ = study.command(arm, 1, STUDY, tmp_path)
    config, _ = parse(["--darling.enable", *argv[argv.index("--darling.clustering") :]])
    assert config.clustering == ("average" if arm.startswith("classes-average") else "union_find")


def test_the_runs_are_the_main_arms_with_three_seeds_the_second_tasks_with_two_and_all_others_with_one():
    for arm in arms.ARMS:
        seeds = 3 if arm in (*arms.MAIN, "untrained") else 2 if arm.startswith("years-") else 1
        assert sorted(seed for each, seed in arms.RUNS if each == arm) == [1, 2, 3][:seeds]


def test_a_long_run_goes_four_times_as_often_through_the_prompts(tmp_path):
    for arm, episodes, evaluated in (("classes", "4", "12"), ("long-classes", "16", "48")):
        argv, _ = study.command(arm, 1, STUDY, tmp_path)
        assert argv[argv.index("--train.num_episodes") + 1] == episodes
        assert argv[argv.index("--eval.steps") + 1] == evaluated


def test_the_oracle_goes_by_the_first_accepted_answer():
    prompt = json.loads((STUDY.parent / "data/many_answers.jsonl").read_text().splitlines()[1])
    assert prompt["input"] == "What is one example of a thing in a forest?"
    responses = ["A tree.", "I see trees and a fox.", "A fox", "Nothing.", "No idea.", "Nothing."]
    model = AnswerNamed()
    assert model.partition([Group(f"<|user|>{prompt['input']}<|end|>", responses)])[0].tolist() == [0, 0, 1, 2, 3, 2]
    with pytest.raises(KeyError):
        model.partition([Group("a prompt of nobody's", ["a", "b"])])


def test_a_split_holds_36_prompts_out_and_is_the_seeds():
    for seed in (1, 2):
        train, held_out = study.split(seed)
        assert (len(train), len(held_out)) == (100, 36)
        assert not {each["input"] for each in train} & {each["input"] for each in held_out}
    assert study.split(1)[1] != study.split(2)[1] and study.split(1) == study.split(1)


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Results of two seeds of an arm, from logs in which half of the responses are valid, by two answers."""
    monkeypatch.setattr(tables, "STUDY", tmp_path)
    (tmp_path / "results").mkdir()
    for seed in (1, 2):
        _, held_out = study.split(seed)
        lines = []
        for record in held_out:
            first, second, *_ = record["answers"].split("|")
            texts = [first, second, f"{first}, and what nobody accepts", "nothing"] * 8  # the third is not paid
            line = {"step": 12, "split": "eval", "prompt": f"<|user|>{record['input']}", "responses": texts}
            lines.append(line | {"quality": [1, 1, 0, 0] * 8, "labels": [0, 1, 2, 2] * 8})
            lines.append({**lines[-1], "step": 3, "split": "train", "diversity": [0.5] * 32})
        (tmp_path / f"{seed}").mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{seed}" / "partitions.jsonl").write_text(text)
        kept = study.result("classes", seed, tmp_path / f"{seed}", 60.0, "1234567")
        (tmp_path / "results" / f"classes-{seed}.json").write_text(json.dumps(kept))
    return tmp_path


def test_results_are_counted_from_the_logs(made_up):
    runs = tables.read()["classes"]
    figures = tables.of_arm(runs, "quality")
    assert (figures.mean, figures.low, figures.high) == (0.5, 0.5, 0.5), "the same in both seeds"
    assert tables.of_arm(runs, "distinct_32").mean == pytest.approx(2)
    assert 1.5 < tables.of_arm(runs, "distinct_8").mean < 2
    assert tables.of_arm(runs, "classes_8").mean > tables.of_arm(runs, "distinct_8").mean, (
        "what is not valid is a class too"
    )
    assert runs[0]["training"] == [
        {"step": 3, "quality": 0.5, "diversity": 0.5, "classes": 3.0, "distinct_valid": 2.0}
        | {"one_answer": 56, "one_answer_split": 0, "two_answers": 64, "two_answers_joined": 0}
    ]


def test_its_figures_are_those_of_darling_evaluate(made_up):
    """As docs/study.md gives the commands: classes by the answer named, and those that the run's log has."""
    log = made_up / "1" / "partitions.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for k, line in enumerate(line for line in lines if line["split"] == "eval"):  # another mixture for each prompt
        line["responses"] = sorted(line["responses"])[k % 24 :] + line["responses"][: k % 24]
        rewards = study.NAMES.reward.reward_func(
            [line["prompt"] + text for text in line["responses"]],
            [line["prompt"]] * 32,
            [next(each["answers"] for each in study.NAMES.records() if each["input"] in line["prompt"])] * 32,
        )
        line["quality"] = rewards["rewards"].tolist()
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made_up / "results" / "classes-1.json").write_text(
        json.dumps(study.result("classes", 1, made_up / "1", 60.0, "1234567"))
    )
    (made_up / "results" / "classes-2.json").unlink()
    page = {name: tables.of_arm(tables.read()["classes"], name).mean for name in (*tables.FIGURES, "pass@1")}
    assert 0.2 < page["quality"] < 0.8 and page["distinct_8"] != page["classes_8"]
    oracle = ["--again", "classes", "--partition_model", f"{STUDY}/answer_named.py:AnswerNamed"]
    found = {}
    for name, flags in (("oracle", oracle), ("log", [])):
        out = made_up / name
        assert evaluate([f"run={log}", "-o", str(out), "--no_cosine", "--k", "1", "8", "32", *flags]) == 0
        found[name] = json.loads((out / "summary.json").read_text())["models"]["run"]["figures"]
    for name, of in {"quality": "quality", "pass@1": "pass@1", "pass@8": "pass@8"}.items():
        assert found["log"][of]["mean"] == pytest.approx(page[name], abs=1e-9)
    for k in (8, 32):
        assert found["oracle"][f"distinct_correct_{k}"]["mean"] == pytest.approx(page[f"distinct_{k}"], abs=1e-9)
        assert found["log"][f"distinct_{k}"]["mean"] == pytest.approx(page[f"classes_{k}"], abs=1e-9)


def test_what_classes_make_of_answers_is_counted_in_pairs(made_up):
    _, held_out = study.split(1)
    first, second, *_ = held_out[0]["answers"].split("|")
    # Of one answer three pairs, two of them in two classes; with the other answer three, one of them in one class. The
    # last two count for none: one is left out by a gate, one is not valid.
    record = {"step": 5, "split": "train", "prompt": held_out[0]["input"]}
    record |= {"responses": [first] * 3 + [second, first, "none"], "diversity": [0.5] * 6}
    record |= {"quality": [1, 1, 1, 1, 1, 0], "labels": [0, 0, 1, 1, -1, 0]}
    log = made_up / "1" / "partitions.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"train"' not in line))
    with log.open("a") as file:
        file.write(json.dumps(record) + "\n")
    kept = study.result("classes", 1, made_up / "1", 60.0, "1234567")
    (made_up / "results" / "classes-1.json").write_text(json.dumps(kept))
    (made_up / "results" / "classes-2.json").unlink()
    (row,) = tables.seen_in_training(tables.read()).splitlines()[2:]
    assert row == "| `classes` | 1 | 1 to 12 | 3.0 | 67% | 3.0 | 33% |"


def test_the_page_gets_a_table_and_a_picture(made_up, monkeypatch):
    monkeypatch.setattr(tables, "DOCS", made_up)
    for name in ("study.md", "methods.md"):
        (made_up / name).write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.main()
    page = (made_up / "study.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| `classes` | 1, 2 | 0.500 (0.500 to 0.500) |" in page
    assert (made_up / "study" / "frontier.png").stat().st_size > 10_000


def test_differences_are_of_the_same_prompts_and_of_the_seeds_that_both_arms_have(made_up):
    by_arm = tables.read()
    better = json.loads(json.dumps(by_arm["classes"][0]))
    for k, prompt in enumerate(better["curve"][-1]["prompts"]):
        prompt["quality"] += 0.25
        prompt["distinct_8"] += k % 2
    by_arm["oracle"] = [better, {**better, "seed": 9}]
    (row,) = tables.differences(by_arm, ("classes", "oracle", "additive"), "classes").splitlines()[2:]
    assert row.startswith("| `oracle` | 1 | +0.250 (+0.250 to +0.250) | +0.500 (+0.3"), row


def test_an_arm_is_held_against_a_base_of_all_its_seeds_or_stands_alone(made_up):
    by_arm = tables.read()
    by_arm["quality"] = by_arm["classes"][:1]
    row, _ = tables.by_step(by_arm, "quality").splitlines()[2:]
    assert row == "| `classes` | 1, 2 | 12 | 0.500 | – | 1.86 | – | 2.00 | – |"
    by_arm["quality"] = by_arm["classes"]
    row, _ = tables.by_step(by_arm, "quality").splitlines()[2:]
    assert "| 0.500 | +0.000 (+0.000 to +0.000) | 1.86 | 1.00 (1.00 to 1.00) |" in row


def test_weights_are_compared_on_the_seeds_that_each_has(made_up, monkeypatch):
    runs = tables.read()["classes"]
    by_arm = {arm: runs[:1] for _, arm in tables.WEIGHTS["classes"]}
    assert not tables.whole_kinds({arm: own for arm, own in by_arm.items() if arm != "classes-1.5"})
    better = json.loads(json.dumps(runs))
    for prompt in better[0]["curve"][-1]["prompts"]:
        prompt["quality"] += 0.25
        prompt["distinct_32"] *= 2
    by_arm["classes"] = better
    assert tables.whole_kinds(by_arm) == ["classes"]
    rows = tables.by_weight(by_arm).splitlines()[2:]
    assert rows[0] == "| `quality` | 1 | 0 | 0.500 | – | 1.86 | – | 2.00 | – |"
    assert rows[2].startswith("| `classes` | 1 | 1 | 0.750 | +0.250 (+0.250 to +0.250) | 1.86 | 1.00 (")
    assert rows[2].endswith("| 4.00 | 2.00 (2.00 to 2.00) |")
    assert [row.split(" | ")[2] for row in rows] == ["0", "0.5", "1", "1.5"]
    two_kinds = by_arm | {arm: runs[:1] for weight, arm in tables.WEIGHTS["expected"] if weight}
    assert len(tables.by_weight(two_kinds).splitlines()[2:]) == 7, "quality alone once"
    monkeypatch.setattr(tables, "DOCS", made_up)
    monkeypatch.setattr(tables, "read", lambda: two_kinds)
    for name in ("study.md", "methods.md"):
        (made_up / name).write_text(f"{tables.BEGIN}\n{tables.END}")
    tables.main()
    assert "\n| `classes-0.5` | 1 | 1 to 12 | 56.0 | 0% | 64.0 | 0% |\n" in (made_up / "study.md").read_text()
    assert (made_up / "study" / "strengths.png").stat().st_size > 10_000


def test_the_ends_are_held_beside_the_oracles_of_the_same_weight_and_seeds(made_up):
    runs = tables.read()["classes"]
    worse = json.loads(json.dumps(runs))
    for prompt in worse[0]["curve"][-1]["prompts"]:
        prompt["quality"] -= 0.25
    by_arm = {"classes": worse, "oracle": runs[:1], "classes-1.5": runs[1:], "oracle-1.5": runs[:1]}
    (row,) = tables.beside_the_oracle(by_arm).splitlines()[2:]  # weight 1.5 has no seed in common
    assert row.startswith("| `classes` | 1 | 1 | 0.250 | -0.250 (-0.250 to -0.250) | 1.86 | 1.00 (")


def test_the_weights_of_the_tables_are_those_of_the_arms():
    assert set(arms.STRENGTHS) < set(tables.COLOURS), "the picture by weight draws each of them"
    for kind in arms.STRENGTHS:
        for weight, arm in tables.WEIGHTS[kind]:
            config, _ = parse(["--darling.enable", *(flag.format(study=STUDY) for flag in arms.ARMS[arm])])
            assert config.reward == "quality" if weight == 0 else config.weight == weight


def test_arms_that_hold_out_other_prompts_are_not_compared(made_up):
    by_arm = tables.read()
    other = {**by_arm["classes"][0], "prompts": by_arm["classes"][1]["prompts"]}
    with pytest.raises(ValueError, match="oracle and classes of seed 1 hold out other prompts"):
        tables.differences({**by_arm, "oracle": [other]}, ("oracle",), "classes")


def test_an_interval_draws_seeds_and_their_prompts():
    seeds_alone = tables.pooled([[0.0, 0.0], [1.0, 1.0]])
    assert (seeds_alone.mean, seeds_alone.low, seeds_alone.high) == (0.5, 0.0, 1.0)
    prompts_alone = tables.pooled([[0.0, 1.0] * 50] * 2)
    assert prompts_alone.mean == 0.5 and 0.4 < prompts_alone.low < 0.45 < 0.55 < prompts_alone.high < 0.6


def run_of(seed, *curve):
    """A run whose evaluations have this quality and variety, in each of four prompts."""
    return {"seed": seed, "curve": [{"prompts": [{"quality": q, "distinct_8": d}] * 4} for q, d in curve]}


def test_an_arm_is_held_against_what_its_base_had_at_the_same_quality():
    base = [run_of(1, (0.5, 3.0), (0.7, 2.5), (0.9, 2.0)), run_of(2, (0.4, 2.0), (0.8, 3.0), (0.9, 2.0))]
    arms = {
        "quality": base,
        "classes": [run_of(1, (0.2, 9.0), (0.8, 3.25)), run_of(2, (0.6, 4.0)), run_of(3, (0.6, 9.0))],
        "oracle": [run_of(1, (0.95, 2.5))],  # better than the base ever was: held against its best
    }
    classes, oracle = tables.at_equal_quality(arms, "quality").splitlines()[2:]
    times = "1.38 (1.33 to 1.44)"
    # Seed 1: 2.25 at 0.8. Seed 2: its first evaluation had less of both than its second, so 3, which came with 0.8.
    assert classes == f"| `classes` | 1, 2 | 0.700 | 3.62 | 2.62 | +1.00 (+1.00 to +1.00) | {times} | 2 of 2 |"
    assert oracle == "| `oracle` | 1 | 0.950 | 2.50 | 2.00 | +0.50 (+0.50 to +0.50) | 1.25 (1.25 to 1.25) | 0 of 1 |"


def test_an_interval_of_one_seed_draws_the_prompts_of_both_together():
    base, arm = run_of(1, (0.5, 3.0), (0.9, 2.0)), run_of(1, (0.9, 2.0))
    for runs, k in ((base, 0), (base, 1), (arm, 0)):
        runs["curve"][k]["prompts"] = [
            {**p, "distinct_8": p["distinct_8"] + n} for n, p in enumerate([*runs["curve"][k]["prompts"]])
        ]
    (row,) = tables.at_equal_quality({"quality": [base], "classes": [arm]}, "quality").splitlines()[2:]
    assert "| +0.00 (+0.00 to +0.00) |" in row, "the same prompts are hard for both"


@pytest.mark.parametrize(
    ("response", "year"),
    [
        ("A year between 1920 and 1960 is 1945.", "1945"),
        ("1931-1940", "1931"),
        ("In 1961, or in 1945", None),  # the first counts: a list of guesses buys nothing
        ("1920", None),
        ("the 1930s", None),
        ("1,945 or 19450 or 1945.5", None),
        ("Some day.", None),
    ],
)
def test_the_second_task_goes_by_the_first_year_that_is_named(response, year):
    record = {"input": "What is one example of a year between 1920 and 1960?", "answers": "1920-1960"}
    assert years.named_year(response, record["answers"]) == year
    rewards = years.reward_func([record["input"] + response], [record["input"]], [record["answers"]])
    assert rewards["rewards"].tolist() == [float(year is not None)]


def test_the_second_task_has_as_many_prompts_split_alike_and_a_reward_of_its_own(tmp_path):
    train, held_out = study.split(1, study.task_of("years-classes"))
    assert (len(train), len(held_out)) == (100, 36)
    assert not {each["input"] for each in train} & {each["input"] for each in held_out}
    for arm, file in (("classes", "reward_named_answer.py"), ("years-classes", "years.py")):
        argv, _ = study.command(arm, 1, STUDY, tmp_path)
        assert Path(argv[argv.index("--reward.remote_url") + 1]).name == file
        first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
        assert first == study.split(1, study.task_of(arm))[0][0]


def test_the_second_task_gets_tables_of_its_own(made_up, monkeypatch):
    monkeypatch.setattr(tables, "DOCS", made_up)
    _, held_out = study.split(1, study.task_of("years-classes"))
    for arm, right in (("years-quality", 8), ("years-classes", 16)):
        lines = []
        for record in held_out:
            first = int(record["answers"].split("-")[0])
            texts = [f"{first + 1 + k % 4}" for k in range(right)] + ["no year"] * (32 - right)
            line = {"step": 12, "split": "eval", "prompt": f"<|user|>{record['input']}", "responses": texts}
            lines.append(line | {"quality": [1] * right + [0] * (32 - right), "labels": [0] * 32})
        (made_up / arm).mkdir()
        (made_up / arm / "partitions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        kept = study.result(arm, 1, made_up / arm, 60.0, "1234567")
        (made_up / "results" / f"{arm}-1.json").write_text(json.dumps(kept))
    for name in ("study.md", "methods.md"):
        (made_up / name).write_text(f"{tables.BEGIN}\n{tables.END}")
    tables.main()
    page = (made_up / "study.md").read_text()
    quality, _ = (line for line in page.splitlines() if line.startswith("| `years-quality`"))
    assert quality.startswith("| `years-quality` | 1 | 0.250 (0.250 to 0.250) |") and "| 4.000 (4.000" in quality
    assert "| less `years-quality` | seeds | pass@1 |" in page
    assert "| `years-classes` | 1 | +0.250 (+0.250 to +0.250) |" in page
    # Four answers, m samples each: of 8 they are 4 (1 - C(32 - m, 8) / C(32, 8)).
    by_step = "| `years-classes` | 1 | 12 | 0.500 | +0.250 (+0.250 to +0.250) | 2.82 | "
    assert f"{by_step}1.59 (1.59 to 1.59) | 4.00 | 1.00 (1.00 to 1.00) |" in page
    assert "| `years-quality` | 1 | 12 | 0.250 | – | 1.77 | – | 4.00 | – |" in page
    assert "years" not in page[: page.index("The second task:")]
