"""A first recipe counts the files that training would read."""

from pathlib import Path

from behemoth.data.sources import FilesSource, Tally, read
from behemoth.starter import look_at


def test_what_is_counted_is_what_is_read(tmp_path):
    files = ["a.txt", "b.MD", "c/d.txt", ".git/e.txt", "c/.f.txt", "g.png", "tarball.tar.gz"]
    for path in map(Path, files):
        (tmp_path / path.parent).mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"some text of {path}")
    folder, tally = look_at(tmp_path), Tally()
    documents = list(read(FilesSource(tmp_path), tally, lambda _: None))
    assert folder.kinds == {".txt": 2, ".md": 1}
    assert folder.kinds.total() == len(documents)
    assert folder.ignored == tally.dropped.total() == 2
    assert folder.text_bytes == sum(len(document.text) for document in documents)
