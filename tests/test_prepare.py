"""Real text becomes sources: the bytes that go in are the tokens that come out, at any cut, restart or ending."""
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import data
from conftest import ROOT
from data import Tokenizer, find_units, load_tokenizer, prepare, read_documents, train_bpe

LATIN = "Txakurrak etxean daude, eta katua leihoan. Ünïcode: ñ, ç."
ARABIC = "اللغة العربية لغة جميلة، والقطة في البيت."
DEVANAGARI = "बिल्ली घर में है और कुत्ता बाहर है।"
DOCUMENTS = [f"{script} {i}\n{script[:20]}" for i in range(40) for script in (LATIN, ARABIC, DEVANAGARI)]


def write(path, documents=DOCUMENTS, field="text"):
    """The documents as a file of the kind that its name says."""
    text = ("".join(json.dumps({field: d}) + "\n" for d in documents) if ".jsonl" in path.name else
            "\n\n".join(documents) + "\n")
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def documents_in(folder):
    """The set of documents of a prepared source, decoded, and the sizes of its two parts."""
    tok = Tokenizer.from_json((folder / "tokenizer.json").read_text())
    parts = {p: np.fromfile(folder / f"{p}.bin", dtype=tok.dtype) for p in ("train", "val")}
    both = np.concatenate(list(parts.values()))
    assert both[0] == tok.eot
    return [tok.decode(d) for d in np.split(both, np.flatnonzero(both == tok.eot))[1:] for d in [d[1:]]], parts


