"""What the study compares: each arm is the demo's command with these flags beside it, each run an arm with a seed."""

ORACLE = ("--darling.partition_model", "{study}/answer_named.py:AnswerNamed")
EXPECTED = ("--darling.diversity", "expected")
# DARLING's hooks log it, and its reward is the quality alone: dr_grpo, GRPO without the standard deviation.
QUALITY = ("--darling.reward", "quality")
FOUR_GRAMS = ("--darling.partition_model", "lexical:4", *EXPECTED)

# What joins the classes of every arm without another's name: the official code's, `default`'s when the study began.
UNION_FIND = "union_find"
AVERAGE = ("--darling.clustering", "average")  # the one that `default` has as it ships

UNTRAINED = "untrained"  # the model as it is, on the same held-out prompts
YEARS = "years-"  # what the arms of the second task begin with
LONG = "long-"  # and those that are trained four times as long
STRENGTHS = ("classes", "classes-average", "expected", "oracle")  # at weight 1, and named after another weight
ARMS: dict[str, tuple[str, ...]] = {
    UNTRAINED: (),
    "quality": QUALITY,
    "classes": (),
    "classes-0.5": ("--darling.weight", "0.5"),
    "classes-1.5": ("--darling.weight", "1.5"),
    "classes-average": AVERAGE,
    "classes-average-0.5": (*AVERAGE, "--darling.weight", "0.5"),
    "classes-average-1.5": (*AVERAGE, "--darling.weight", "1.5"),
    "expected": EXPECTED,
    "expected-0.5": (*EXPECTED, "--darling.weight", "0.5"),
    "expected-1.5": (*EXPECTED, "--darling.weight", "1.5"),
    "oracle": ORACLE,
    "oracle-0.5": (*ORACLE, "--darling.weight", "0.5"),
    "oracle-1.5": (*ORACLE, "--darling.weight", "1.5"),
    "with-std": ("--darling.advantage", "centered_std"),
    "additive": ("--darling.reward", "additive"),
    "4-gram": FOUR_GRAMS,
    # The methods of the field that ranked an earlier run's responses least as DARLING did (docs/methods.md).
    "marginal-relevance": ("--darling.reward", "marginal_relevance"),
    "nearest-neighbour": ("--darling.reward", "nearest_neighbour", "--darling.quality_gate", "reference:0.5"),
    "reasoning-novelty": ("--darling.reward", "reasoning_novelty"),
    f"{YEARS}{UNTRAINED}": (),
    f"{YEARS}quality": QUALITY,
    f"{YEARS}classes": (),
    f"{LONG}quality": QUALITY,
    f"{LONG}classes": (),
}
# The first round has each arm that the others are measured by, the next ones its other seeds.
MAIN = ("quality", "classes", "expected", "oracle")
RUNS: tuple[tuple[str, int], ...] = (
    *((arm, 1) for arm in (*MAIN, UNTRAINED)),
    *((arm, 1) for arm in ARMS if arm.startswith(YEARS)),
    *((arm, 2) for arm in (*MAIN, UNTRAINED)),
    *((arm, 1) for arm in ARMS if arm not in (*MAIN, UNTRAINED) and not arm.startswith(YEARS)),
    *((arm, 3) for arm in (*MAIN, UNTRAINED)),
    *((arm, 2) for arm in ARMS if arm.startswith(YEARS)),
)
