"""What lies beside the weights: tokenizers, chat templates and generation configs."""

import json

from cases import Case
from download_cases import IS_POINTER, changed, pointer
from model_cases import COMPRESS, EVALUATE, dense

GENERATION = "generation_config.json"


def beside(name, content):
    """A builder: a dense model with this file."""
    return lambda folder: (dense(folder), folder.write(f"model/{name}", content))


def generation(content):
    """A builder: a dense model whose generation config is this text, or these bytes."""
    return beside(GENERATION, content)


GENERATE = "generate model --prompt a --max-new-tokens 3"
CHAT = GENERATE + " --chat"
NO_JSON = f"model/{GENERATION} cannot be read"
CASES = [
    Case("a generation config that is a list", COMPRESS, generation("[1]"), f"{NO_JSON} (not a JSON object)", 1),
    Case("a generation config that is a list", EVALUATE, generation("[1]"), f"{NO_JSON} (not a JSON object)", 1),
    Case(
        "a generation config that is a list", GENERATE, generation("[1]"), "restore it, or remove it: it is optional", 1
    ),
    Case("a generation config that is no UTF-8", GENERATE, generation(b'{"a": "\xe9"}'), "can't decode byte 0xe9", 1),
    Case("brackets without an end in it", GENERATE, generation("[" * 9999), "its brackets are nested too deep", 1),
    Case(
        "a temperature of NaN in it",
        GENERATE,
        generation('{"temperature": NaN}'),
        f"{NO_JSON} (it holds NaN, which is no JSON)",
        1,
    ),
    Case(
        "an end token in quotes",
        GENERATE,
        generation('{"eos_token_id": "1"}'),
        f"{GENERATION} has eos_token_id = '1'; expected a token id, a list of them or null",
        1,
    ),
    Case(
        "the same in config.json",
        EVALUATE,
        changed("config.json", pad_token_id="2"),
        "config.json has pad_token_id = '2'; expected a token id or null",
        1,
    ),
    Case("no end token, and -1 to pad with", GENERATE, generation('{"eos_token_id": [], "pad_token_id": -1}')),
    Case(
        "values that transformers refuses",
        GENERATE,
        generation(json.dumps({"num_return_sequences": 4, "watermarking_config": "x", "eos_token_id": 1})),
        f"{GENERATION} is used for its special tokens alone: transformers takes no more of it",
    ),
    Case("a generation config that is a Git LFS pointer", GENERATE, pointer(GENERATION), IS_POINTER, 1),
    Case("a chat template that is a Git LFS pointer", COMPRESS, pointer("chat_template.jinja"), IS_POINTER, 1),
    Case(
        "an empty tokenizer.json",
        EVALUATE,
        beside("tokenizer.json", ""),
        "tokenizer.json is no tokenizer (Expecting value",
        1,
    ),
    Case(
        "a tokenizer.json that is none",
        EVALUATE,
        beside("tokenizer.json", "{}"),
        "tokenizer.json is no tokenizer (it has no model)",
        1,
    ),
    Case(
        "a longest input that is no number",
        EVALUATE,
        changed("tokenizer_config.json", model_max_length="long"),
        "tokenizer_config.json has model_max_length = 'long'; expected a number",
        1,
    ),
    Case(
        "a chat template that is no template",
        CHAT,
        beside("chat_template.jinja", "{% for %}"),
        "--chat: the model's chat template refuses these messages (Expected an expression",
        1,
    ),
    Case(
        "a chat template that refuses the prompt",
        CHAT,
        beside("chat_template.jinja", "{{ raise_exception('no system prompt') }}"),
        "--chat: the model's chat template refuses these messages (no system prompt)",
        1,
    ),
    Case(
        "a chat template that would run Python",
        CHAT,
        beside("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "access to attribute '__class__' of 'str' object is unsafe",
        1,
    ),
    Case(
        "an index of the shards that is a Git LFS pointer",
        EVALUATE,
        pointer("model.safetensors.index.json"),
        IS_POINTER,
        1,
    ),
]