@pytest.mark.parametrize("kind", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"])
def test_every_document_of_three_scripts_comes_back_from_every_kind_of_file(tmp_path, kind):
    folder = prepare("x", [write(tmp_path / kind)], tmp_path / "data", tokenizer="bpe", vocab_size=400, val=0.2, workers=1)
    found, parts = documents_in(folder)
    assert sorted(found) == sorted(DOCUMENTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokens"] == {p: len(ids) for p, ids in parts.items()} and manifest["documents"] == len(DOCUMENTS)
    assert 0.1 < len(parts["val"]) / sum(map(len, parts.values())) < 0.3


@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("unit", [50, 333, 2000])
def test_a_file_cut_into_units_gives_the_documents_of_the_whole(tmp_path, monkeypatch, kind, unit):
    path = write(tmp_path / kind)
    whole = list(read_documents(path))
    monkeypatch.setattr(data, "UNIT", unit)
    units = find_units(path)
    assert len(units) > 1 and units[0][0] == 0 and units[-1][1] == path.stat().st_size
    assert [d for a, b in units for d in read_documents(path, a, b)] == whole == DOCUMENTS


def test_a_document_that_is_too_long_is_cut_at_a_line_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_DOCUMENT", 500)
    lines = [f"line {i} {LATIN}" for i in range(100)]
    path = write(tmp_path / "a.txt", ["\n".join(lines)])
    found = list(read_documents(path))
    assert len(found) > 5 and "\n".join(found) == "\n".join(lines)


def test_equal_documents_go_to_the_same_side_and_the_split_does_not_depend_on_the_files(tmp_path):
    write(tmp_path / "one.txt", DOCUMENTS * 2)
    write(tmp_path / "a.txt", DOCUMENTS[60:])
    write(tmp_path / "b.jsonl", DOCUMENTS[:60] + DOCUMENTS)
    sides = []
    for name, files in (("one", ["one.txt"]), ("two", ["a.txt", "b.jsonl"])):
        folder = prepare(name, [tmp_path / f for f in files], tmp_path / "data", tokenizer="bpe", vocab_size=300, val=0.3,
                         workers=1)
        _, parts = documents_in(folder)
        tok = load_tokenizer(str(folder))
        sides.append({p: {tok.decode(d) for d in np.split(ids, np.flatnonzero(ids == tok.eot))} for p, ids in parts.items()})
    assert sides[0] == sides[1] and not sides[0]["train"] & sides[0]["val"] - {""}


def test_a_killed_preparation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.txt", [f"{d} {i} {k}" for k in range(60) for d in DOCUMENTS])
    files = [str(tmp_path / f"{i}.txt") for i in range(6)]
    flags = [sys.executable, str(ROOT / "data.py"), "prepare", *files, "--tokenizer", "bpe", "--vocab_size", "400",
             "--workers", "1"]
    assert subprocess.run([*flags, "--name", "whole"], cwd=tmp_path, capture_output=True).returncode == 0
    killed = subprocess.Popen([*flags, "--name", "killed"], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    part = tmp_path / "data/killed.part"
    while not (part / "1.json").exists() and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "data/killed").exists()  # what is not complete cannot be used
    before = (part / "0.train.bin").stat().st_mtime_ns
    again = subprocess.run([*flags, "--name", "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (tmp_path / "data/killed" / name).read_bytes() == (tmp_path / "data/whole" / name).read_bytes()
    assert before and not part.exists() and {p.name for p in (tmp_path / "data/killed").iterdir()} == {
        "train.bin", "val.bin", "tokenizer.json", "manifest.json"}


@pytest.fixture
def gpt2_files(tmp_path):
    """A folder with a vocabulary in GPT-2's published form, but small: (folder, its ranks)."""
    ranks = train_bpe(DOCUMENTS, 330)
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " " and b not in (0xad,)]
    order = printable + [b for b in range(256) if b not in printable]  # published: printable bytes first
    symbol = {b: chr(b) if b in printable else chr(256 + i - len(printable)) for i, b in enumerate(order)}
    spell = lambda token: "".join(symbol[b] for b in token)
    tokens = [bytes([b]) for b in order] + [t for t in ranks if len(t) > 1]

    def halves(token):  # the merge that made it: the pair that byte-pair encoding up to it ends with
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            k = min(range(len(pieces) - 1), key=lambda k: ranks.get(pieces[k] + pieces[k + 1], 10 ** 9))
            pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
        return pieces

    merges = [" ".join(map(spell, halves(t))) for t in ranks if len(t) > 1]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps({spell(t): i for i, t in enumerate(tokens)} | {"<|endoftext|>": len(tokens)}))
    return tmp_path, tokens


def test_published_vocabulary_files_make_a_tokenizer_with_the_published_ids(gpt2_files):
    folder, tokens = gpt2_files
    tok = load_tokenizer(str(folder))
    assert list(tok.ranks) == tokens and tok.eot == len(tokens)
    for text in (LATIN, ARABIC, DEVANAGARI, "don't  stop\n"):
        assert tok.decode(tok.encode(text)) == text and any(i > 255 for i in tok.encode(LATIN))
    assert Tokenizer.from_json(tok.to_json()).encode("I'll") == tok.encode("I'll")


def test_without_cache_and_network_the_message_says_how_to_get_the_vocabulary(monkeypatch):
    def offline(name):
        raise ConnectionError("no network")
    monkeypatch.setattr(data.tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="cannot be downloaded.*vocab.json and merges.txt.*--tokenizer bpe"):
        load_tokenizer("gpt2")


MISTAKES = [  # name of the file, its bytes, flags, words of the message
    ("a.txt", b"good\n\nbad \xff byte", [], r"a.txt: byte 0xff at offset 10 is not UTF-8.*--errors replace"),
    ("a.txt.gz", gzip.compress(b"ok\n\n" * 9 + b"\xc3("), [], "byte 0xc3 at offset 36"),
    ("a.txt", b"", [], "a.txt is empty"), ("none.txt", None, [], "none.txt does not exist"),
    ("folder", None, [], "holds no .txt"), ("a.jsonl", b'{"text": "x"}\n{"text": ', [], "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}', [], "a.jsonl, line 3: no field 'text'.*--field"),
    ("a.jsonl", b'{"text": 3}', [], "line 1: no field 'text' with a text"), ("a.jsonl", b'[1]', [], "line 1: no field"),
    ("a.jsonl", b'"text"', [], "line 1: no field"), ("a.jsonl", b'{"text": "\\ud800"}', [], "line 1: half of a surrogate"),
    ("a.jsonl", b'{"text": "x"}', ["--field", "body"], "no field 'body'"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500)[:-20], [], "not a whole gzip file"),
    ("a.txt.gz", b"plain text", [], "not a whole gzip file"), ("a.txt", b"one", [], "no document of x went to val"),
    ("a.txt", b"one", ["--val", "0.99999"], "no document of x went to train"), ("a.txt", b"x", ["--val", "2"], "val is 2.0"),
    ("a.txt", b"x", ["--tokenizer", "nowhere"], "tokenizer is 'nowhere'"), ("a.txt", b"x", ["--name", "a/b"], "name is 'a/b'"),
    ("a.txt", b"x", ["--name", "old"], "data/old is there already"), ("a.txt", b"x", ["--errors", "ignore"], "ignore")]


@pytest.mark.parametrize("name, content, flags, words", MISTAKES)
def test_a_mistake_is_named_with_file_and_place_and_leaves_nothing_to_be_used(tmp_path, name, content, flags, words, call,
                                                                             monkeypatch):
    class Here:  # the pool in this process: forty times as fast
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        imap_unordered = staticmethod(map)

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Pool", lambda self, n: Here())
    (tmp_path / "data/old").mkdir(parents=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    code, _, err = call(tmp_path, "data.py", "prepare", name, "--name", "x", "--tokenizer", "bpe", *flags)
    import re
    assert code == 2 and re.search(words, err.splitlines()[-1]) and "Traceback" not in err, err
    assert not (tmp_path / "data/x").exists()


def test_errors_replace_keeps_what_can_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\nbad \xff byte")
    assert list(read_documents(tmp_path / "a.txt", errors="replace")) == ["good", "bad \ufffd byte"]
