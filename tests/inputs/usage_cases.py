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
NOT_FINITE = "nan is not a finite number"
CASES = [
    Case("a config.json without weights", "plan model --block 2", config_alone),
    Case("a model after the options", "plan --block 2 --ratio 0.2 model", dense),
    Case("no model", "plan", dense, "MODEL is missing", 2),
    Case("two models", "plan model --model other", dense, "two models are given, model and other; give one", 2),
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
        COMPRESS.replace("--ratio 0.2", "--form pair --rank 0.up_proj=30"),
        dense,
        "rank 30 of 0.up_proj saves nothing",
    ),
    Case(
        "a device that computes no float64",
        COMPRESS + " --device mps",
        dense,
        "device 'mps' is not one to compress on; use --device auto, cpu or cuda",
        1,
    ),
]
