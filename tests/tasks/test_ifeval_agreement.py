"""IFEval's 25 kinds of instruction: against known answers, and check by check against lm-eval's own checks.

lm-eval needs nltk's punkt model, a download, for sentences and for words in capitals: those two kinds are
compared with known answers only. It draws a letter at random where the letter to be counted is none, so those
are left out too; and it says "followed" of a text whose language cannot be told, where ours is undecided.
"""

import contextlib
import io
import itertools
import json
import random
import sys
import time
from collections import Counter

import pytest

from behemoth.base.logs import table
from behemoth.tasks import ifeval
from behemoth.tasks.constraints import KINDS, count_capitals, count_sentences, follows
from behemoth.tasks.task import Item, Undecidable

NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
LANGUAGE = {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}
HUGE = 1_000_000  # where a check looked at each place more than once, hours
NTH = "length_constraints:nth_paragraph_first_word"
TEXT = "The river rises in the hills, and runs down to the sea. Nobody knows how old it is."

# kind, arguments, a text that follows, one that does not
KNOWN = [
    ("keywords:existence", {"keywords": ["river", "SEA"]}, TEXT, "The river."),
    ("keywords:existence", {"keywords": ["c++ (11)"]}, "In C++ (11).", "In c (11)."),
    ("keywords:forbidden_words", {"forbidden_words": ["hill", "lake"]}, TEXT, "A lake."),
    ("keywords:frequency", {"keyword": "the ", "frequency": 3, "relation": "at least"}, TEXT, "The end"),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, TEXT, "seas, SEASIDE"),
    ("keywords:letter_frequency", {"letter": "H", "let_frequency": 4, "let_relation": "at least"}, TEXT, "hat"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "# a #", "#"),
    ("language:response_language", {"language": "en"}, TEXT, "Der Fluss entspringt in den Hügeln dort."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, TEXT, "One only"),
    ("length_constraints:number_words", {"num_words": 18, "relation": "less than"}, "It is.", TEXT),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb"),
    (
        NTH,
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Nobody"},
        "One.\n\n'nobody' knows",
        "Nobody.\n\nOne",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b [c]", "[a] b] [\n]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "End.\n\np. s. more", "End. P.P.S more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "End.\nP. P.S more", "End. P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* a\n - b\n-c", "* a\n** b\n- c"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe. So.", "my answer is maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* ** * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day 1 Day2", "Day one"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, 2]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<The River>>\ntext", "<<\n>> << >>"),
    ("combination:two_responses", {}, "a\n******\nb\n******", "a ****** a "),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "SAY IT. Yes", "Yes. Say it."),
    ("startend:end_checker", {"end_phrase": "The End"}, 'and so "the end" ', "the end."),
    ("startend:quotation", {}, ' "all of it" ', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "U.S. CAN'T", "A"),
    ("change_case:english_capital", {}, TEXT.upper(), TEXT),
    ("change_case:english_lowercase", {}, TEXT.lower(), TEXT),
    ("punctuation:no_comma", {}, "none here", "one, here"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), KNOWN, ids=lambda v: v if v in KINDS else "")
def test_known_answers(kind, arguments, good, bad):
    if kind in LANGUAGE:
        pytest.importorskip("langdetect", reason="langdetect is not installed")
    assert follows(kind, arguments, good)
    assert not follows(kind, arguments, bad)


def test_every_kind_has_a_known_answer():
    assert {kind for kind, *_ in KNOWN} == set(KINDS) and len(KINDS) == 25


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("no end", 1),
        ("Dr. Smith left at 5 p.m. on Monday. He slept!", 2),
        ("1. Buy milk.\n2. Drink it.", 2),
        ('He said "Stop!" Then he left (at last.) Yes?', 3),
        ("Wait... what? I do... Yes!!", 3),
        ("J. K. Rowling paid 3.5 dollars. It was I. He went.", 3),
        ("See e.g. Jones et al. on this. In the U.S. They do", 3),
        ("?! ...", 0),
    ],
)
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


