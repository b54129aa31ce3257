"""Command lines and recipes as people write them."""

from cases import Case
from model_cases import COMPRESS, dense


def recipe(content):
    """A builder: a dense model, and recipe.yaml."""

    def build(folder):
        dense(folder)
        folder.write("recipe.yaml", content)

    return build


def config_alone(folder):
    for path in dense(folder).iterdir():
        if path.name != "config.json":
            path.unlink()


PLAN = "plan model --recipe recipe.yaml"
NO_PATH = "the path is empty; is a variable not set?"
NOT_FINITE = "nan is not a finite number"
CASES = [
    Case("a config.json without weights", "plan model --block 2", config_alone),
    Case("a model after the options", "plan --block 2 --ratio 0.2 model", dense),
    Case("no model", "plan", dense, "MODEL is missing", 2),
    Case("two models", "plan model --model other", dense, "two models are given, model and other; give one", 2),
    Case(
        "an unknown option with a value",
        "plan model --tokenz 4",
        dense,
        "unknown argument '--tokenz'; did you mean --tokens?",
        2,
    ),
    Case(
        "the same before `--model`",
        "plan --tokenz 4 --model model",
        dense,
        "unknown argument '--tokenz'; did you mean --tokens?",
        2,
    ),
    Case(
        "a ratio that no ranks reach",
        "plan model --block 2 --ratio 0.99 --drop",
        dense,
        "the smallest choices that the recipe allows need",
        2,
    ),
    Case("the name of a model on the hub", "evaluate org/name", dense, "`hf download org/name --local-dir name`", 1),
    Case("`ratio: 1e-1` and `shard_size: 5GB`", PLAN, recipe("ratio: 1e-1\nblock: 2\nshard_size: 5GB\n")),
    Case("a recipe with a key twice", PLAN, recipe("block: 2\nblock: 4\n"), "block twice", 2),
    Case("a recipe with an unknown key", PLAN, recipe("ratoi: 0.1\n"), "did you mean 'ratio'", 2),
    Case("a size that is none", "plan model --shard-size 5XB", dense, "expected a size such as 5GB", 2),
    Case("`--ratio nan`", "plan model --ratio nan", dense, NOT_FINITE, 2),
    Case("`--temperature nan`", "generate model --prompt a --temperature nan", dense, NOT_FINITE, 2),
    Case("a prompt that is no UTF-8", "generate model --prompt a\udcff", dense, "the prompt is not valid UTF-8", 2),
    Case(
        "a rank that makes the model larger",
        COMPRESS.replace("--ratio 0.2", "--form pair --rank 0.up_proj=60"),
        dense,
        "rank 60 of 0.up_proj saves nothing",
    ),
    Case(
        "a tp_degree that does not divide the neurons",
        "plan model --block 2 --tp-degree 4",
        dense,
        "tp_degree 4 does not divide the model's 90 intermediate neurons into equal groups; use one that does, such as "
        "5, 6, 9, 10",
        2,
    ),
    Case(
        "a tp_degree of 0",
        "plan model --tp-degree 0",
        dense,
        "tp_degree is 0; it is a number of cores, at least 1",
        2,
    ),
    Case(
        "a block larger than a group has neurons",
        "plan model --block 20 --tp-degree 5",
        dense,
        "block 20 is larger than the smaller side of a 44 x 18 matrix; use a block of at most 18",
        2,
    ),
    Case(
        "a rank that does not divide over the groups",
        "plan model --block 2 --rank down_proj=7",
        dense,
        "rank 7 for 0.down_proj does not divide over 2 groups of equal rank; use a multiple of 2",
        2,
    ),
    Case(
        "a rank of every group that is no multiple of the block",
        "plan model --block 4 --rank down_proj=20",
        dense,
        "rank 20 for 0.down_proj: an interpolative rank is a multiple of the block 4 and less than 44 in each of 2 "
        "groups",
        2,
    ),
    Case(
        "groups that the cores cannot share",
        "plan model --block 2 --ratio 0.2 --tp 3",
        dense,
        "2 groups of neurons do not go evenly on 3 cores; use tensor-parallel degree 1, 2 or a multiple of 2, or "
        "compress with --tp-degree 3",
        1,
    ),
    Case(
        "a device that computes no float64",
        COMPRESS + " --device mps",
        dense,
        "device 'mps' is not one to compress on; use --device auto, cpu or cuda",
        1,
    ),
    Case("an empty --recipe", "plan model --recipe=", dense, NO_PATH, 2),
    Case(
        "an empty --output",
        COMPRESS.replace("--output out", "--output="),
        dense,
        NO_PATH,
        2,
    ),
    Case("a seed beyond 64 bits", f"generate model --prompt a --seed {2**64}", dense, "is not between 0 and 2^63", 2),
]
