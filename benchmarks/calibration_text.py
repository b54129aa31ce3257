"""How nxdi_svd_plugin/data/calibration.txt and benchmarks/data/generated_heldout.txt were made.

    python benchmarks/calibration_text.py --model SMOLLM2 --output generated.txt

SmolLM2-135M-Instruct (Apache-2.0), bfloat16, torch 2.13, sampled at temperature 1 without any cut (so that the text
covers what the model itself considers possible), one piece of 512 tokens for each beginning below: with seed 0 and 1
those of BEGINNINGS, with seed 1, 2 and 3 those of QUIET (`--quiet`). The last pieces of the first run (about 4,100
tokens) became the held-out text. Of the others every paragraph was read, and those that one would not pass on were
removed (hate, slurs, abuse of religions, sex, violence against persons, suicide, terror, claims about living persons,
addresses), which is more than half of all; tests/test_shipped_text.py keeps a list of words. Just over half of what
ships is left of the first run, the rest is a random choice of the others. Another torch gives other text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

BEGINNINGS = """\
The old house at the end of the lane
In a recent study, researchers found that
Dear Sir or Madam,
def merge_sort(items):
"I don't believe you," she said,
The history of the steam engine begins
Ingredients: two cups of flour
To install the software, first
The committee met on Tuesday to
Photosynthesis is the process by which
Chapter 1. It was a cold morning when
The stock market closed
Question: What is the capital of
Once upon a time there was a
The defendant argued that the contract
A triangle with sides of length
The patient was admitted with
Our hotel was close to the beach and
The river rises in the mountains of
import numpy as np
In economics, inflation is
The team won the final match after
My grandmother used to tell me
Under the terms of this agreement
The planet Jupiter
Step 1: Remove the cover from
The president of the company announced
Music in the eighteenth century
How to take care of a garden in spring:
The film follows a young man who
In philosophy, the idea of free will
The soldiers marched through the
User: Can you help me write an email?
The speed of light in a vacuum
She opened the letter slowly and
Climate change affects
SELECT name, price FROM
The museum's collection includes
Police said on Friday that
The main character of the novel
Bacteria are small organisms that
Let x be a real number such that
The train left the station at
Many people believe that dreams
Healthy eating starts with
The ancient city was built on
According to the manual, the engine
He was born in a small village
The new law requires that all
Children learn language by
The ship sailed from the harbour
Review: I bought this phone last month and
The function returns the number of
Religion played an important part in
A good teacher knows how to
The experiment was repeated three times
When the war ended, the
The recipe for a successful business
Birds migrate in autumn because
The computer network consists of
Poem: The evening sky
The election results were
It is often said that money
The human heart has four""".splitlines()

QUIET = """\
To replace the battery of the clock, first
class Stack:
Add the onions and the carrots to
The bridge was built of stone and
A prime number is a number that
{"name": "kettle", "price":
Water boils at a temperature of
Dear customer, your order of
The table below lists the
In the game of chess, a bishop
A telescope collects light with
To bake bread, mix the flour with
Honey bees build their
<html><head><title>Garden tools</title>
for i in range(10):
The weather on Monday will be
The library opens at nine and
Exercise 4. Calculate the area of
The piano has eighty-eight
Steel is an alloy of
How do I sort a list in Python?
An adjective describes
The bicycle has two wheels and
The lighthouse on the cape
A cloud forms when
SELECT COUNT(*) FROM orders WHERE
The moon moves around the earth
Trees lose their leaves in
To paint a wall, begin with
Welcome to the quarterly report of
The volcano last erupted in
The ratio of the two numbers is""".splitlines()


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="begin as QUIET does")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.bfloat16)
    inputs = tokenizer(QUIET if args.quiet else BEGINNINGS, return_tensors="pt", padding=True)
    pieces = model.generate(
        **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=500, max_new_tokens=512
    )
    args.output.write_text("\n\n".join(tokenizer.batch_decode(pieces, skip_special_tokens=True)))


if __name__ == "__main__":
    main()
