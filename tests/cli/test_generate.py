"""generate from the command line: greedy, sampled and chat answers, JSON alone on stdout, bad options."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer


def run_json(capsys, *argv):
    code = main([*map(str, argv), "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_generate_is_greedy_by_default(tiny_svd_qwen3, capsys):
    argv = ["generate", "--model", tiny_svd_qwen3, "--prompt", "abc", "--max-new-tokens", 5]
    code, result = run_json(capsys, *argv)
    model, tokenizer = load_model(tiny_svd_qwen3), load_tokenizer(tiny_svd_qwen3)
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    with torch.no_grad():
        for _ in range(result["new_tokens"]):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert code == 0 and result["prompt_tokens"] == 3
    assert result["text"] == tokenizer.decode(ids[0, 3:], skip_special_tokens=True)
    assert main([*map(str, argv), "--quiet"]) == 0
    assert capsys.readouterr().out == result["text"] + "\n"


OTHERWISE = {
    "num_beams": 3,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "num_return_sequences": 2,
    "max_length": 4,
    "suppress_tokens": list(range(3, 200)),
    "forced_eos_token_id": 1,
    "min_new_tokens": 3,
}


@pytest.mark.parametrize("temperature", ["0", "1.5"])
def test_the_models_generation_config_changes_no_decoding(temperature, tiny_svd_llama, tmp_path, capsys):
    """Neither what is called greedy nor what is sampled; its end tokens stay."""

    def answer(directory):
        argv = ["--prompt", "abc", "--max-new-tokens", "12", "--temperature", temperature]
        return run_json(capsys, "generate", directory, *argv)[1]

    directory = shutil.copytree(tiny_svd_llama, tmp_path / "model")
    path = directory / "generation_config.json"
    (directory / "generation_config.json").write_text(json.dumps({**json.loads(path.read_text()), **OTHERWISE}))
    expected, found = answer(tiny_svd_llama), answer(directory)
    assert (found["text"], found["new_tokens"]) == (expected["text"], expected["new_tokens"])
    assert found["new_tokens"] == 12


def test_the_models_end_tokens_end_an_answer(tiny_svd_llama, tmp_path, capsys):
    directory = shutil.copytree(tiny_svd_llama, tmp_path / "model")
    ids = torch.tensor([load_tokenizer(directory)("abc")["input_ids"]])
    first = int(load_model(directory)(ids).logits[0, -1].argmax())
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, first]}))
    assert run_json(capsys, "generate", directory, "--prompt", "abc")[1]["new_tokens"] == 1


def test_generate_samples_by_seed(tiny_svd_llama, capsys):
    def sample(seed):
        argv = ["--prompt", "abc", "--max-new-tokens", 20, "--temperature", 1.5, "--seed", seed]
        return run_json(capsys, "generate", "--model", tiny_svd_llama, *argv)[1]["text"]

    assert sample(1) == sample(1) != sample(2)


def test_generate_uses_the_chat_template(tiny_svd_llama, tiny_llama, tmp_path, capsys):
    argv = ["--prompt", "hi", "--max-new-tokens", 3]
    chat = run_json(capsys, "generate", "--model", tiny_svd_llama, *argv, "--chat")[1]
    template = "<s>user: hi</s><s>assistant:"
    assert chat["prompt_tokens"] == len(load_tokenizer(tiny_llama)(template)["input_ids"])
    bare = tmp_path / "bare"
    shutil.copytree(tiny_svd_llama, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)  # transformers before 4.52 keeps it in the tokenizer config
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": None}))
    code, result = run_json(capsys, "generate", "--model", bare, *argv, "--chat")
    assert code == 2 and "no chat template" in result["error"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a\udcff"], "not valid UTF-8"),
        (["--prompt", "a", "--max-new-tokens", "512"], "exceed the model's 512"),
    ],
)
def test_generate_refuses_bad_options(tiny_svd_llama, capsys, argv, message):
    code, result = run_json(capsys, "generate", "--model", tiny_svd_llama, *argv)
    assert code == 2 and message in result["error"]


@pytest.mark.slow
def test_as_a_program_stdout_is_json_alone(tiny_svd_llama):
    argv = ["generate", "--model", str(tiny_svd_llama), "--prompt", "abc", "--max-new-tokens", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "nxdi_svd_plugin.cli.main", *argv], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["new_tokens"] <= 2
    missing = subprocess.run(
        [sys.executable, "-m", "nxdi_svd_plugin.cli.main", "generate", "--model", "nowhere", "--prompt", "a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 1 and missing.stdout == "" and "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr
