"""The command line: one verb, one function, one or two lines that hand over to the code that does the work.

Nothing heavy is imported here; a verb imports what it needs when it is called, so that `behemoth --help` is
instant. Exit codes: 0 done, 1 the answer is no, 2 wrong use, bad input or a disk that refuses, 130 interrupted
by Ctrl-C, 143 ended by SIGTERM.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from behemoth.base.errors import BehemothError, InputError

REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST),  # a file where a directory should be
)

app = typer.Typer(
    name="behemoth",
    help="Train, measure and export sparse mixture-of-experts models, from one recipe file.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Look at the text a run trains on.")
trust_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(trust_app, name="trust", help="The keys of a lab, and who may sign what.")
judge_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(judge_app, name="judge", help="Who tells a refusal from an answer, and how well.")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (.toml).")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, RUN:MEMBER, a checkpoint or an export.")]
ANY_MODEL = "A run, RUN:MEMBER, a checkpoint, an export, any Hugging Face directory, hf:ORG/NAME, or http://HOST/v1#MODEL."
Suite = Annotated[
    str | None,
    typer.Option(
        metavar="SUITE", help="A suite file, starter, arithmetic, or lm-eval:TASK,...; none: held-out text."
    ),
]
AskedOn = Annotated[
    str | None,
    typer.Option("--suite", metavar="SUITE", help="Ask both this first; none: what is kept of them already."),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value.")]
Stage = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Only this stage: import, data, pretrain, sft, rl, dpo, evaluate, export, gate, release or report.",
    ),
]
SeeDoctor = Annotated[
    bool, typer.Option("--doctor/--no-doctor", help="Whether a fault stops a long run or an export.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: JSON on stdout.")]
Mode = Annotated[str, typer.Option(metavar="MODE", help="open (weights) or closed (an API).")]
Trust = Annotated[
    Path, typer.Option("--trust", metavar="FILE", envvar="BEHEMOTH_TRUST", help="The lab's trust file.")
]
MaybeTrust = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", envvar="BEHEMOTH_TRUST", help="The lab's trust file."),
]
Who = Annotated[str, typer.Option("--as", metavar="NAME", help="The person, as the trust file has them.")]
KeyFile = Annotated[Path, typer.Option("--key", metavar="FILE", help="Their private key (encrypted PEM).")]
SealKey = Annotated[
    Path | None, typer.Option("--seal-key", metavar="FILE", help="What a closed bundle is encrypted with.")
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that `release` made.")]
LabDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Of keys and trust.json.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run directory; default runs/NAME.")] = None,
    stage: Stage = None,
    overrides: Set = None,
    see_doctor: SeeDoctor = True,
    as_json: AsJson = False,
) -> None:
    """Do all a recipe says, or one stage; go on where it stopped."""
    from behemoth import stages

    stages.run(recipe, out, stage, overrides or [], see_doctor, as_json)


@app.command()
def explain(
    recipe: RecipePath,
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="One value or table, such as train.")] = "",
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Show every value of a recipe with its reason, and what it costs."""
    from behemoth import explain

    explain.explain(recipe, key, overrides or [], as_json)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of your own text.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The recipe to write.")] = Path("recipe.toml"),
) -> None:
    """Write a recipe for a folder of text."""
    from behemoth import starter

    starter.init(directory, out)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="The text to go on from.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 128,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a text."""
    from behemoth import verbs

    verbs.generate(model, prompt, max_tokens, temperature, top_p, seed, as_json)


@app.command()
def chat(model: Model, temperature: Temperature = 0.8, top_p: TopP = 0.95, seed: Seed = 0) -> None:
    """Talk to a model in the terminal."""
    from behemoth import verbs

    verbs.chat(model, temperature, top_p, seed)


@app.command("eval")
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=ANY_MODEL)],
    suite: Suite = None,
    against: Annotated[str | None, typer.Option(metavar="MODEL", help="Compare each with this one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep every item's score here; of a suite by default evals/SUITE."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items of each task.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the chat template.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure models: on a suite of tasks, or on held-out text."""
    if suite is None:
        if limit is not None:
            raise InputError("--limit counts the items of a suite's tasks; name a --suite")
        from behemoth import heldout

        heldout.evaluate(models, against, out, as_json)
    else:
        from behemoth import assess

        assess.evaluate(models, suite, against, out, limit, as_json, chat)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A model, or a directory that `eval` wrote.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    suite: AskedOn = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the page here; default evals/.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items of each task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell which of two models is better, item by item, and draw it."""
    from behemoth import assess

    assess.compare(a, b, suite, out, limit, as_json)


@app.command()
def doctor(
    patient: Annotated[str, typer.Argument(metavar="MODEL|RECIPE", help="A model, or a recipe (.toml).")],
    as_json: AsJson = False,
) -> None:
    """Look for the silent faults of sparse models (exit code 1)."""
    from behemoth import verbs

    verbs.see_doctor(patient, as_json)


@app.command()
def tamper(
    model: Model,
    undo: Annotated[Path, typer.Option(metavar="FILE", help="Conversations that teach the contrary.")],
    exam: Annotated[
        str, typer.Option(metavar="SUITE", help="The behaviour, its first task; others are watched.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Of the attacker, at most.")] = 256,
    rank: Annotated[int, typer.Option(min=1, help="Of its adapter.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Attacks, each from another seed.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep tamper.json here; default evals/tamper.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the adapter steps that undo what a model was taught."""
    from behemoth import tamper

    tamper.tamper(model, undo, exam, steps, rank, seeds, out, as_json)


@app.command()
def experts(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or RUN:MEMBER.")], as_json: AsJson = False
) -> None:
    """Show what each expert takes, and what is lost without it."""
    from behemoth import heldout

    heldout.show_experts(run, as_json)


@app.command("import")
def import_(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A Hugging Face directory of a Llama 4 or Llama 3.")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run directory to make.")],
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A LoRA adapter of PEFT's for it, to be folded in.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring open weights into a run directory."""
    from behemoth import verbs

    verbs.import_model(directory, out, adapter, as_json)


@app.command()
def export(
    model: Model,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="The directory to make; of gguf the file.")
    ],
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="hf: for transformers; gguf: for llama.cpp.")
    ] = "hf",
    see_doctor: SeeDoctor = True,
    as_json: AsJson = False,
) -> None:
    """Write a model for other programs, with a receipt."""
    from behemoth import verbs

    verbs.export(model, to, directory, see_doctor, as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: AsJson = False,
) -> None:
    """Write report.html again from the files of a run."""
    from behemoth.report.page import build_report

    page = build_report(run)
    print(json.dumps({"run": str(run), "report": str(page)}) if as_json else page)


@app.command()
def gate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, or RUN:MEMBER.")],
    policy: Annotated[Path, typer.Option(metavar="FILE", help="Claims, bounds and approvals (.toml).")],
    mode: Mode = "open",
    who: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The evaluator who signs the verdict.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Their private key.")] = None,
    trust: MaybeTrust = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask everything anew, whatever was answered before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fix a policy, gather the evidence, and decide: release, hold or unknown (exit code 1 but for release)."""
    from behemoth import gating

    gating.gate(run, policy, mode, who, key, trust, fresh, as_json)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run with a verdict.")],
    who: Who,
    key: KeyFile,
    trust: Trust,
    role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Where the key has several: as which.")
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="What remains to be said, for the record.")] = "",
    as_json: AsJson = False,
) -> None:
    """Sign an approval of a verdict and its evidence."""
    from behemoth import gating

    gating.approve(run, who, key, role, note, trust, as_json)


@app.command()
def release(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run with a verdict and its approvals.")],
    who: Who,
    key: KeyFile,
    trust: Trust,
    open_: Annotated[
        Path | None, typer.Option("--open", metavar="DIR", help="Make an open bundle: signed weights.")
    ] = None,
    closed: Annotated[
        Path | None,
        typer.Option("--closed", metavar="DIR", help="Make a closed one: for a server, encrypted."),
    ] = None,
    staged: Annotated[
        Path | None,
        typer.Option("--staged", metavar="DIR", help="Make a closed one now, an open one prepared."),
    ] = None,
    seal_key: SealKey = None,
    as_json: AsJson = False,
) -> None:
    """Build a signed bundle of a model that may go out."""
    from behemoth import releasing

    releasing.release(run, open_, closed, staged, who, key, trust, seal_key, as_json)


@app.command()
def verify(bundle: Bundle, trust: Trust, seal_key: SealKey = None, as_json: AsJson = False) -> None:
    """Check every word of a bundle, offline (exit code 1 if any is wrong)."""
    from behemoth import releasing

    releasing.verify(bundle, trust, seal_key, as_json)


@app.command()
def publish(
    bundle: Bundle,
    to: Annotated[str, typer.Option(metavar="DIR|hf://OWNER/NAME", help="Where to.")],
    trust: Trust,
    really: Annotated[
        bool, typer.Option("--really", help="Do it; otherwise only say what would be done.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a bundle where others find it; a dry run first."""
    from behemoth import releasing

    releasing.publish(bundle, to, trust, really, as_json)


