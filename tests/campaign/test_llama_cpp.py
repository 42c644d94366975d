"""llama.cpp itself runs files of ours: the same answers up to the limit that they name, other ones beyond it.

llama-cpp-python is built from its source (about four minutes on two cores) into an environment of its own, or
BEHEMOTH_LLAMA_PYTHON names a Python that has it. The trained models are the quickstart's: BEHEMOTH_RUN names a finished
run; without, one is run. llama.cpp keeps keys and values in fp16 unless asked; here it keeps them in fp32, so that what
is left is the order of sums.
"""

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from behemoth.base.files import read_json
from behemoth.export import llama_cpp
from behemoth.export.gguf import write_gguf
from behemoth.export.llama_cpp import Limits, read_back
from behemoth.export.reference import PASSAGE, SPECIAL_LOOKING
from behemoth.inference.engine import Engine
from behemoth.model.config import ModelConfig, RopeScaling
from behemoth.model.open import Opened, open_model
from behemoth.model.transformer import Transformer
from behemoth.text.chat import Message, encode_chat
from behemoth.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
LLAMA = "llama-cpp-python==0.3.36"
PARTS = ("BUILD_TOOLS", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "CURL")  # of llama.cpp, not needed
ASK = """
import json, sys
import llama_cpp, numpy as np

asked = json.load(open(sys.argv[1]))
width = max([len(row) for row in asked.get("rows", {}).values()] + [asked.get("n_ctx", 256)])
model = llama_cpp.Llama(
    asked["path"], n_ctx=width, n_batch=width, n_ubatch=512, n_threads=1, verbose=False,
    logits_all="rows" in asked, type_k=asked["cache"], type_v=asked["cache"],
)
logits = {}
for name, row in asked.get("rows", {}).items():
    model.reset()
    model.eval(row)
    logits[name] = np.array(model.scores[: len(row)])
np.savez(sys.argv[2] + ".npz", **logits)

answers = []
for prompt, most in asked.get("greedy", []):
    answer = []
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
        answer.append(token)
        if len(answer) == most or llama_cpp.llama_vocab_is_eog(model._model.vocab, token):
            break
    answers.append(answer)

chats = []
names = {part: model._model.token_get_text(asked[part]) for part in ("bos", "eos") if part in asked}
for messages in asked.get("chats", []):
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"], bos_token=names["bos"], eos_token=names["eos"]
    )
    prompt = formatter(messages=messages).prompt
    chats.append(model.tokenize(prompt.encode(), add_bos=False, special=True))

found = {
    "n_ctx_train": llama_cpp.llama_model_n_ctx_train(model._model.model),
    "n_ctx": model.n_ctx(),
    "stops": [i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(model._model.vocab, i)],
    "texts": [model.tokenize(x.encode(), add_bos=False, special=False) for x in asked.get("texts", [])],
    "backs": [model.detokenize(ids).decode("utf-8", "replace") for ids in asked.get("ids", [])],
    "bos": model.tokenize(b"x", add_bos=True)[0],
    "chats": chats,
    "answers": answers,
}
json.dump(found, open(sys.argv[2] + ".json", "w"))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """`ask(path, **asked)`: what llama.cpp says of a file, and its logits; None where it does not load it."""
    place = tmp_path_factory.mktemp("llama")
    python = os.environ.get("BEHEMOTH_LLAMA_PYTHON")
    if python is None:
        subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
        python = place / "venv" / "bin" / "python"
        build = [python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", LLAMA]
        off = " ".join(f"-DLLAMA_{part}=OFF" for part in PARTS)
        subprocess.run(build, check=True, env=os.environ | {"CMAKE_ARGS": f"-DLLAVA_BUILD=OFF {off}"})

    def asking(path, cache=0, **asked):
        (place / "asked.json").write_text(json.dumps({"path": str(path), "cache": cache, **asked}))
        words = [python, "-c", ASK, place / "asked.json", place / "found"]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stderr[-2000:])
            return None, {}
        return read_json(place / "found.json"), dict(np.load(place / "found.npz"))

    return asking


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if "BEHEMOTH_RUN" in os.environ:
        return Path(os.environ["BEHEMOTH_RUN"])
    out = tmp_path_factory.mktemp("quickstart") / "run"
    words = ["run", ROOT / "recipes" / "quickstart.toml", "--out", out]
    subprocess.run([sys.executable, "-m", "behemoth", *map(str, words)], check=True)
    return out


@torch.no_grad()
def logits(model: Transformer, row: list[int]) -> np.ndarray:
    model.compute_dtype = torch.float32
    return model.logits(model(torch.tensor([row])).hidden_BTD)[0].numpy()


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference of a logit at each position."""
    return np.abs(a - b).max(axis=1)


# -------------------------------------------------------------------------------------------------- trained models


