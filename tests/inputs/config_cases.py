"""config.json with values that other programs, and people, have put there."""

from cases import Case
from model_cases import COMPRESS, EVALUATE, TEXT, edited, no_config

GENERATE = "generate model --prompt a --max-new-tokens 3"
RETURNS = {"return_dict": False, "output_hidden_states": True, "torchscript": True, "is_encoder_decoder": True}
QUANTIZED = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
DTYPES = "expected one of float32, bfloat16, float16, float64"


def bytes_of_config(content):
    """A builder: a dense model whose config.json is this."""
    return lambda folder: (no_config(folder), folder.write("model/config.json", content))


def compressed_base(folder):
    """Two compressed models."""
    folder.write("text.txt", TEXT)
    folder.copy("svd_llama", "model")
    folder.copy("svd_llama", "base")


CASES = [
    Case("a config.json in UTF-16", "plan model", bytes_of_config("{}".encode("utf-16")), "is not valid JSON", 1),
    Case("brackets without an end", "plan model", bytes_of_config("[" * 9999), "brackets are nested too deep", 1),
    Case(
        "a number beyond all floats", "plan model", bytes_of_config('{"a": 1e999}'), "it holds 1e999, which is too", 1
    ),
    Case("layers without end", "plan model", edited(num_hidden_layers=10**9), "expected at most 10000", 1),
    Case("keys that change what transformers returns", COMPRESS, edited(**RETURNS)),
    Case("keys that change what transformers returns", EVALUATE, edited(**RETURNS)),
    Case("keys that change what transformers returns", GENERATE, edited(**RETURNS)),
    Case("a quantized model", COMPRESS, edited(**QUANTIZED), "model is quantized (gptq); give the unquantized", 1),
    Case("a quantized model", EVALUATE, edited(**QUANTIZED), "model is quantized (gptq); give the unquantized", 1),
    Case("an empty quantization_config", EVALUATE, edited(quantization_config={})),
    Case("`torch.bfloat16` for bfloat16", EVALUATE, edited(torch_dtype=None, dtype="torch.bfloat16"), DTYPES, 1),
    Case("a dtype in a list", COMPRESS, edited(torch_dtype=None, dtype=["float32"]), DTYPES, 1),
    Case("a dtype that computes nothing", EVALUATE, edited(torch_dtype=None, dtype="int8"), DTYPES, 1),
    Case(
        "an unknown kind of RoPE",
        COMPRESS,
        edited(rope_scaling={"rope_type": "magic", "factor": 2.0}, rope_parameters=None),
        "rope_type is 'magic'; expected one of default, linear, dynamic, yarn, longrope, llama3",
        1,
    ),
    Case(
        "`false` in quotes",
        EVALUATE,
        edited(tie_word_embeddings="false"),
        "config.json has tie_word_embeddings = 'false'; expected true or false",
        1,
    ),
    Case(
        "a head of its own, and a config.json that says it is the embeddings",
        COMPRESS,
        edited(tie_word_embeddings=True),
        "lm_head.weight is stored and differs from them; set it to false, or remove the tensor",
        1,
    ),
    Case(
        "the same head, to measure",
        EVALUATE,
        edited(tie_word_embeddings=True),
        "lm_head.weight is stored and differs from them; set it to false, or remove the tensor",
        1,
    ),
    Case(
        "a padding token behind the embeddings",
        COMPRESS,
        edited(pad_token_id=9999),
        "config.json has pad_token_id = 9999, the model has 259 embeddings; set it to null or to the end token",
        1,
    ),
    Case("-1 for no padding token", COMPRESS, edited(pad_token_id=-1)),
    Case("a list of end tokens", GENERATE, edited(eos_token_id=[1, 2])),
    Case("`--base` that is compressed", "verify model --base base", compressed_base, "base is already compressed", 1),
    Case("`--base` that is not there", "verify model --base none", compressed_base, "none is not a directory", 1),
    Case(
        "a file of the model",
        "verify model/config.json",
        compressed_base,
        "model/config.json is not a directory; give the directory of the model, model",
        1,
    ),
]