def test_capitals():
    assert count_capitals("HELLO WORLD-WIDE CAN'T U.S. COVID-19 I a Ab 2ND 99 — ÄRGER NASA's I'm Ab's") == 10


# --- grades --------------------------------------------------------------------------------------------------


def prompt(*instructions):
    kinds, arguments = zip(*instructions, strict=True)
    return Item("one", facts={"instruction_id_list": list(kinds), "kwargs": list(arguments)})


NO_COMMA = ("punctuation:no_comma", {})
TITLE = ("detectable_format:title", {})


def test_strict_and_loose_at_both_levels():
    grade = ifeval.grade(prompt(NO_COMMA, TITLE), "Sure, here it is:\n<<A River>>\ntext")
    assert grade.score == 0 and grade.why == "broken: punctuation:no_comma"
    assert grade.parts == {
        "1 punctuation:no_comma": 0,
        "1 punctuation:no_comma loose": 1,  # without its first line
        "2 detectable_format:title": 1,
        "2 detectable_format:title loose": 1,
        "prompt_strict": 0,
        "instruction_strict": 0.5,
        "prompt_loose": 1,
        "instruction_loose": 1,
    }
    assert ifeval.grade(prompt(NO_COMMA, TITLE), "<<A River>>").score == 1


def test_an_empty_output_follows_nothing():
    grade = ifeval.grade(prompt(NO_COMMA), " \n ")
    assert (grade.score, grade.parts["prompt_loose"]) == (0, 0)


def test_what_cannot_be_decided_is_not_scored():
    unknown, incomplete = ("new:kind", {}), ("keywords:existence", {"keywords": None})
    for undecidable in (unknown, incomplete, ("keywords:frequency", {"keyword": "a", "frequency": 1})):
        grade = ifeval.grade(prompt(NO_COMMA, undecidable), "text")
        assert grade.score is None and undecidable[0] in grade.why
        assert grade.parts["instruction_strict"] == 1  # of the decided ones
        assert ifeval.grade(prompt(NO_COMMA, undecidable), "a, b\n c, d\n e, f").score == 0  # broken anyhow
    for facts in ({}, {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}):
        assert ifeval.grade(Item("one", facts=facts), "text").score is None


def test_language_without_langdetect_or_letters_is_undecided(monkeypatch):
    german = ("language:response_language", {"language": "de"})
    if "langdetect" in sys.modules or pytest.importorskip("langdetect"):
        assert ifeval.grade(prompt(german), "12345 67890").score is None
    monkeypatch.setitem(sys.modules, "langdetect", None)
    grade = ifeval.grade(prompt(german), "Der Fluss entspringt in den Hügeln.")
    assert grade.score is None and "pip install langdetect" in grade.why


def test_the_same_text_always_has_the_same_language():
    langdetect = pytest.importorskip("langdetect")
    mixed = "Der Fluss the river la rivière il fiume de rivier floden"
    before = langdetect.DetectorFactory.seed
    assert len({follows("language:response_language", {"language": "de"}, mixed) for _ in range(20)}) == 1
    assert langdetect.DetectorFactory.seed == before  # everybody's seed is left alone