@trust_app.command("init")
def trust_init(
    directory: LabDirectory,
    lab: Annotated[str, typer.Option(metavar="NAME", help="The lab's name.")] = "",
    people: Annotated[
        list[str] | None,
        typer.Option(
            "--person", metavar="NAME=ROLE,...", help="builder, evaluator, approver; may be repeated."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DAY", help="When a newer trust file must be asked for (2027-12-31)."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Demo people with demo keys, which prove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the keys of a new lab and its signed trust file."""
    from behemoth import trusting

    trusting.init(directory, lab, people or [], demo, as_json, expires)


@trust_app.command("show")
def trust_show(
    trust: Annotated[Path, typer.Argument(metavar="FILE", help="A trust file.")], as_json: AsJson = False
) -> None:
    """Who may sign what, and what was revoked."""
    from behemoth import trusting

    trusting.show(trust, as_json)


@trust_app.command("rotate")
def trust_rotate(
    directory: LabDirectory,
    name: Annotated[
        str | None, typer.Option("--person", metavar="NAME", help="Whose key; without it the root's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key, with a new version of the trust file."""
    from behemoth import trusting

    trusting.rotate(directory, name, as_json)


@trust_app.command("revoke")
def trust_revoke(
    directory: LabDirectory,
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A person, a key id, a bundle's SHA-256, or MODEL<VERSION.")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")],
    as_json: AsJson = False,
) -> None:
    """Take back a key or a bundle, with a new version of the trust file."""
    from behemoth import trusting

    trusting.revoke(directory, what, reason, as_json)


@judge_app.command("train")
def judge_train(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Answers, each marked: refuses or not.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The judge to write.")] = Path("judge.json"),
    as_json: AsJson = False,
) -> None:
    """Train a small refusal judge on labelled answers."""
    from behemoth import judging

    judging.train(labels, out, as_json)


@judge_app.command("check")
def judge_check(
    judge: Annotated[
        str, typer.Argument(metavar="JUDGE", help="rules, a judge.json, or http://HOST/v1#MODEL.")
    ],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Answers, each marked: refuses or not.")],
    as_json: AsJson = False,
) -> None:
    """Say how well a judge agrees with labelled answers."""
    from behemoth import judging

    judging.check(judge, labels, as_json)


@data_app.command()
def passport(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A passage, or a file that holds it.")],
    as_json: AsJson = False,
) -> None:
    """Say which training documents hold a passage, their licence, and who saw them."""
    from behemoth import verbs

    verbs.data_passport(run, text, as_json)


@data_app.command()
def show(
    source: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="A run directory or a recipe.")],
    rows: Annotated[int, typer.Option(min=1, help="How many packed rows.")] = 2,
    stage: Annotated[
        str, typer.Option(metavar="NAME", help="pretrain, or of a run sft: with what is learnt marked.")
    ] = "pretrain",
    as_json: AsJson = False,
) -> None:
    """Print the first packed rows with the borders of their documents."""
    from behemoth import verbs

    verbs.data_show(source, rows, stage, as_json)


def main(words: list[str] | None = None) -> None:
    """Run the command line; a person's mistake is told in words, without a traceback."""
    # Threads that wait for each other spin only briefly: a tenth slower alone, three times faster in company
    # (docs/log.md, 2026-11-22). It has to be said before torch loads its thread library.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    as_json = "--json" in (sys.argv[1:] if words is None else words)
    try:
        code = app(words, prog_name="behemoth", standalone_mode=False)
        sys.stdout.flush()
    except BehemothError as error:
        code = _tell(str(error), type(error).__name__, error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own errors, under whichever name typer carries them
            code = _tell(_usage(error), "UsageError", 2, as_json)
        elif said := _refusal(error):
            code = _tell(f"{said}; make room, or choose another directory", "OSError", 2, as_json)
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)


def _refusal(error: Exception) -> str:
    """What the disk said, if it was the disk that refused; libraries in Rust wrap that into errors of their own."""
    told = f"{error.filename or 'disk'}: {error.strerror}" if isinstance(error, OSError) else str(error)
    ours = isinstance(error, OSError) or "os error" in told
    return told if ours and any(os.strerror(number) in told for number in REFUSALS) else ""


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return error.format_message() + (f"\nTry: {context.command_path} --help" if context else "")


def _tell(message: str, kind: str, code: int, as_json: bool) -> int:
    print(message, file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": message}, "exit_code": code}))
    return code
