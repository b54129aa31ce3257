"""nxdi-svd generate: one answer of a model on the CPU, greedy unless a temperature is given."""

from __future__ import annotations

import argparse
import time
from typing import Any

from nxdi_svd_plugin.cli.options import add_dtype_option, add_model_option, number, positive, seed
from nxdi_svd_plugin.cli.output import emit

EPILOG = """\
examples:
  nxdi-svd generate --model out/smollm2-r10 --prompt "The capital of France is" --max-new-tokens 20
  nxdi-svd generate --model out/smollm2-r10 --prompt "What is a rank?" --chat
  nxdi-svd generate --model out/smollm2-r10 --prompt "Once" --temperature 0.8 --seed 7 --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser("generate", help="continue a prompt on the CPU", epilog=EPILOG)
    model = parser.add_argument_group("model")
    add_model_option(model, "model directory, compressed or dense")
    add_dtype_option(model)
    prompt = parser.add_argument_group("prompt and answer")
    prompt.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue or, with --chat, to answer")
    prompt.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    prompt.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="longest answer (default: 64)")
    prompt.add_argument(
        "--temperature", type=number, default=0.0, metavar="T", help="0 is greedy (default); else samples of all tokens"
    )
    prompt.add_argument("--seed", type=seed, default=0, metavar="N", help="of the sampling (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Generate and print the new text."""
    result = generate(args)
    emit(args, result, result["text"])
    return 0


def generate(args: argparse.Namespace) -> dict[str, Any]:
    """The answer as one JSON object.

    Raises:
        RecipeError: an empty prompt or one that is no UTF-8, a negative temperature, --chat without a chat template, or
            a context too long.
        CheckpointError: a bad directory. NotFiniteError: logits that are no numbers.
    """
    import torch

    from nxdi_svd_plugin.errors import RecipeError
    from nxdi_svd_plugin.modeling.finite import finite_logits
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

    if args.temperature < 0:
        raise RecipeError(f"temperature is {args.temperature}; expected 0 (greedy) or more")
    tokenizer = load_tokenizer(args.model)
    ids = torch.tensor([prompt_ids(tokenizer, args.prompt, args.chat)], dtype=torch.long)
    model = load_model(args.model, args.dtype)
    longest = model.config.max_position_embeddings
    if ids.shape[1] + args.max_new_tokens > longest:
        raise RecipeError(
            f"{ids.shape[1]} prompt tokens and {args.max_new_tokens} new ones exceed the model's {longest}"
        )
    model.generation_config = decoding(model.generation_config, args.temperature)
    torch.manual_seed(args.seed)
    start = time.monotonic()
    with finite_logits(model):
        tokens = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.max_new_tokens
        )
    new = tokens[0, ids.shape[1] :]
    return {
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "prompt_tokens": ids.shape[1],
        "new_tokens": len(new),
        "seconds": time.monotonic() - start,
        "model": args.model,
    }


def decoding(carried: Any, temperature: float) -> Any:
    """A generation config that is greedy, or samples from the whole distribution at a temperature.

    Of the model's own only the special tokens are taken: beams, penalties and top-k would make it something else than
    what the options say.
    """
    from transformers import GenerationConfig

    from nxdi_svd_plugin.checkpoint.generation import SPECIAL

    begin, end, pad = (some_ids(getattr(carried, key, None)) for key in SPECIAL)
    if pad is None:  # what transformers takes too, with a warning; one prompt has no padding
        pad = end and end[:1]
    tokens = {"bos_token_id": begin and begin[0], "eos_token_id": end, "pad_token_id": pad and pad[0]}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config: Any = GenerationConfig
    return config(**tokens, **(sampling if temperature else {"do_sample": False}))


def some_ids(found: int | list[int] | None) -> list[int] | None:
    """Special tokens as a list; None for none, which a negative id also says."""
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return [i for i in ids if i >= 0] or None


def prompt_ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    """Token ids of the prompt, as it is or as the user's turn of a chat.

    Raises:
        RecipeError: an empty prompt, one that is no UTF-8, or --chat without a chat template. CalibrationError: the
            template is damaged or refuses the prompt.
    """
    from nxdi_svd_plugin.errors import RecipeError
    from nxdi_svd_plugin.texts.records import by_template

    if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
        raise RecipeError("the prompt is not valid UTF-8; check the encoding of the terminal")
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError("the model has no chat template; leave --chat away")
        turn = [{"role": "user", "content": prompt}]
        prompt = by_template(tokenizer, turn, "--chat", add_generation_prompt=True)
    ids: list[int] = tokenizer(prompt, add_special_tokens=not chat)["input_ids"]
    if not ids:
        raise RecipeError("the prompt is empty; give --prompt some text")
    return ids
