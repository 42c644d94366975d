"""Made-up prose: unlike for unlike seeds, the same for the same."""

import random

import pytest

WORDS = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 7)) for i in range(2000)]


def make_prose(seed, words=120):
    """Sentences of eight words, four to a paragraph."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    sentences = [" ".join(chosen[i : i + 8]) + "." for i in range(0, words, 8)]
    return "\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4)) + "\n"


@pytest.fixture(scope="session")
def prose():
    return make_prose


@pytest.fixture
def write_folder(tmp_path):
    """Write `{name: text or bytes}` under a folder and return it."""

    def write(files):
        folder = tmp_path / "folder"
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write
