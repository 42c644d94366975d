"""Graders: an item and what a model wrote in, a grade out.

Each grader is a plain function, so that a task may name it; what it needs beside the output stands in the item.
It reads the output as a careful person would: an announced answer ("#### 18", \\boxed{18}, "the answer is 18")
before a mere number in the text, and the last announcement before earlier ones, for models correct themselves.
An output without an answer is wrong. A grader that cannot decide, because the reference is missing or cannot be
read, or because time ran out, says so with a score of None; it never guesses. Answers stand at the end, so only
the last `READ` characters are read, and every search is linear: ten megabytes of anything take no time.

`gsm8k` also carries the two scores that lm-eval reports, computed as lm-eval does, to compare with published
numbers; its own verdict is the better one ("#### 18.00", "18 eggs" and "$18" are all 18).

Leaves out mixed numbers (3 1/2) and judging free text. The form of an output is graded in `structure.py`,
instructions in `ifeval.py`, programs in `code.py`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from behemoth.tasks import expressions
from behemoth.tasks.task import Grade, Item

READ = 100_000  # characters at the end of an output in which an answer is looked for
DIGITS = 400  # of a number that is compared; Python itself refuses beyond 4,300

# --- words ---------------------------------------------------------------------------------------------------


def exact(item: Item, output: str) -> Grade:
    """The output is the reference, character by character; spaces around it aside."""
    said = output.strip()
    return _one_of(said, [answer.strip() for answer in accepted(item)], said)


def exact_words(item: Item, output: str) -> Grade:
    """The output is the reference; case, punctuation, articles and the width of spaces aside."""
    return _one_of(plain_words(output), [plain_words(answer) for answer in accepted(item)], output.strip())


def exact_final(item: Item, output: str) -> Grade:
    """The announced answer, else the first line, is the reference; compared as by `exact_words`.

    A reference without letters and digits (closing brackets) is compared as written.
    """
    said = announced(output)
    if said is None:
        said = output[:READ].strip().partition("\n")[0]
    said = said.strip().removesuffix(".").strip("* ")
    if any(not plain_words(answer) for answer in accepted(item)):
        return _one_of(said, [answer.strip() for answer in accepted(item)], said)
    return _one_of(plain_words(said), [plain_words(answer) for answer in accepted(item)], said)


def contains_alias(item: Item, output: str) -> Grade:
    """One of the accepted answers occurs in the output, as whole words (TriviaQA's aliases).

    Generous: a list of guesses that holds the right one is right. Stop the output at the end of a line.
    """
    aliases = [words for answer in accepted(item) if (words := plain_words(answer))]
    if not aliases:
        return Grade(None, "no alias has a word in it")
    text = f" {plain_words(output[-READ:])} "
    found = max((alias for alias in aliases if f" {alias} " in text), key=len, default="")
    if found:
        return Grade(1.0, answer=found)
    return Grade(0.0, "none of the accepted answers occurs" if text.strip() else "no answer", _short(output))


def accepted(item: Item) -> tuple[str, ...]:
    """The reference and the other answers that count as right; empty ones say nothing."""
    return tuple(answer for answer in (item.answer, *item.answers) if answer.strip())


def plain_words(text: str, *, case: bool = False, articles: bool = False, punctuation: bool = False) -> str:
    """Text as it is compared: what is switched on is kept, the width of spaces never."""
    if not case:
        text = text.lower()
    if not punctuation:
        text = text.translate(_SPACED)
    if not articles:
        text = re.sub(r"\b(?:an?|the)\b", " ", text, flags=re.IGNORECASE)
    return " ".join(text.split())


# An apostrophe closes up (it's, its), other marks part words (well-known, well known).
_SPACED = str.maketrans(
    {**dict.fromkeys(string.punctuation + "“”„«»…–—¿¡", " "), **dict.fromkeys("'’‘`", "")}
)


def _one_of(said: str, references: Sequence[str], answer: str) -> Grade:
    if not any(references):
        return Grade(None, "the item has no reference answer")
    if said in references:
        return Grade(1.0, answer=_short(answer))
    return Grade(0.0, "not the reference" if said else "no answer", _short(answer))


# --- letters -------------------------------------------------------------------------------------------------

_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_LEADING = re.compile(
    r"[\s*\"'`{]*(?:(?:option|choice)\s+)?(?:[(\[]\s*([A-Za-z])\s*[)\]]|([A-Z])(?![\w'’])|([a-z])[\s.)\]}*]*$)"
)
_ALONE = re.compile(r"[\s*\"'`]*(?:([A-Z])\s*(?:[).:,*\]]|\n|$)|([a-z])\s*(?:[).:]|$))")
_ANOTHER = re.compile(
    r"[\s*\"')\]}]*(?:(?:/|&|,?\s*(?:or|and)\b)\s*(?:[(\[]\s*[A-Za-z]\s*[)\]]|[A-Z](?![\w'’]))"
    r"|,\s*(?:[(\[]\s*[A-Za-z]\s*[)\]]|[B-HJ-Z](?![\w'’])))"  # "B, A sure thing" and "B, I think" name one
)


def multiple_choice_letter(item: Item, output: str) -> Grade:
    """The letter of the right choice, announced, in front, or the only one in brackets.

    The reference is `gold`, or a letter as the answer ("B", "(B)"). Two letters in one announcement are no answer.
    """
    if item.gold is not None and 0 <= item.gold < 26:
        right = string.ascii_uppercase[item.gold]
    else:
        right = item.answer.strip().strip("()[].").upper()
    if len(right) != 1 or right not in string.ascii_uppercase:
        return Grade(None, f"the reference {_short(item.answer)!r} is not a letter")
    text = output[-READ:]
    said = _plain_mathematics(announced(text) or "")
    start = _LEADING.match(said)
    if start and _ANOTHER.match(said, start.end()):
        return Grade(0.0, "more than one letter in the answer", _short(said))
    start = start or _ALONE.match(text)
    if start:
        letter = next(group for group in start.groups() if group).upper()
    else:
        letters = {found.upper() for found in _BRACKETED.findall(text)}
        if len(letters) != 1:
            why = "more than one letter, and no final answer" if letters else "no letter in the answer"
            return Grade(0.0, why, _short(text))
        letter = letters.pop()
    return Grade(float(letter == right), "" if letter == right else f"{letter}, not {right}", letter)


# --- numbers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    text: str
    value: Fraction
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Exactly, as fractions; a percentage also where one of the two left its sign out (50%, 50, 0.5)."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        percentage, bare = (self, other) if self.percent else (other, self)
        return percentage.value == bare.value * 100


_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w).])-)?                                         # a minus, not a hyphen or a difference
    (?P<digits>\d{1,3}(?:,\d{3}(?!\d))+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)    # 1,234.5 or 1234.5 or .5
    (?:[eE](?P<exponent>[-+]?\d+))?
    (?:\s?/\s?(?P<under>\d++)(?![.,]\d))?                            # 3/4
    \s?(?P<percent>%|percent\b)?
    """,
    re.VERBOSE,
)
# After a number, what makes it the beginning of an expression.
_OPERATOR = re.compile(r"\s*(?:(?:\*{1,2}|[\^/×÷·+-])\s?[\d({\\]|\\(?:times|cdot|div|sqrt|frac|pi)|[√π²³])")
_PHRASE = re.compile(r"\banswer(?:\s+is\b|\s*[:=])\s?:?", re.IGNORECASE)