@pytest.mark.parametrize(
    "mark", ["[", "<<", "* ", "*", "\n", " ", "-", "p. ", "Section ", "a", '"', ",", "{", "A.", "[]"]
)
def test_a_megabyte_of_anything_is_quick(mark):
    text, start = mark * (HUGE // len(mark)), time.process_time()
    for kind, arguments, _, _ in KNOWN:
        try:
            assert follows(kind, arguments, text) in (True, False)
        except Undecidable:
            assert kind in LANGUAGE
    assert time.process_time() - start < 10


# --- lm-eval -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness():
    """lm-eval's checks, `checks(row, response, "strict" | "loose") -> list[bool]`, and nothing downloaded."""
    pytest.importorskip("lm_eval", reason="compared with lm-eval, which is not installed")
    nltk = pytest.importorskip("nltk", reason="lm-eval's IFEval needs nltk, which is not installed")
    langdetect = pytest.importorskip(
        "langdetect", reason="lm-eval's IFEval needs langdetect, which is not installed"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *_, **__: False)
        patch.setattr(langdetect.DetectorFactory, "seed", 0)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloaded, whether or not it did
            from lm_eval.tasks.ifeval import utils

        def checks(row, response, how):
            example = utils.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
            run = getattr(utils, f"test_instruction_following_{how}")
            return run(example, response).follow_instruction_list

        patch.setattr(utils.instructions_registry.instructions.logger, "error", lambda *_: None)
        yield checks


def comparable(kind, arguments):
    letter = arguments.get("letter", "a").lower()
    return kind not in NEEDS_PUNKT and len(letter) == 1 and "a" <= letter <= "z"


def compare(harness, row, response, how, counts):
    """Count each instruction of a row under (kind, how, outcome); its disagreements are returned."""
    pairs = [
        (k, a) for k, a in zip(row["instruction_id_list"], row["kwargs"], strict=True) if comparable(k, a)
    ]
    if not pairs:
        return []
    row = row | {"instruction_id_list": [k for k, _ in pairs], "kwargs": [a for _, a in pairs]}
    readings = [response] if how == "strict" else ifeval.loose_readings(response)
    wrong = []
    for (kind, arguments), theirs in zip(pairs, harness(row, response, how), strict=True):
        mine, _ = ifeval.check(kind, arguments, readings)
        if mine is None and kind in LANGUAGE and theirs:
            outcome = "undecided"
        elif mine == theirs:
            outcome = "followed" if theirs else "broken"
        else:
            outcome = "disagree"
            wrong.append((kind, arguments, how, response, mine, theirs))
        counts[kind, how, outcome] += 1
    return wrong


def report(title, counts):
    outcomes = ("followed", "broken", "undecided", "disagree")
    rows = [
        [kind, how, sum(found), *found]
        for kind, how in itertools.product(KINDS, ("strict", "loose"))
        if any(found := [counts[kind, how, outcome] for outcome in outcomes])
    ]
    table(title, ["kind", "reading", "n", *outcomes], rows)


SCRAPS = [
    "", "*", "**", "***", "******", "* ", "- ", "-", "\n", "\n\n", " ", "[", "]", "<<", ">>", "<", '"', "'", "`",
    "```json", "```", "{", "}", "1", "a", "sea", "Sea", "river", "P.S.", "P.P.S", "p. s", "Day", "Day 1", ".", ",", "!",
    "?", "My answer is no.", "the end", "Say it.", "\t", "\x0b", "\u2028", "İ", "ß", "\r\n",
]  # fmt: skip


def test_scraps_put_together_at_random_agree_with_lm_eval(harness):
    """Fifteen hundred texts of the marks that the checks look for, under every kind that needs no language."""
    draw, counts, wrong = random.Random(0), Counter(), []
    cheap = [
        (k, a) for k, a, _, _ in KNOWN if k not in LANGUAGE and comparable(k, a) and "c++ (11)" not in str(a)
    ]
    cheap += [("length_constraints:number_paragraphs", {"num_paragraphs": n}) for n in (1, 3)]
    cheap += [("detectable_format:number_bullet_lists", {"num_bullets": n}) for n in (1, 2)]
    cheap += [
        ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "less than"}),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}),
        (NTH, {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "a"}),
        (NTH, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "day"}),
    ]
    row = {
        "key": 0,
        "prompt": "",
        "instruction_id_list": [k for k, _ in cheap],
        "kwargs": [a for _, a in cheap],
    }
    for number in range(1500):
        text = "".join(draw.choices(SCRAPS, k=draw.randint(0, 14)))
        text = f'"{text}"' if number % 10 == 0 else text
        for how in ("strict", "loose"):
            wrong += compare(harness, row, text, how, counts)
    report("lm-eval on scraps", counts)
    assert not wrong, wrong[:3]
    for kind, _ in cheap:
        assert counts[kind, "strict", "followed"] and counts[kind, "strict", "broken"], kind


