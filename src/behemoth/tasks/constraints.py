"""The 25 kinds of instruction of IFEval, each a question about a text that a program can answer.

The rules are those of Zhou et al. 2023 (arXiv 2311.07911) as lm-eval applies them, odd ones included, so that
numbers compare: a keyword counts inside longer words, a forbidden word only as a whole one, an empty piece at an
end of a text cut by dividers is forgiven and one in the middle is not. Where lm-eval searches with expressions
that take quadratic time, lines are searched here. Four deliberate differences:

- a language that cannot be told (no letters, or langdetect is not installed) is undecided; lm-eval says followed;
- a letter to be counted may be any character; lm-eval draws a letter at random for two published items (# and !);
- sentences end at . ! ? and what closes after them, unless an abbreviation, an initial or the number of a list
  item stands before; lm-eval asks nltk's punkt model, a download;
- words in capitals are counted as a reader would; lm-eval's nltk tokens make two of CAN'T, and need punkt too.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import re
from collections.abc import Mapping
from typing import Any

from behemoth.tasks.task import Undecidable

KINDS = (
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "combination:repeat_prompt",
    "combination:two_responses",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:constrained_response",
    "detectable_format:json_format",
    "detectable_format:multiple_sections",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:title",
    "keywords:existence",
    "keywords:forbidden_words",
    "keywords:frequency",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:nth_paragraph_first_word",
    "length_constraints:number_paragraphs",
    "length_constraints:number_sentences",
    "length_constraints:number_words",
    "punctuation:no_comma",
    "startend:end_checker",
    "startend:quotation",
)
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
POSTSCRIPTS = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
LANGUAGE_READ = 100_000  # langdetect itself looks at the first 10,000 characters, addresses left out


def follows(kind: str, arguments: Mapping[str, Any], text: str) -> bool:
    """Whether a text follows an instruction. Raises Undecidable where that cannot be said:
    the instruction lacks an argument, or the text gives no ground."""
    try:
        return _follows(kind, arguments, text)
    except (KeyError, TypeError, AttributeError) as error:
        raise Undecidable(f"arguments {arguments} do not fit: {error!r}") from error


def _follows(kind: str, args: Mapping[str, Any], text: str) -> bool:
    match kind:
        case "keywords:existence":
            return all(_found(word, text) for word in args["keywords"])
        case "keywords:forbidden_words":
            return not any(re.search(rf"\b{re.escape(w)}\b", text, re.I) for w in args["forbidden_words"])
        case "keywords:frequency":
            return _compare(args["relation"], _found(args["keyword"].strip(), text), args["frequency"])
        case "keywords:letter_frequency":
            letters = text.lower().count(args["letter"].strip().lower())
            return _compare(args["let_relation"], letters, args["let_frequency"])
        case "language:response_language":
            return language(text) == args["language"]
        case "length_constraints:number_sentences":
            return _compare(args["relation"], count_sentences(text), args["num_sentences"])
        case "length_constraints:number_words":
            return _compare(args["relation"], len(re.findall(r"\w+", text)), args["num_words"])
        case "length_constraints:number_paragraphs":
            paragraphs = _pieces(text, "***")
            return "" not in paragraphs and len(paragraphs) == args["num_paragraphs"]
        case "length_constraints:nth_paragraph_first_word":
            return _nth_paragraph(text, args["num_paragraphs"], args["nth_paragraph"], args["first_word"])
        case "detectable_content:number_placeholders":
            return _count_placeholders(text) >= args["num_placeholders"]
        case "detectable_content:postscript":
            marker = args["postscript_marker"].strip()
            pattern = POSTSCRIPTS.get(marker, re.escape(marker.lower()))
            return re.search(pattern, text.lower()) is not None
        case "detectable_format:number_bullet_lists":
            stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.M)
            dashes = re.findall(r"^[^\S\n]*-.*$", text, re.M)
            return len(stars) + len(dashes) == args["num_bullets"]
        case "detectable_format:number_highlighted_sections":
            single = re.findall(r"\*([^\n*]*)\*", text)
            double = re.findall(r"\*\*([^\n*]*)\*\*", text)
            return sum(1 for inside in single + double if inside.strip()) >= args["num_highlights"]
        case "detectable_format:multiple_sections":
            mark = re.escape(args["section_spliter"].strip())
            return len(re.findall(rf"{mark}\s?\d+", text)) >= args["num_sections"]
        case "detectable_format:title":
            return any(_has_title(line) for line in text.split("\n"))
        case "detectable_format:json_format":
            return _is_json(text)
        case "detectable_format:constrained_response":
            return any(answer in text for answer in CONSTRAINED)
        case "combination:two_responses":
            responses = _pieces(text, "******")
            return len(responses) == 2 and "" not in responses and responses[0] != responses[1]
        case "combination:repeat_prompt":
            return text.strip().lower().startswith(args["prompt_to_repeat"].strip().lower())
        case "startend:end_checker":
            return text.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower())
        case "startend:quotation":
            text = text.strip()
            return len(text) > 1 and text[0] == text[-1] == '"'
        case "change_case:capital_word_frequency":
            return _compare(args["capital_relation"], count_capitals(text), args["capital_frequency"])
        case "change_case:english_capital":
            return text.isupper() and language(text) == "en"
        case "change_case:english_lowercase":
            return text.islower() and language(text) == "en"
        case "punctuation:no_comma":
            return "," not in text
    raise Undecidable(f"{kind!r} is not an instruction of IFEval")


def _compare(relation: str, count: int, number: int) -> bool:
    return {"less than": operator.lt, "at least": operator.ge}[relation](count, number)


def _found(keyword: str, text: str) -> int:
    """How often a keyword occurs, in longer words too, in any case."""
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _pieces(text: str, divider: str) -> list[str]:
    """What lies between dividers, stripped; an empty piece at either end is left out."""
    pieces = [piece.strip() for piece in text.split(divider)]
    if not pieces[-1]:
        del pieces[-1]
    return pieces[1:] if pieces and not pieces[0] else pieces


def _nth_paragraph(text: str, number: int, nth: int, word: str) -> bool:
    """Paragraphs are parted by empty lines; empty ones are not counted, but take a place."""
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    if sum(map(bool, paragraphs)) != number or nth > number or not paragraphs[nth - 1]:
        return False
    first = paragraphs[nth - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", first)[0].lower() == word.lower()


def _count_placeholders(text: str) -> int:
    """[such] ones: from a bracket to the next that closes, within a line."""
    count = 0
    for line in text.split("\n"):
        place = line.find("[")
        while place >= 0 and (end := line.find("]", place + 1)) >= 0:
            count += 1
            place = line.find("[", end + 1)
    return count


def _has_title(line: str) -> bool:
    """<<such a one>>, with something between the angles."""
    start, end = line.find("<<"), line.rfind(">>")
    return 0 <= start < end - 2 and bool(line[start:end].lstrip("<").rstrip(">").strip())


def _is_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # a reader may limit the depth (RFC 8259, section 9)
        return False
    return True


# --- language, sentences, words ------------------------------------------------------------------------------


def language(text: str) -> str:
    """The language of a text as langdetect names it ("en", "zh-cn"); the same text always gets the same."""
    try:
        from langdetect import LangDetectException
    except ImportError as error:
        raise Undecidable("languages are told by langdetect: pip install langdetect") from error
    detector = _languages().create()
    detector.append(text[:LANGUAGE_READ])
    try:
        return detector.detect()
    except LangDetectException as error:
        raise Undecidable("nothing in the text tells its language") from error


@functools.cache
def _languages() -> Any:
    """langdetect's profiles, with a seed of our own: it draws at random, and its own seed is everybody's."""
    from langdetect import PROFILES_DIRECTORY
    from langdetect.detector_factory import DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


_TITLES = re.compile(r"mrs?|ms|dr|prof|st|rev|hon|gen|col|capt|lt|sgt|gov|sen|rep|pres|e\.g|i\.e|vs|cf")
_SHORTENED = re.compile(
    r"[js]r|fig|vol|pp|al|etc|approx|dept|est|inc|ltd|corp?|[a-z](?:\.[a-z])+"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_OPENING, _CLOSING = "\"'“‘([{*_", "\"'”’)]}*_"


def count_sentences(text: str) -> int:
    """Sentences, the last one also without its mark. A line break alone ends none, as in punkt."""
    words = text.split()
    count, begun = 0, False
    for word, following in itertools.pairwise([*words, ""]):
        ended = word.rstrip(_CLOSING)
        if ended.endswith(("!", "?")) or (ended.endswith(".") and not _goes_on(ended, following, begun)):
            count += begun or _has_letters(word)
            begun = False
        else:
            begun = begun or _has_letters(word)
    return count + begun


def _goes_on(word: str, following: str, begun: bool) -> bool:
    """Whether the full stop of a word belongs to the word: an abbreviation, an initial, the number of an item."""
    stem = word.lstrip(_OPENING).rstrip(".").lower()
    starts = following.lstrip(_OPENING)[:1]
    if not begun and (stem.isdigit() or len(stem) == 1):
        return bool(following)
    if _TITLES.fullmatch(stem) or (len(stem) == 1 and stem != "i" and stem.isalpha()):
        return starts.isalpha()
    if _SHORTENED.fullmatch(stem) or word.endswith(".."):
        return starts != "" and not starts.isupper()
    return False


def _has_letters(word: str) -> bool:
    return any(char.isalnum() for char in word)


_WORD = re.compile(r"\w+(?:[-'’.&/]\w+)*")


def count_capitals(text: str) -> int:
    """Words all in capitals, small endings aside: WORLD-WIDE, CAN'T, U.S., COVID-19, NASA's and I'm are one each."""
    return sum(1 for word in _WORD.findall(text) if re.sub(r"['’][a-z]+$", "", word).isupper())
