"""What the README and the examples show is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import transformers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(start: str) -> list[str]:
    return [
        line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.startswith(start)
    ]


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert commands("make") == ["make demo", "make test"]
    for command in commands("make"):
        run([*command.split(), "--dry-run"], ROOT)


def test_the_graphwright_commands_run(tmp_path: Path) -> None:
    listed = commands("graphwright")
    assert len(listed) >= 5
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in listed:
        short = ["--budget", "2"] if " ship " in command else []
        run([*command.split(), *short], tmp_path)
    assert (tmp_path / "out/int8/report.html").is_file()


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) == 10
    folder = tmp_path / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=64, max_position_embeddings=64)).save_pretrained(
        folder
    )
    words = ["[PAD]", "[UNK]", "A", "first", "sentence", ".", "And", "one", "more"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    (tmp_path / "example.py").write_text(
        code.replace("path/to/model", str(folder)) + "\nassert made.passed\nprint(*outputs)\n"
    )
    assert "last_hidden_state" in run([sys.executable, "example.py"], tmp_path)


@pytest.mark.parametrize("example", ["api.py"])
def test_the_examples_run(example: str, tmp_path: Path) -> None:
    printed = run([sys.executable, str(ROOT / "examples" / example)], tmp_path)
    assert "parity passed: True" in printed
    assert (tmp_path / "shipped/manifest.json").is_file()
