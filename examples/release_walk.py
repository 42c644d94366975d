"""What docs/release-walk.md tells of three models: one goes out, one is held, of one nobody can tell.

    python examples/release_walk.py --out /tmp/walk [--run RUN] [--short RUN]

--run is a finished run of recipes/quickstart.toml, which is copied; without it one is trained first (minutes). --short
is a run of the recipe that this script writes, a student trained too short; likewise. Every command is then run as a
person would type it, in the directory --out, and must end as it should. What was typed and what was printed is told on
stdout and kept in OUT/walk.md; --into docs/release-walk.md writes that page anew.
"""

import argparse
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
PASSPHRASE = "of the walk"  # one for all keys, and public: these people do not exist
PEOPLE = {"Ada": "builder", "Bo": "evaluator", "Cy": "approver", "Di": "approver"}
LONGEST = 60  # lines of one answer that are shown, the last among them
WIDEST = 70  # of a line that is typed, about
COLUMNS = 110  # of the terminal
HEAD = """\
# A release, walked through

What `examples/release_walk.py` typed and what was printed, progress and repetitions left out: the quickstart's
assistant (`quick`), and one that was trained too short (`short`). What it all means is in `docs/release.md`.

"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROGRESS = re.compile(r"\d% of |━|it/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a directory to make")
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart")
    parser.add_argument("--short", type=Path, help="a finished run of OUT/short.toml")
    parser.add_argument("--into", type=Path, help="a page to write: a heading, and the walk")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True)
    walk = Walk(out)
    write_files(out)
    for name, run, recipe in (("quick", given.run, "quick.toml"), ("short", given.short, "short.toml")):
        if run is None:
            walk.prepare("run", recipe, "--out", name)
        else:
            shutil.copytree(run, out / name, ignore=shutil.ignore_patterns("gate", "release"))
    the_lab(walk)
    closed(walk)
    goes_out(walk)
    altered(walk)
    published(walk)
    cannot_be_told(walk)
    is_held(walk)
    if given.into:
        given.into.write_text(HEAD + walk.page.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"kept: {walk.page}", file=sys.stderr)


def write_files(out: Path) -> None:
    """The policies and the recipes: the quickstart's own, fewer questions, and a student that stops too early."""
    policy = (RECIPES / "policies" / "quickstart.toml").read_text(encoding="utf-8")
    (out / "policy.toml").write_text(policy, encoding="utf-8")
    few = policy.replace("exam = true", 'suite = "few.toml"\nexam = false').replace(
        "items = 600", "items = 60"
    )
    assert few.count('suite = "few.toml"') == 1 and "items = 600" not in few
    (out / "few-policy.toml").write_text(few.replace('name = "quickstart"', 'name = "few"'), encoding="utf-8")
    (out / "few.toml").write_text(FEW, encoding="utf-8")
    recipe = (RECIPES / "quickstart.toml").read_text(encoding="utf-8").partition("\n# --- and whether")[0]
    ends = '\n[release]\npolicy = "policy.toml"\n'
    (out / "quick.toml").write_text(recipe + ends, encoding="utf-8")
    short, tuned, _ = recipe.partition("\n[rl]\n")
    assert tuned and "steps = 150" in short and 'tokens = "1.2M"' in short
    short = short.replace('name = "quickstart"', 'name = "short"').replace("steps = 150", "steps = 12")
    short = short.replace('tokens = "1.2M"', 'tokens = "200K"')
    (out / "short.toml").write_text(short + ends, encoding="utf-8")


FEW = """\
name = "few"

[[tasks]]
kind = "arithmetic"
operations = ["add"]
digits = [1, 2]
form = "question"
steps = true
items = 60
"""

# ------------------------------------------------------------------------------------------------------- the chapters


def the_lab(walk: "Walk") -> None:
    walk.chapter(
        "A lab and its people",
        "Four people, four keys and a root. From here on `BEHEMOTH_TRUST` names the trust file, and "
        "`BEHEMOTH_PASSPHRASE` the passphrase of all keys, which nobody should do.",
    )
    people = [word for name, role in PEOPLE.items() for word in ("--person", f"{name}={role}")]
    walk.run("trust", "init", "lab", "--lab", "Small Lab", *people)
    walk.run("trust", "show", "lab/trust.json")


def closed(walk: "Walk") -> None:
    walk.chapter(
        "Closed",
        "The quickstart's assistant for a server of the lab: one approval is enough. Without the key a stranger sees "
        "what was decided and by whom; with it, the weights and the card too.",
    )
    walk.secret("lab/seal.key")
    sealed = ("--seal-key", "lab/seal.key")
    walk.run("gate", "quick", "--policy", "policy.toml", "--mode", "closed", *walk.signed_by("Bo"))
    walk.run("approve", "quick", *walk.signed_by("Cy"))
    walk.run("release", "quick", "--closed", "closed", *sealed, *walk.signed_by("Ada"))
    walk.run("verify", "closed")
    walk.chapter("Staged", "Closed now; what would make it open is written down.")
    walk.run("release", "quick", "--staged", "staged", *sealed, *walk.signed_by("Ada"))


def goes_out(walk: "Walk") -> None:
    walk.chapter(
        "Open",
        "The same evidence, judged for open weights. Two people have to agree, and the builder is none of them; until "
        "they have, nothing is built.",
    )
    walk.run("gate", "quick", "--policy", "policy.toml", *walk.signed_by("Bo"))
    walk.run("approve", "quick", *walk.signed_by("Ada"), "--role", "approver", ends=1)
    walk.run("approve", "quick", *walk.signed_by("Cy"), "--note", "read the answers that were wrong")
    walk.run("release", "quick", "--open", "open", *walk.signed_by("Ada"), ends=1)
    walk.run("approve", "quick", *walk.signed_by("Di"))
    walk.run("release", "quick", "--open", "open", *walk.signed_by("Ada"))
    walk.run("verify", "open")