LANGUAGES = {
    "ar": "ينبع النهر من التلال ويجري نحو البحر ولا أحد يعرف عمره",
    "bg": "Реката извира от хълмовете и тече към морето, никой не знае колко е стара",
    "bn": "নদীটি পাহাড় থেকে উৎপন্ন হয়ে সমুদ্রের দিকে বয়ে যায়",
    "de": "Der Fluss entspringt in den Hügeln und fließt ins Meer; niemand weiß, wie alt er ist",
    "fa": "این رودخانه از تپه‌ها سرچشمه می‌گیرد و به سوی دریا می‌رود",
    "fi": "Joki alkaa kukkuloilta ja virtaa mereen, eikä kukaan tiedä kuinka vanha se on",
    "gu": "નદી ટેકરીઓમાંથી નીકળે છે અને સમુદ્ર તરફ વહે છે",
    "hi": "नदी पहाड़ियों से निकलती है और समुद्र की ओर बहती है, कोई नहीं जानता कि वह कितनी पुरानी है",
    "it": "Il fiume nasce tra le colline e scende fino al mare; nessuno sa quanto sia antico",
    "kn": "ನದಿಯು ಬೆಟ್ಟಗಳಲ್ಲಿ ಹುಟ್ಟಿ ಸಮುದ್ರದ ಕಡೆಗೆ ಹರಿಯುತ್ತದೆ",
    "ko": "강은 언덕에서 시작되어 바다로 흘러가고 아무도 그 나이를 모른다",
    "mr": "नदी डोंगरात उगम पावते आणि समुद्राकडे वाहते, ती किती जुनी आहे हे कोणालाच माहीत नाही",
    "ne": "नदी पहाडबाट निस्कन्छ र समुद्रतिर बग्छ, यो कति पुरानो हो कसैलाई थाहा छैन",
    "pa": "ਨਦੀ ਪਹਾੜੀਆਂ ਵਿੱਚੋਂ ਨਿਕਲਦੀ ਹੈ ਅਤੇ ਸਮੁੰਦਰ ਵੱਲ ਵਗਦੀ ਹੈ",
    "pt": "O rio nasce nas colinas e desce até ao mar; ninguém sabe quantos anos ele tem",
    "ru": "Река берёт начало на холмах и течёт к морю, и никто не знает, сколько ей лет",
    "sw": "Mto huanza milimani na kutiririka hadi baharini, wala hakuna anayejua umri wake",
    "ta": "ஆறு மலைகளில் தோன்றி கடலை நோக்கி ஓடுகிறது",
    "te": "నది కొండలలో పుట్టి సముద్రం వైపు ప్రవహిస్తుంది",
    "th": "แม่น้ำไหลจากเนินเขาลงสู่ทะเล ไม่มีใครรู้ว่ามันเก่าแก่เพียงใด",
    "ur": "دریا پہاڑیوں سے نکلتا ہے اور سمندر کی طرف بہتا ہے اور کوئی نہیں جانتا کہ یہ کتنا پرانا ہے",
    "vi": "Con sông bắt nguồn từ những ngọn đồi và chảy ra biển, không ai biết nó bao nhiêu tuổi",
}


