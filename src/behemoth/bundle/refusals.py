"""Every way in which something signed can be wrong, each with a code of its own.

A refusal is an answer, not a crash: a hostile or careless bundle gets a code that a program can match and a sentence
that a person can read. The codes stand in order of severity: what makes everything after it meaningless comes first,
and a `Refused` that collects several is known by its first. A code is never renamed, because others match on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from behemoth.base.errors import AnswerIsNo

CODES = {
    # bytes that cannot be read at all
    "malformed": "is not what it says it is: cut short, too large, not the format, or with fields that do not belong",
    # the trust file (trust.py)
    "bad-root-signature": "the trust file is not signed by the root keys that it names",
    "root-changed": "the trust file names other root keys, and the ones known so far did not sign it",
    "trust-rolled-back": "the trust file is older than one that was already seen here",
    "trust-forked": "two different trust files carry the same version",
    "trust-expired": "the trust file has run out",
    # who may say what (trust.py)
    "unknown-key": "the key is not in the trust file",
    "revoked-key": "the key was revoked",
    "retired-key": "the key was replaced before this was signed",
    "wrong-role": "the key belongs to somebody who may not say this",
    "bad-signature": "the signature is not of these bytes by this key",
    "withdrawn": "the lab took this bundle back",
    "below-minimum-version": "the lab no longer stands behind versions this old",
    # names and files (manifest.py)
    "symlink": "a link stands where a file or a directory has to",
    "special-file": "a pipe, socket or device stands where a file has to",
    "unreadable-file": "a file or a directory cannot be read",
    "too-many-files": "more files than a bundle has",
    "empty-directory": "a directory without a file, which no manifest can list",
    "name-not-text": "the name is not UTF-8",
    "name-leads-outside": "the name is absolute, or has .., a backslash or an empty part",
    "name-invisible": "the name has control characters or ones that are not seen",
    "name-hidden": "the name begins with a dot, and other programs pass over such files",
    "name-not-portable": "the name cannot be written on every system",
    "name-not-normal": "the name is not in Unicode's normal form C",
    "name-too-long": "the name is longer than 255 bytes",
    "name-collision": "two names are one where case or Unicode forms do not count",
    "manifest-missing": "there is no manifest",
    "missing-file": "a file of the manifest is not there",
    "renamed-file": "a file of the manifest is there under another name",
    "extra-file": "a file is there that the manifest does not list",
    "swapped-file": "a file holds what the manifest lists as another",
    "cut-file": "a file is shorter than the manifest says",
    "longer-file": "a file is longer than the manifest says",
    "changed-file": "a file's bytes are not those of the manifest",
    # the signature over the files (oms.py)
    "signature-missing": "there is no signature over the files",
    "signature-kind": "a model signature of another method than a key of our kind, file by file by SHA-256",
    "signature-leaves-out": "the signature names files that it does not cover",
    "signature-inconsistent": "the signature's digest of all files is not that of the ones it lists",
    "signed-file-missing": "a signed file is not there",
    "unsigned-file": "a file is there that was not signed",
    "signed-file-changed": "a file's bytes are not those that were signed",
    # encrypted files (seal.py)
    "not-sealed": "a file is not one that was sealed",
    "wrong-seal-key": "a file was sealed with another key",
    "sealed-file-changed": "a sealed file was changed, cut, or stands under another name",
    # a bundle (release/approvals.py, package.py, verify.py)
    "trust-too-old": "the bundle was built under a newer version of the trust file than the one that was given",
    "other-wording": "made by another version of this package, which words verdict and card otherwise",
    "demo-differs": "made with demo keys and told as real, or the other way round",
    "foreign-file": "a file that belongs to no bundle, though it is listed and signed",
    "facts-differ": "what the manifest says of the bundle is not what its files say",
    "too-large": "a file of the record is larger than any record is",
    "no-record": "a part of the record (policy, evidence, verdict or log) is not there",
    "policy-changed": "the policy is not the one that the verdict was reached under",
    "evidence-damaged": "the evidence is not as it was gathered",
    "evidence-changed": "the evidence is whole, and not the one that the verdict rests on",
    "verdict-differs": "the verdict is not what follows from policy and evidence",
    "not-released": "the verdict is not release",
    "verdict-of-another-mode": "the verdict is for another way of releasing",
    "verdict-unsigned": "no evaluator signed the verdict",
    "verdict-signature": "the evaluator's signature does not hold",
    "builder-evaluated": "whoever builds signed the verdict, and the policy does not let them",
    "verdict-of-another": "what the evaluator signed is another verdict",
    "log-broken": "the log's chain is broken",
    "log-differs": "the log tells another story: the policy did not come first, or the verdict was made void",
    "log-of-another": "the evaluator signed the verdict on another log",
    "mode-not-allowed": "the policy lets nothing out in this way",
    "approval-malformed": "an approval is not one person's signed statement",
    "approval-signature": "an approval's signature does not hold",
    "approval-in-anothers-name": "an approval names another person than the one whose key signed it",
    "approval-of-another-mode": "an approval is for another way of releasing",
    "approval-of-another-verdict": "an approval is of another verdict, evidence or model",
    "approval-not-logged": "an approval is not in the log",
    "builder-approved": "whoever builds approved, and the policy does not let them",
    "too-few-approvals": "fewer approvals of a role than the policy asks for",
    "too-few-people": "fewer people approved than the policy asks for",
    "model-differs": "the weights are not those of the model that was judged",
    "receipt-differs": "the files are not those that the export's receipt is of",
    "provenance-differs": "the evidence tells of the making of other weights",
    "gguf-differs": "the file for llama.cpp is not the one that the evidence is of",
    "card-differs": "the card is not what is rendered from the evidence",
    "licence-differs": "LICENSE or NOTICE is not what follows from the evidence",
}


@dataclass(frozen=True)
class Refusal:
    code: str
    message: str

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code}: not in refusals.CODES"


class Refused(AnswerIsNo):
    """What was asked for is refused: `code` and the message of the gravest, and all of them in `refusals`."""

    def __init__(self, code: str, message: str, refusals: Sequence[Refusal] = ()):
        first = Refusal(code, message)
        self.code = code
        self.refusals = list(refusals) or [first]
        super().__init__(message)


def refused(refusals: Sequence[Refusal]) -> Refused:
    """One exception for several refusals, the gravest first; in the order they were found within a code."""
    order = list(CODES)
    ranked = sorted(refusals, key=lambda refusal: order.index(refusal.code))
    return Refused(ranked[0].code, "\n".join(refusal.message for refusal in ranked), ranked)