def altered(walk: "Walk") -> None:
    walk.chapter("What a stranger notices", "A copy in which one letter of the card is another one.")
    altered = walk.out / "altered"
    shutil.copytree(walk.out / "open", altered)
    card = (altered / "README.md").read_bytes()
    (altered / "README.md").write_bytes(card.replace(b"the", b"thy", 1))
    walk.run("verify", "altered", ends=1, most=7)


def published(walk: "Walk") -> None:
    walk.chapter("Where others find it", "First what would be done, then the deed.")
    walk.run("publish", "open", "--to", "public/quick")
    walk.run("publish", "open", "--to", "public/quick", "--really", most=6)
    walk.chapter(
        "A key that is taken back", "What Di signed counts no more, for whoever has the new trust file."
    )
    walk.run("trust", "revoke", "lab", "Di", "--reason", "left the lab")
    walk.run("verify", "public/quick", ends=1, most=7)


def cannot_be_told(walk: "Walk") -> None:
    walk.chapter(
        "Unknown",
        "Another policy asks 60 sums instead of 600. All that was decided is void, and so few answers decide nothing, "
        "however good they are.",
    )
    walk.run("gate", "quick", "--policy", "few-policy.toml", *walk.signed_by("Bo"), ends=1)
    walk.run("approve", "quick", *walk.signed_by("Cy"), ends=1)
    walk.run("release", "quick", "--open", "never", *walk.signed_by("Ada"), ends=1)


def is_held(walk: "Walk") -> None:
    walk.chapter(
        "Hold", "A student that was trained for too short: a sixth of the text, twelve steps of answers."
    )
    walk.run("gate", "short", "--policy", "policy.toml", *walk.signed_by("Bo"), ends=1)
    walk.run("release", "short", "--open", "never", *walk.signed_by("Ada"), ends=1)
    assert not (walk.out / "never").exists()


# ----------------------------------------------------------------------------------------------------------- the walk


class Walk:
    """Commands run in one directory, told as they are typed."""

    def __init__(self, out: Path):
        self.out, self.page = out, out / "walk.md"
        told = {"BEHEMOTH_PASSPHRASE": PASSPHRASE, "BEHEMOTH_TRUST": "lab/trust.json"}
        terminal = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}
        self.environment = {**os.environ, **told, **terminal, "XDG_STATE_HOME": str(out / "state")}

    def signed_by(self, name: str) -> tuple[str, ...]:
        return ("--as", name, "--key", f"lab/keys/{name.lower()}.pem")

    def chapter(self, title: str, said: str) -> None:
        self.tell("\n".join([f"## {title}", "", *textwrap.wrap(said, 118), ""]))

    def run(self, *words: str, ends: int = 0, most: int = LONGEST) -> None:
        """Run it, tell it (at most so many lines), and insist on how it ends."""
        code, lines = as_seen(["-m", "behemoth", *words], self.out, self.environment)
        if len(lines) > most:
            lines = [*lines[: most - 2], "...", lines[-1]]
        self.tell("\n".join(["```", *typed(words), *lines, "```", ""]))
        if code != ends:
            sys.exit(f"ended with {code} where {ends} was due: behemoth {' '.join(words)}")

    def secret(self, path: str) -> None:
        """32 random bytes as base64, for their owner alone."""
        with open(os.open(self.out / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            subprocess.run(["openssl", "rand", "-base64", "32"], stdout=file, check=True)
        self.tell(f"```\n$ (umask 077; openssl rand -base64 32 > {path})\n```\n")

    def prepare(self, *words: str) -> None:
        """Without telling, as training prints what is told elsewhere."""
        command = [sys.executable, "-m", "behemoth", *words]
        if subprocess.run(command, cwd=self.out, env=self.environment, stdout=sys.stderr).returncode:
            sys.exit(f"failed: behemoth {' '.join(words)}")

    def tell(self, text: str) -> None:
        print(text, flush=True)
        with open(self.page, "a", encoding="utf-8") as page:
            page.write(text + "\n")


def as_seen(words: list[str], place: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
    """What a plain terminal shows of a Python command, but for its progress, and how the command ended."""
    screen, end = pty.openpty()
    command = [sys.executable, *words]
    with subprocess.Popen(
        command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=end, stderr=end
    ) as process:
        os.close(end)
        pieces = []
        with suppress(OSError):  # so a terminal ends whose other side is closed
            while piece := os.read(screen, 1 << 16):
                pieces.append(piece)
    os.close(screen)
    text = ESCAPES.sub("", b"".join(pieces).decode()).replace("\r", "")
    lines = [line.rstrip() for line in text.split("\n") if line and not PROGRESS.search(line)]
    while lines and not lines[-1]:
        lines.pop()
    return process.returncode, lines


def typed(words: tuple[str, ...]) -> list[str]:
    """The command as one would type it; a long one goes on below, at an option."""
    lines = ["$ behemoth"]
    for word in words:
        shown = f"'{word}'" if " " in word else word
        if word.startswith("--") and len(lines[-1]) > WIDEST:
            lines[-1] += " \\"
            lines.append(f"    {shown}")
        else:
            lines[-1] += f" {shown}"
    return lines


if __name__ == "__main__":
    main()
