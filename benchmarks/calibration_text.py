"""How nxdi_svd_plugin/data/calibration.txt and benchmarks/data/generated_heldout.txt were made.

    python benchmarks/calibration_text.py --model SMOLLM2 --output DIR

SmolLM2-135M-Instruct (Apache-2.0), bfloat16, torch 2.13, one thread, goes on from each line of two files of data/,
which were written for this: calibration_beginnings.txt (half a sentence) and calibration_openings.txt (a paragraph that
breaks off). It draws at temperature 1 without any cut, so that the text covers what the model itself considers
possible, but for the tokens of calibration_not_drawn.txt (ids: words of violence, sex, religion, illness and politics,
"http", "@", special tokens), without which most pieces soon came to these. Seeds and lengths: RUNS.

Of what came out, sentences with a word of the list of tests/test_shipped_text.py, or of a longer one of the same kind,
were taken out by a program, and paragraphs that are hardly text (fewer than 2.5 characters a token, or less than 90 %
of them ASCII). All that was left was read, and sentences that one would not pass on were taken out (what might be
about a living person, peoples, bodies, crime), and the openings that are code. A random choice of the third run's
pieces, just above 8,192 tokens, is the held-out text; all others, shuffled, are the calibration text. Another torch
gives other text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DATA = Path(__file__).parent / "data"
# File, every how many of its lines, seed, tokens drawn after each, lines at a time (which decides what a seed gives).
RUNS = (("openings", 1, 1, 96, 132), ("beginnings", 1, 2, 128, 117), ("beginnings", 2, 3, 128, 117))


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--output", type=Path, required=True, help="directory; one file a run")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    not_drawn = [int(token) for token in (DATA / "calibration_not_drawn.txt").read_text().split()]
    for name, every, seed, length, batch in RUNS:
        torch.manual_seed(seed)
        starts, pieces = (DATA / f"calibration_{name}.txt").read_text().splitlines()[::every], []
        for first in range(0, len(starts), batch):
            inputs = tokenizer(starts[first : first + batch], return_tensors="pt", padding=True)
            drawn = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                suppress_tokens=not_drawn,
                min_new_tokens=60,
                max_new_tokens=length,
            )
            pieces += tokenizer.batch_decode(drawn, skip_special_tokens=True)
        (args.output / f"{name}-{seed}.txt").write_text("\n\n".join(pieces))


if __name__ == "__main__":
    main()