@pytest.mark.parametrize("member", ["student", "teacher", "dpo"])
def test_logits_of_a_trained_model_up_to_the_limit_and_beyond(run, ask, tmp_path, member):
    opened = open_model(run / "export" / member)
    receipt = write_gguf(opened, tmp_path / "model.gguf")
    context, whole = receipt["limits"]["context"], opened.model.config.context_length
    assert receipt["verdict"] == "match" and context < whole
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    passage, vocab_size = tokenizer.encode(PASSAGE), opened.model.config.vocab_size
    rows = {
        "text": [tokenizer.bos_id, *(passage * whole)][:whole],
        "any id": [number * 7919 % vocab_size for number in range(whole)],
    }
    found, theirs = ask(tmp_path / "model.gguf", rows=rows)
    _, rounded = ask(tmp_path / "model.gguf", rows=rows, cache=1)
    assert found["n_ctx_train"] == context
    _, under_their_rules = read_back(tmp_path / "model.gguf")
    for name, row in rows.items():
        ours = logits(opened.model, row)
        far = apart(ours, theirs[name])
        print(
            f"{member}, {name}: up to token {context} {far[:context].max():.1e} "
            f"({apart(ours, rounded[name])[:context].max():.1e} with keys in fp16), then {far[context]:.2g}, "
            f"{far[context + 1]:.2g} ... at most {far[context:].max():.2g}; logits up to {np.abs(ours).max():.3g}"
        )
        assert far[:context].max() < 1e-4 and far[context] > 0.01 and far[context + 1 :].max() > 1
        assert (ours.argmax(1) == theirs[name].argmax(1))[:context].all()
        assert apart(logits(under_their_rules, row), theirs[name]).max() < 1e-3  # the rules are what it does


def test_the_assistant_answers_as_our_engine_does(run, ask, tmp_path):
    opened = open_model(run / "export" / "dpo")
    context = write_gguf(opened, tmp_path / "model.gguf")["limits"]["context"]
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    exam = (run / "evals" / "exam" / "dpo" / "arithmetic.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in exam]
    chats = [[{"role": "user", "content": item["prompt"]}] for item in items]
    prompts = [
        encode_chat(tokenizer, [Message("user", item["prompt"])], generation_prompt=True).ids
        for item in items
    ]
    code = ["def mean(values):\n", "import os\n", "class ", "    return ", "The "]
    prompts += [[tokenizer.bos_id, *tokenizer.encode(text)] for text in code]
    most = [context - len(prompt) for prompt in prompts]
    ours = Engine(opened.model).generate(prompts, max_tokens=most, stop_ids=tokenizer.stop_ids)
    found, _ = ask(
        tmp_path / "model.gguf",
        greedy=list(zip(prompts, most, strict=True)),
        chats=chats,
        bos=tokenizer.bos_id,
        eos=tokenizer.eos_id,
    )
    assert found["stops"] == list(tokenizer.stop_ids) and found["bos"] == tokenizer.bos_id
    assert found["chats"] == prompts[: len(items)]
    same = [a.tokens == b for a, b in zip(ours, found["answers"], strict=True)]
    finished = sum(answer.finish == "stop" for answer in ours)
    print(f"{sum(same)} of {len(same)} greedy answers are the same; {finished} end before the limit")
    assert all(same) and finished > len(items) * 0.8


def test_text_becomes_the_same_tokens(run, ask, tmp_path):
    """Every assigned character of Unicode, and all the text of the standard library."""
    opened = open_model(run / "export" / "student")
    write_gguf(opened, tmp_path / "model.gguf")
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    assigned = [
        chr(point)
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) not in ("Cn", "Co", "Cs")
    ]
    texts = [f"a{c}b {c}{c} 1{c}\n'{c}e{c}\n" for c in assigned] + [SPECIAL_LOOKING, "", " ", PASSAGE]
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts += [file.read_text(encoding="utf-8", errors="replace") for file in files]
    ours = tokenizer.encode_batch(texts)
    found, _ = ask(tmp_path / "model.gguf", texts=texts, ids=ours[-len(files) :])
    differ = [text for text, a, b in zip(texts, ours, found["texts"], strict=True) if a != b]
    print(f"{len(texts)} texts, {len(assigned)} of them about a character each: {len(differ)} differ")
    assert not differ and found["backs"] == texts[-len(files) :]


# ---------------------------------------------------------------------------------------------------- other shapes


SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 16,
    "dense_size": 64,
    "expert_size": 32,
    "num_experts": 4,
    "context_length": 96,
    "init_std": 0.1,
}
PLAIN = {"num_experts": 0, "nope_every": 0, "qk_norm": False}
LONG = {"num_experts": 2, "experts_per_token": 2, "context_length": 8320, "init_std": 0.08}
SHAPES = {
    "scout": ({}, 96),
    "scout, past the border": (LONG, 8320),
    "a temperature that does not rise": (LONG | {"temperature_tuning": False}, 8191),
    "chunks of 4096": (LONG | {"chunk_size": 4096}, 4096),
    "maverick": ({"num_experts": 128, "qk_norm": False, "moe_every": 2, "vocab_size": 384}, 96),
    "two experts a token": ({"experts_per_token": 2, "moe_every": 3}, 96),
    "short chunks": ({"chunk_size": 50}, 50),
    "a low floor": ({"temperature_floor": 30}, 29),
    "scaled positions": ({"rope_scaling": RopeScaling(original_context=32)}, 96),
    "tied embeddings": ({"tie_embeddings": True}, 96),
    "dense": (PLAIN | {"rope_scaling": RopeScaling(factor=8, high_freq_factor=4, original_context=32)}, 96),
    "dense in chunks": (PLAIN | {"chunk_size": 40}, 40),
    "dense, heads that do not divide": (PLAIN | {"num_heads": 6, "head_size": 8}, 96),
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["the model reads the text and the text reads like the model\n"] * 4, 320).save(directory)
    return directory