def numeric(item: Item, output: str) -> Grade:
    """The number, or expression, that the output arrives at equals the reference or another accepted answer."""
    references = accepted(item)
    if not references:
        return Grade(None, "the item has no reference answer")
    grades = []
    for reference in references:
        grades.append(_numeric(reference, output[-READ:]))
        if grades[-1].score == 1:
            break
    return next((g for wanted in (1.0, None) for g in grades if g.score == wanted), grades[0])


def gsm8k(item: Item, output: str) -> Grade:
    """`numeric`, with lm-eval's strict-match and flexible-extract beside it as parts."""
    grade = numeric(item, output)
    parts = {
        "strict": _harness_match(item.answer, re.findall(r"#### (-?[0-9.,]+)", output)[:1]),
        "flexible": _harness_match(item.answer, re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", output)[-1:]),
    }
    return Grade(grade.score, grade.why, grade.answer, parts)


def _numeric(reference: str, text: str) -> Grade:
    reference = reference.rpartition("####")[2].strip()
    wanted = read_number(reference)
    said = announced(text)
    if wanted is None:
        return _by_expression(reference, said if said is not None else text.rstrip().rpartition("\n")[2])
    if said is None:
        number = last_number(text)
    else:
        said = _result(said)
        found = first_number(said)
        if _is_expression(said, found):
            return _by_expression(reference, said)
        number = found[0] if found else None
    if number is None:
        return Grade(0.0, "no number in the answer", _short(text if said is None else said))
    if wanted.equals(number):
        return Grade(1.0, answer=_short(number.text))
    return Grade(0.0, f"{_short(number.text)}, not {_short(wanted.text)}", _short(number.text))


def announced(text: str) -> str | None:
    """What follows the last "####", \\boxed or "the answer is", to the end of its line; None without one."""
    text = text[-READ:]
    box = text.rfind("\\boxed")
    start = max([text.rfind("####"), *(phrase.end() for phrase in _PHRASE.finditer(text))])
    if box > start:
        return _in_braces(text[box + len("\\boxed") :])
    if start < 0:
        return None
    return text[start:].lstrip("#*_: \t\n").partition("\n")[0].strip()


def _in_braces(text: str) -> str:
    """Inside the braces that open the text, which may hold others; a box that is not closed ends with its line."""
    text = text.lstrip()
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0 and (char == "}" or place == 0):
            return text[1:place] if char == "}" else text.partition("\n")[0].strip()
    return text[1:].partition("\n")[0].strip()


def read_number(text: str) -> Number | None:
    """A text that is one number and nothing else, currency and full stop aside."""
    text = _plain_mathematics(text).strip().removesuffix(".").strip()
    match = _NUMBER.fullmatch(text)
    return _number(match) if match else None


def first_number(text: str) -> tuple[Number, str, str] | None:
    """The first number of a text, with what stands before and after it."""
    text = _plain_mathematics(text)
    for match in _NUMBER.finditer(text):
        if number := _number(match):
            return number, text[: match.start()], text[match.end() :]
    return None


def last_number(text: str) -> Number | None:
    matches = list(_NUMBER.finditer(_plain_mathematics(text[-READ:])))
    return next((number for match in reversed(matches) if (number := _number(match))), None)


def _number(match: re.Match[str]) -> Number | None:
    """None where it is no number after all: over zero, or longer than anyone means it."""
    digits, under = match["digits"].replace(",", ""), match["under"] or "1"
    exponent = match["exponent"] or "0"
    if max(len(digits), len(under)) > DIGITS or len(exponent) > 4 or not int(under):
        return None
    value = Fraction(f"{digits}e{exponent}") / int(under)
    return Number(match[0].strip(), -value if match["sign"] else value, bool(match["percent"]))


def _plain_mathematics(text: str) -> str:
    """Without currency, LaTeX spacing and units; simple fractions as 3/4."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"\\(?:text(?:bf)?|math(?:rm|bf)|mbox)\s?\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dt]?frac\s?(?:\{(\d+)\}\s?\{(\d+)\}|(\d)(\d))", r"\1\3/\2\4", text)
    return re.sub(r"\\[$,!; ()\[\]]|\\left|\\right|[$€£]", "", text)


def _result(said: str) -> str:
    """What stands after the last equals sign: 18 of "9 * 2 = 18"."""
    tail = said.rpartition("=")[2]
    return tail if any(char.isdigit() for char in tail) else said


def _is_expression(said: str, found: tuple[Number, str, str] | None) -> bool:
    if found is None:
        return "\\" in said or "√" in said
    _, before, after = found
    opened = before.rstrip().endswith("(") and ")" not in after[:1]
    return opened or "\\" in before or "√" in before or bool(_OPERATOR.match(after))


def _by_expression(reference: str, said: str) -> Grade:
    said = said.strip().removesuffix(".").strip("$* ")
    match expressions.compare(reference.strip("$ "), said):
        case "equal":
            return Grade(1.0, answer=_short(said))
        case "different":
            return Grade(0.0, f"{_short(said)}, not {_short(reference)}", _short(said))
        case "no answer":
            return Grade(0.0, "no number in the answer" if said else "no answer", _short(said))
        case "no reference":
            return Grade(
                None, f"the reference {_short(reference)!r} cannot be read as mathematics", _short(said)
            )
        case "not installed":
            return Grade(None, "expressions need math-verify: pip install math-verify", _short(said))
        case "too long":
            return Grade(None, "comparing the expressions took too long", _short(said))
        case "no verdict":
            return Grade(None, "the expressions could not be compared", _short(said))


def _harness_match(reference: str, found: Sequence[str]) -> float:
    """lm-eval's exact_match for GSM8K: commas, dollars, all up to "#### " and a closing full stop ignored."""

    def ignored(text: str) -> str:
        text = re.sub(r"[,$]", "", text)
        return re.sub(r"\.$", "", text.rpartition("#### ")[2]).lower()

    said = found[0].strip() if found else "[invalid]"
    return float(ignored(said) == ignored(reference))


# --- the rest ------------------------------------------------------------------------------------------------


def _short(text: str, limit: int = 200) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