def obeying(text, kind, args):
    """A text changed so that it follows an instruction, mostly; several instructions may undo each other."""
    many = args.get("relation", args.get("let_relation", args.get("capital_relation"))) == "at least"
    words = text.split()
    match kind.partition(":")[2]:
        case "existence":
            return f"{text} {' '.join(args['keywords'])}"
        case "forbidden_words":
            banned = {word.lower() for word in args["forbidden_words"]}
            return " ".join(word for word in words if word.strip(".,!?;:'\"()").lower() not in banned)
        case "frequency":
            word = args["keyword"]
            return text + f" {word}" * args["frequency"] if many else text.lower().replace(word.lower(), "")
        case "letter_frequency":
            letter = args["letter"]
            return f"{text} {letter * args['let_frequency']}" if many else text.lower().replace(letter, "")
        case "response_language":
            return LANGUAGES[args["language"]]
        case "number_words":
            return " ".join([*words, "word"] * args["num_words"] if many else words[: args["num_words"] - 1])
        case "number_paragraphs":
            return "\n***\n".join(f"Part {n}. {text}" for n in range(args["num_paragraphs"]))
        case "nth_paragraph_first_word":
            parts = [f"Part {n}." for n in range(args["num_paragraphs"])]
            parts[args["nth_paragraph"] - 1] = f"{args['first_word'].title()}, {' '.join(words)}"
            return "\n\n".join(parts)
        case "number_placeholders":
            return text + " [name]" * args["num_placeholders"]
        case "postscript":
            return f"{text}\n\n{args['postscript_marker']} Thank you."
        case "number_bullet_lists":
            return " ".join(words) + "".join(f"\n* point {n}" for n in range(args["num_bullets"]))
        case "number_highlighted_sections":
            return text + "".join(f"\n*part {n}* and so on" for n in range(args["num_highlights"]))
        case "multiple_sections":
            return "\n".join(
                f"{args['section_spliter']} {n + 1}\n{text}" for n in range(args["num_sections"])
            )
        case "json_format":
            return "```json\n" + json.dumps({"answer": text}) + "\n```"
        case "title":
            return f"<<On rivers>>\n{text}"
        case "constrained_response":
            return "My answer is maybe."
        case "two_responses":
            return f"{text}\n******\nAnother one. {text}"
        case "repeat_prompt":
            return f"{args['prompt_to_repeat']}\n{text}"
        case "end_checker":
            return f"{text}\n{args['end_phrase']}"
        case "quotation":
            return f'"{text}"'
        case "english_capital":
            return text.upper()
        case "english_lowercase":
            return text.lower()
        case "no_comma":
            return text.replace(",", "")
    return text


def responses_to(row, texts, draw):
    """Something written for somebody else; one that obeys; and one that obeys inside a frame of politeness."""
    text = draw.choice(texts)[:2000]
    obedient = text[:600]
    pairs = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    for kind, arguments in sorted(pairs, key=lambda pair: pair[0], reverse=True):
        obedient = obeying(obedient, kind, arguments)
    mutated = list(obedient)
    for _ in range(3):
        mutated.insert(draw.randrange(len(mutated) + 1), draw.choice(SCRAPS))
    frame = draw.choice(
        ["Sure, here it is:\n{}", "{}\nI hope this helps, friend!", "**Yes,**\n{}\n**So, there.**"]
    )
    return text, obedient, frame.replace("{}", obedient), "".join(mutated)


def real_texts(data_directory):
    """Answers of Dolly and Alpaca, and the prompts themselves."""
    rows = (data_directory / "eval" / "ifeval_input_data.jsonl").read_text().splitlines()
    texts = [json.loads(row)["prompt"] for row in rows]
    dolly = data_directory / "instruct" / "dolly_partial_filtered.jsonl"
    alpaca = data_directory / "instruct" / "alpaca_en_demo.json"
    if dolly.exists():
        texts += [json.loads(line)["response"] for line in dolly.read_text().splitlines()]
    if alpaca.exists():
        texts += [row["output"] for row in json.loads(alpaca.read_text())]
    return [text for text in texts if text.strip()]


@pytest.mark.parametrize("each", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_real_responses_agree_with_lm_eval(harness, data_directory, each):
    path = data_directory / "eval" / "ifeval_input_data.jsonl"
    if not path.exists():
        pytest.skip(f"no {path.name} in the data directory")
    texts, draw = real_texts(data_directory), random.Random(0)
    counts, wrong, compared = Counter(), [], 0
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        responses = responses_to(row, texts, draw)
        for response in [*responses, *responses][number % 4 :][:each]:
            compared += 1
            for how in ("strict", "loose"):
                wrong += compare(harness, row, response, how, counts)
    report(f"lm-eval on {compared:,} responses", counts)
    assert compared >= 1000
    assert not wrong, wrong[:3]
    for kind, how in itertools.product(sorted(set(KINDS) - NEEDS_PUNKT), ("strict", "loose")):
        assert counts[kind, how, "followed"] and counts[kind, how, "broken"], (kind, how)