def small(tokens: Path, **changes) -> Opened:
    config = ModelConfig(**SHAPE | changes)
    model = Transformer(config).initialise(torch.Generator().manual_seed(0))
    return Opened(model, tokens, "small", "0" * 64, tokens)


@pytest.mark.parametrize("name", SHAPES)
def test_other_shapes(ask, tokens, tmp_path, name):
    changes, context = SHAPES[name]
    opened = small(tokens, **changes)
    config = opened.model.config
    receipt = write_gguf(opened, tmp_path / "model.gguf")
    assert receipt["limits"]["context"] == context
    row = [number * 7919 % config.vocab_size for number in range(config.context_length)]
    _, theirs = ask(tmp_path / "model.gguf", rows={"row": row})
    ours, (_, rules) = logits(opened.model, row), read_back(tmp_path / "model.gguf")
    far, to_rules = apart(ours, theirs["row"]), apart(logits(rules, row), theirs["row"])
    beyond = far[context:].max() if context < len(row) else float("nan")
    print(
        f"{name}: {far[:context].max():.1e} up to {context}, {beyond:.2g} beyond; logits {np.abs(ours).max():.2g}"
    )
    assert far[:context].max() < 1e-3 and to_rules.max() < 1e-3
    assert not beyond < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(ask, tokens, tmp_path, dtype):
    """The weights are the same; llama.cpp also rounds what they are multiplied with."""
    opened = small(tokens)
    frequencies = opened.model.frequencies
    opened.model.to(dtype).frequencies = frequencies  # positions stay fp32
    write_gguf(opened, tmp_path / "model.gguf")
    row = [number * 7919 % 320 for number in range(96)]
    _, theirs = ask(tmp_path / "model.gguf", rows={"row": row})
    far = apart(logits(opened.model, row), theirs["row"])
    print(f"{dtype}: median {np.median(far):.1e}, most {far.max():.1e}")
    assert np.median(far) < 0.05


def test_llama_3_from_elsewhere(ask, save_llama3, tmp_path):
    opened = open_model(save_llama3(tmp_path / "theirs"))
    assert write_gguf(opened, tmp_path / "model.gguf")["limits"]["architecture"] == "llama"
    tokenizer = Tokenizer.load(opened.tokenizer_directory)
    row = [number * 7919 % opened.model.config.vocab_size for number in range(128)]
    texts = [PASSAGE, SPECIAL_LOOKING, "12345 model's the'LL"]
    found, theirs = ask(tmp_path / "model.gguf", rows={"row": row}, texts=texts)
    assert apart(logits(opened.model, row), theirs["row"]).max() < 1e-4
    assert found["texts"] == [tokenizer.encode(text) for text in texts]
    assert found["stops"] == list(tokenizer.stop_ids)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "loads"),
    [
        ({"nope_every": 2}, True),
        ({"nope_every": 0}, True),
        ({"qk_norm": False}, True),
        ({"num_experts": 128, "vocab_size": 384}, True),
        ({"score_on": "output"}, True),
        ({"num_experts": 0, "nope_every": 4, "qk_norm": False}, True),
        (PLAIN | {"qk_norm": True}, True),
        ({"num_experts": 0}, False),
        ({"num_layers": 3}, False),
    ],
    ids=str,
)
def test_what_is_refused_would_be_another_model(ask, tokens, tmp_path, monkeypatch, changes, loads):
    """Without the refusal the file is written, and llama.cpp answers differently from the start, or not at all."""
    opened = small(tokens, **changes)
    config = opened.model.config
    assert llama_cpp._differences(config)
    family = "llama" if config.num_experts == 0 and loads else "llama4"
    limits = Limits(family, config.context_length, config.context_length, ())
    monkeypatch.setattr("behemoth.export.gguf.check_expressible", lambda _: limits)
    monkeypatch.setattr("behemoth.export.gguf._receipt", lambda *_: {"verdict": "match"})
    write_gguf(opened, tmp_path / "model.gguf")
    row = [number * 7919 % config.vocab_size for number in range(24)]
    found, theirs = ask(tmp_path / "model.gguf", rows={"row": row})
    if not loads:
        assert found is None
        return
    far = apart(logits(opened.model, row), theirs["row"])
    print(f"{changes}: {far[:4].round(3)}")
    assert far[:4].max() > 1e-3
