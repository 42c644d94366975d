"""An open bundle in the hands of somebody who has transformers and nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_bundle
import torch

from behemoth import cli, releasing
from behemoth.export.hf import export
from behemoth.model.config import ModelConfig
from behemoth.model.open import Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.release.verify import verify
from behemoth.text.tokenizer import Tokenizer

PROMPTS = ["the model", "reads the text and", "zebra"]
TOKENS = 12
THEIRS = """
import importlib.util, json, sys
import torch
assert importlib.util.find_spec("behemoth") is None, "something of ours can be imported"
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, tokens, *prompts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
said = []
for prompt in prompts:
    given = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])  # as a document begins
    answer = model.generate(given, do_sample=False, max_new_tokens=int(tokens))
    said.append(tokenizer.decode(answer[0, given.shape[1]:], skip_special_tokens=True))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A drawn model that transformers has agreed with."""
    place = tmp_path_factory.mktemp("exported")
    tokenizer = Tokenizer.train(["the model reads the text and the text reads like the model\n"] * 4, 320)
    tokenizer.save(place / "tokenizer")
    sizes = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_size": 8}
    sizes |= {"dense_size": 64, "expert_size": 32, "num_experts": 4}
    rows = {"chunk_size": 16, "temperature_floor": 16, "context_length": 32}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, init_std=0.1, **sizes, **rows)
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    export(Opened(model, place / "tokenizer", "student", "0" * 64, place), place / "student")
    return place / "student"


@pytest.fixture
def bundle(exported, tmp_path) -> small_bundle.Small:
    small = small_bundle.make(tmp_path / "made", export=exported)
    small.build(tmp_path / "bundle")
    return small_bundle.replace(small, bundle=tmp_path / "bundle")


@pytest.fixture
def fresh(tmp_path) -> Path:
    """A Python of its own, with the wheels that are installed here and none of what is linked into this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/*/site-packages")
    # Its own .pth files, ours among them, are not followed from there.
    (site / "wheels.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_transformers_loads_it_and_answers_as_generate_does(bundle, fresh, capsys):
    assert verify(bundle.bundle, bundle.lab).holds
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    command = [fresh, "-I", "-c", THEIRS, bundle.bundle, str(TOKENS), *PROMPTS]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = [generated(bundle, prompt, capsys) for prompt in PROMPTS]
    assert theirs == ours and any(ours)


def generated(bundle, prompt, capsys) -> str:
    """What behemoth generate writes, of the model that was judged."""
    capsys.readouterr()
    words = ["generate", bundle.bundle, prompt, "--max-tokens", TOKENS, "--temperature", 0, "--json"]
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    told = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and told["sha256"] == verify(bundle.bundle, bundle.lab).facts["model"]
    return told["text"]


@pytest.mark.slow
def test_opened_here_it_is_held_to_its_receipt(bundle):
    opened = open_model(bundle.bundle)
    assert (
        opened.sha256
        == json.loads((bundle.bundle / "release" / "verdict.json").read_text())["model"]["sha256"]
    )
    (bundle.bundle / "README.md").write_text("# other")  # no part of the model
    assert open_model(bundle.bundle).sha256 == opened.sha256
    path = bundle.bundle / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(small_bundle.package.InputError, match=r"receipt\.json"):
        open_model(bundle.bundle)


@pytest.mark.slow
def test_a_file_for_llama_cpp_goes_along(bundle, tmp_path):
    """Twice the same bytes, told on the card, and held to the receipt that is evidence."""
    pytest.importorskip("gguf")
    for number in ("0", "1", "2"):
        (tmp_path / number).mkdir()
    first = releasing.write_gguf(bundle.model, tmp_path / "0")
    bundle = small_bundle.make(tmp_path / "again", export=bundle.model, gguf=first)
    for number in ("1", "2"):
        bundle.build(tmp_path / number / "bundle", gguf=releasing.write_gguf(bundle.model, tmp_path / number))
    one, two = (tmp_path / number / "bundle" for number in ("1", "2"))
    assert (one / "model.gguf").read_bytes() == (two / "model.gguf").read_bytes()
    assert (one / "model.sig").read_bytes() == (two / "model.sig").read_bytes()
    found = verify(one, bundle.lab)
    assert found.holds and any("model.gguf is the file" in line for line in found.established)
    assert "llama.cpp" in (one / "README.md").read_text()
    path = one / "model.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    small_bundle.resign(small_bundle.replace(bundle, bundle=one))
    assert verify(one, bundle.lab).refusals[0].code == "gguf-differs"
    path.unlink()
    small_bundle.resign(small_bundle.replace(bundle, bundle=one))
    assert "gguf-differs" in [refusal.code for refusal in verify(one, bundle.lab).refusals]
