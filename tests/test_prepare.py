"""Real text becomes sources: the bytes that go in are the tokens that come out, at any restart or ending."""
import gzip
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import data
from conftest import ROOT
from data import Tokenizer, load_manifest, load_tokenizer, lock, prepare, read_json_lines, train_bpe

LATIN = "Txakurrak etxean daude, eta katua leihoan. Ünïcode: ñ, ç."
ARABIC = "اللغة العربية لغة جميلة، والقطة في البيت."
DEVANAGARI = "बिल्ली घर में है और कुत्ता बाहर है।"
FILES = ("train.bin", "val.bin", "tokenizer.json")
DOCUMENTS = [f"{script} {i}\n{script[:20]}" for i in range(40) for script in (LATIN, ARABIC, DEVANAGARI)]


def write(path, documents=DOCUMENTS, field="text"):
    """The documents as a file of the kind that its name says."""
    text = "\n\n".join(documents) + "\n"
    if "json" in path.name:
        text = "".join(json.dumps({field: d}) + "\n" for d in documents)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, **kwargs):
    """The documents of a file."""
    return list(data.read_documents(path, **kwargs))


def small(name, files, folder, **kwargs):
    """prepare() with a small tokenizer of its own."""
    return prepare(name, files, folder, **dict(tokenizer="bpe", vocab_size=400, val=0.2) | kwargs)


def documents_in(folder):
    """The set of documents of a prepared source, decoded, and the sizes of its two parts."""
    tok = Tokenizer.from_json((folder / "tokenizer.json").read_text())
    parts = {p: np.fromfile(folder / f"{p}.bin", dtype=tok.dtype) for p in ("train", "val")}
    both = np.concatenate(list(parts.values()))
    assert both[0] == tok.eot
    return [tok.decode(ids[1:]) for ids in np.split(both, np.flatnonzero(both == tok.eot))[1:]], parts


@pytest.mark.parametrize("kind", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.json.gz", "a.ndjson"])
def test_every_document_of_three_scripts_comes_back_from_every_kind_of_file(tmp_path, kind):
    folder = small("x", [write(tmp_path / kind)], tmp_path / "data")
    found, parts = documents_in(folder)
    assert sorted(found) == sorted(DOCUMENTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["tokens"] == {p: len(ids) for p, ids in parts.items()}
    assert manifest["documents"] == len(DOCUMENTS)
    assert 0.1 < len(parts["val"]) / sum(map(len, parts.values())) < 0.3


@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("batch, threads", [(1, 1), (333, 1), (50, 3), (1 << 22, 3)])
def test_batches_and_threads_of_any_number_give_the_same_files(tmp_path, monkeypatch, kind, batch, threads):
    path = write(tmp_path / kind)
    assert read(path) == DOCUMENTS
    whole = small("whole", [path], tmp_path, workers=1)
    monkeypatch.setattr(data, "BATCH", batch)
    again = small("again", [path], tmp_path, workers=threads)
    for file in FILES:
        assert (whole / file).read_bytes() == (again / file).read_bytes()


def test_a_document_that_is_too_long_is_cut_and_no_character_is_lost(tmp_path, monkeypatch):
    text = "\n".join(f"line {i} {LATIN}" for i in range(12_000))  # of over 10,000 lines
    paths = [write(tmp_path / name, [text]) for name in ("a.txt", "a.jsonl")]
    assert "\n".join(read(paths[0])).replace("\n", "") == text.replace("\n", "")
    monkeypatch.setattr(data, "LONGEST_DOCUMENT", 500)
    found = read(paths[1])
    assert "".join(found) == text and max(map(len, found)) == 500
    whole = write(tmp_path / "b.txt", [text[:1300]])
    assert "".join(read(whole)) == text[:1300] and len(read(whole)) == 3


def test_equal_documents_go_to_the_same_side_and_the_split_does_not_depend_on_the_files(tmp_path):
    write(tmp_path / "one.txt", DOCUMENTS * 2)
    write(tmp_path / "a.txt", DOCUMENTS[60:])
    write(tmp_path / "b.jsonl", DOCUMENTS[:60] + DOCUMENTS)
    sides = []
    for name, files in (("one", ["one.txt"]), ("two", ["a.txt", "b.jsonl"])):
        folder = small(name, [tmp_path / f for f in files], tmp_path / "data", val=0.3)
        _, parts = documents_in(folder)
        tok = load_tokenizer(str(folder))
        sides.append({p: {tok.decode(d) for d in np.split(ids, np.flatnonzero(ids == tok.eot))}
                      for p, ids in parts.items()})
    assert sides[0] == sides[1] and not sides[0]["train"] & sides[0]["val"] - {""}


@pytest.mark.parametrize("stop_at", [1, 4, 11])
def test_a_stopped_preparation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, stop_at):
    files = [write(tmp_path / f"{i}.txt", [f"{d} {i}" for d in DOCUMENTS]) for i in range(4)]
    monkeypatch.setattr(data, "BATCH", 1000)
    whole = small("whole", files, tmp_path, workers=1)
    encode, calls = Tokenizer.encode_documents, []

    def encode_and_stop(*args):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return encode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_documents", encode_and_stop)
        with pytest.raises(KeyboardInterrupt):
            small("stopped", files, tmp_path, workers=1)
    part = tmp_path / "stopped.part"
    assert not (tmp_path / "stopped").exists()  # what is not complete cannot be used
    if stop_at > 2:  # two calls a batch
        assert json.loads((part / "progress.json").read_text())["done"]["documents"] > 0
    with open(part / "train.bin", "ab") as f:  # written, but not noted before a kill
        f.write(b"some half a token")
    small("stopped", files, tmp_path, workers=1)
    for name in FILES:
        assert (tmp_path / "stopped" / name).read_bytes() == (whole / name).read_bytes()
    assert not part.exists()
    assert {p.name for p in (tmp_path / "stopped").iterdir()} == {*FILES, "manifest.json"}


def test_a_preparation_begun_with_other_settings_or_cut_files_starts_again(tmp_path):
    path = write(tmp_path / "a.txt")
    whole = small("whole", [path], tmp_path)
    manifest = json.loads((whole / "manifest.json").read_text())
    keys = ("files", "field", "val", "errors", "vocab_size", "tokenizer_sha256", "dtype")
    plan, done = {key: manifest[key] for key in keys}, {"documents": 5, "tokens": {"train": 1, "val": 1}}
    left = [b"{", b"[]", b"\xff", b"[" * 100_000, {"plan": plan}, {"plan": plan | {"val": 0.3}, "done": done},
            {"plan": plan, "done": {"documents": 5, "tokens": {"train": 99, "val": 1}}},  # more than is there
            {"plan": plan, "done": {"documents": 5, "tokens": {"train": -1, "val": 1}}},
            {"plan": plan, "done": {"documents": 5, "tokens": {"train": 1}}},
            {"plan": plan, "done": {"documents": -5, "tokens": {"train": 1, "val": 1}}},
            {"plan": plan, "done": {"tokens": {"train": 1, "val": 1}}}, {"plan": plan, "done": [1]}]
    for content in left:
        part = tmp_path / "x.part"
        part.mkdir()
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (part / "progress.json").write_bytes(content)
        (part / "progress.json.123.tmp").write_bytes(b"of a killed run")
        (part / "train.bin").write_bytes(b"left over")
        (part / "val.bin").write_bytes(b"left over")
        folder = small("x", [path], tmp_path)
        for name in FILES:
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), content
        assert {p.name for p in folder.iterdir()} == {*FILES, "manifest.json"}
        shutil.rmtree(folder)


def test_a_killed_process_leaves_no_lock_and_its_successor_ends_as_an_uninterrupted_one(tmp_path):
    files = [str(write(tmp_path / f"{i}.txt", [f"{d} {i} {k}" for k in range(15) for d in DOCUMENTS]))
             for i in range(2)]
    code = ("import data, sys; data.BATCH = 20_000; "
            "data.prepare(sys.argv[1], sys.argv[2:], '.', tokenizer='bpe', vocab_size=400, workers=1)")
    flags = [sys.executable, "-c", code]
    assert subprocess.run([*flags, "whole", *files], cwd=tmp_path, capture_output=True).returncode == 0
    killed = subprocess.Popen([*flags, "killed", *files], cwd=tmp_path, stderr=subprocess.DEVNULL)
    part, done = tmp_path / "killed.part", {}
    while killed.poll() is None and not done.get("documents"):
        if (part / "progress.json").exists():
            done = json.loads((part / "progress.json").read_text())["done"]
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert part.exists() and not (tmp_path / "killed").exists()
    again = subprocess.run([*flags, "killed", *files], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_prepare_of_one_name_is_refused_while_the_first_runs(tmp_path):
    path = write(tmp_path / "a.txt")
    with lock(tmp_path / ".x.lock") as free:
        assert free
        with pytest.raises(ValueError, match="another prepare of x is running: choose another --name"):
            small("x", [path], tmp_path)
        assert not (tmp_path / "x.part").exists()
        small("y", [path], tmp_path)  # another name is free
    small("x", [path], tmp_path)


@pytest.mark.parametrize("file, place", [("train.bin", 0), ("train.bin", -1), ("val.bin", 0),
                                         ("tokenizer.json", 3)])
def test_a_changed_file_of_a_source_is_refused(tmp_path, file, place):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    assert load_manifest(folder, 8)["documents"] == len(DOCUMENTS)
    content = bytearray((folder / file).read_bytes())
    content[place] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} (has changed|is not what its manifest says): prepare"):
        load_manifest(folder, 8, whole=file != "tokenizer.json")


def change_a_byte_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_check_reads_every_byte_of_a_source(tmp_path, call):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    code, out, _ = call(tmp_path, "data.py", "check", folder)
    assert code == 0 and f"{folder}: whole; " in out
    change_a_byte_in_the_middle(folder / "train.bin")
    code, _, err = call(tmp_path, "data.py", "check", folder)
    assert code == 2 and "train.bin is not what its manifest says" in err and len(err.splitlines()) == 1


def test_a_study_looks_at_the_sizes_of_a_source_alone(tmp_path):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    change_a_byte_in_the_middle(folder / "train.bin")
    assert load_manifest(folder, 8)["name"] == "x"
    with pytest.raises(ValueError, match="train.bin is not what its manifest says"):
        load_manifest(folder, 8, whole=True)
    content = (folder / "val.bin").read_bytes()
    for other in (content[:-1], content + b"x", b""):
        (folder / "val.bin").write_bytes(other)
        with pytest.raises(ValueError, match="val.bin is not what its manifest says"):
            load_manifest(folder, 8)


@pytest.mark.parametrize("content, words", [
    (b"\x80\xff binary", "manifest.json: not JSON"), (b"{", "manifest.json: not JSON"),
    (b"[]", "manifest.json: .* is not an object"),
    (b'{"tokens": {}}', "damaged or of an older version .*data.py prepare"),
    (b'{"tokenizer_sha256": 1, "tokens": [1]}', "tokenizer.json has changed"),
    (b"1" * 5000, "manifest.json: not JSON")])
def test_a_damaged_manifest_is_named(tmp_path, content, words):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_manifest(folder, 8)


def test_the_manifest_holds_the_true_size_of_the_vocabulary(tmp_path):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path, vocab_size=None)  # at most 8192
    size = json.loads((folder / "manifest.json").read_text())["vocab_size"]
    assert size == load_tokenizer(folder).vocab_size < 2000


def test_json_lines_and_gzip_are_told_by_their_content_whatever_the_name(tmp_path):
    lines = "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS).encode()
    for name, content in (("a.txt", b"\n" + lines), ("b", gzip.compress(lines)),
                          ("c.json", gzip.compress(lines)),
                          ("d.txt.gz", lines)):  # as a browser unzips it
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == DOCUMENTS
    for text in ('{no JSON\n\nplain text', 'the first line tells\n\n{"a": 1}\n{"b": 2}'):
        (tmp_path / "e.txt.gz").write_text(text)
        assert read(tmp_path / "e.txt.gz") == text.split("\n\n")


def test_empty_documents_are_left_out_even_the_first(tmp_path):
    path = write(tmp_path / "a.jsonl", ["", *DOCUMENTS, ""])
    assert sorted(documents_in(small("x", [path], tmp_path))[0]) == sorted(DOCUMENTS)


def test_the_sample_for_a_tokenizer_is_bounded_however_much_text_there_is(tmp_path, monkeypatch):
    files = [write(tmp_path / f"{i}.txt", ["x" * 100_000] * 200) for i in range(4)]  # 80 MB
    sizes = []

    def train(texts, vocab_size):
        sizes.append(sum(map(len, texts)))
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "train_bpe", train)
    with pytest.raises(KeyboardInterrupt):
        small("x", files, tmp_path)
    assert 15_000_000 < sizes[0] < 17_000_000 and not (tmp_path / "x.part").exists()


def test_a_folder_gives_all_its_files_of_known_endings(tmp_path):
    names = "a.txt b.txt.gz c.jsonl d.jsonl.gz e.json f.json.gz g.ndjson sub/h.txt".split()
    (tmp_path / "sub").mkdir()
    for name in [*names, "image.png", "README.md"]:
        (tmp_path / name).write_text("x")
    assert [str(p.relative_to(tmp_path)) for p in data.find_texts([tmp_path])] == sorted(names)


def test_a_folder_that_holds_its_own_source_whole_or_begun_can_be_prepared_again(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {i}" for i in range(50)))
    for name in ("first", "second"):
        (tmp_path / "data/third.part").mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "progress.json"):
            (tmp_path / "data/third.part" / file).write_text("{}")
        data.prepare(name, [tmp_path], tmp_path / "data", tokenizer="bpe", vocab_size=300, val=0.3, workers=1)
    assert (tmp_path / "data/first/train.bin").read_bytes() == (tmp_path / "data/second/train.bin").read_bytes()


def test_lines_end_at_newlines_alone(tmp_path):
    texts = ["a\u2028b", "c\u0085d", "e\u2029f", "g\x1ch"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n" for t in texts), newline="")
    assert read(path) == texts
    assert [(where, row["text"]) for where, row in read_json_lines(path)] == [
        (f"{path}, line {n}", t) for n, t in enumerate(texts, 1)]
    path = write(tmp_path / "b.txt", ["one\u2028\u2028two\u0085\u0085three", "four"])
    assert read(path) == ["one\u2028\u2028two\u0085\u0085three", "four"]


@pytest.mark.parametrize("content, words", [
    (b'{"a": 1}\n{"a"', "line 2: not JSON"), (b'\n\n{"a": ' + b"9" * 5000 + b"}", "line 3: not JSON"),
    (b"\xff", "line 1: byte 0xff is not UTF-8"), (b"[" * 100_000, "line 1: not JSON")])
def test_a_line_that_cannot_be_read_is_named(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.jsonl, {words}"):
        list(read_json_lines(tmp_path / "a.jsonl"))


def test_a_text_that_spells_the_end_of_text_ends_a_document_there(tmp_path):
    small("tok", [write(tmp_path / "b.txt")], tmp_path)
    path = write(tmp_path / "a.jsonl", [f"a {data.EOT} b", *DOCUMENTS])
    folder = small("x", [path], tmp_path, tokenizer=str(tmp_path / "tok"), vocab_size=None)
    assert sorted(documents_in(folder)[0]) == sorted(["a ", " b", *DOCUMENTS])


def test_long_runs_of_one_character_are_lossless(tmp_path):
    small("tok", [write(tmp_path / "b.txt")], tmp_path)
    long = ["x" + " " * 1_100_000 + "y", "\n" * 10 + "z" * 1_100_000, "\ufeffa"]
    folder = small("x", [write(tmp_path / "a.jsonl", [*long, *DOCUMENTS])], tmp_path,
                   tokenizer=str(tmp_path / "tok"), vocab_size=None)
    step, pieces = data.LONGEST_DOCUMENT, []
    for text in long:
        pieces += [text[k:k + step] for k in range(0, len(text), step)]
    assert sorted(documents_in(folder)[0]) == sorted([*pieces, *DOCUMENTS])


@pytest.fixture
def gpt2_files(tmp_path):
    """A folder with a vocabulary in GPT-2's published form, but small: (folder, its ranks)."""
    ranks = train_bpe(DOCUMENTS, 330)
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " " and b not in (0xad,)]
    order = printable + [b for b in range(256) if b not in printable]  # published: printable bytes first
    symbol = {b: chr(b) if b in printable else chr(256 + i - len(printable)) for i, b in enumerate(order)}

    def spell(token):
        return "".join(symbol[b] for b in token)

    tokens = [bytes([b]) for b in order] + [t for t in ranks if len(t) > 1]

    def halves(token):  # the merge that made it: the pair that byte-pair encoding up to it ends with
        pieces = [bytes([b]) for b in token]
        while len(pieces) > 2:
            k = min(range(len(pieces) - 1), key=lambda k: ranks.get(pieces[k] + pieces[k + 1], 10 ** 9))
            pieces[k:k + 2] = [pieces[k] + pieces[k + 1]]
        return pieces

    merges = [" ".join(map(spell, halves(t))) for t in ranks if len(t) > 1]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    vocabulary = {spell(t): i for i, t in enumerate(tokens)} | {data.EOT: len(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    return tmp_path, tokens


def test_published_vocabulary_files_make_a_tokenizer_with_the_published_ids(gpt2_files):
    folder, tokens = gpt2_files
    tok = load_tokenizer(str(folder))
    assert list(tok.ranks) == tokens and tok.eot == len(tokens)
    for text in (LATIN, ARABIC, DEVANAGARI, "don't  stop\n"):
        assert tok.decode(tok.encode(text)) == text and any(i > 255 for i in tok.encode(LATIN))
    assert Tokenizer.from_json(tok.to_json()).encode("I'll") == tok.encode("I'll")


def test_a_folder_is_read_anew_and_not_from_a_cache(gpt2_files):
    folder, tokens = gpt2_files
    before = load_tokenizer(folder)
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    assert load_tokenizer(folder).ranks.keys() == before.ranks.keys() - {tokens[-1]}


def test_published_files_give_the_ranks_that_tiktoken_reads_from_them(gpt2_files):
    folder, _ = gpt2_files
    theirs = data_gym_to_mergeable_bpe_ranks(str(folder / "merges.txt"), str(folder / "vocab.json"))
    assert load_tokenizer(folder).ranks == theirs


@pytest.mark.parametrize("place", ["first", "among", "none"])
def test_a_vocabulary_may_have_its_end_of_text_anywhere(gpt2_files, tmp_path, place):
    folder, tokens = gpt2_files
    ids = json.loads((folder / "vocab.json").read_text())
    ids.pop(data.EOT)
    if place != "none":
        at = 0 if place == "first" else 256
        ids = {data.EOT: at} | {t: i + (i >= at) for t, i in ids.items()}
    (folder / "vocab.json").write_text(json.dumps(ids))
    tok = load_tokenizer(folder)
    assert tok.eot == ids.get(data.EOT, len(tokens)) and tok.vocab_size == len(tokens) + 1
    assert list(tok.encode_documents(["a", "b"]))[::2] == [tok.eot] * 2
    source = small("x", [write(tmp_path / "a.txt")], tmp_path, tokenizer=str(folder), vocab_size=None)
    again = load_tokenizer(source)
    assert again.eot == tok.eot and again.encode(LATIN) == tok.encode(LATIN)
    assert again.decode(tok.encode(ARABIC)) == ARABIC
    assert again.to_json() == tok.to_json() and sorted(documents_in(source)[0]) == sorted(DOCUMENTS)


def test_a_tokenizer_json_alone_is_refused_with_the_function_that_writes_the_published_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer: .*vocab.json and merges.txt, which save_vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"\xff{", b"{", b""])
def test_a_damaged_tokenizer_of_a_prepared_source_is_named(tmp_path, content):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="x/tokenizer.json: not JSON"):
        load_tokenizer(folder)


@pytest.mark.parametrize("file, content, words", [
    ("vocab.json", b"\xff\xfe\x01", "vocab.json: not JSON"),
    ("vocab.json", b"[]", "vocab.json: .* is not an object"),
    ("vocab.json", b'{"!": "x"}', "'!' has no id in vocab.json"),
    ("merges.txt", b"#version\na\n\xffb", "merges.txt, line 3: byte 0xff"),
    ("merges.txt", b"q zz", "merges.txt: 'qzz' has no id in vocab.json"),
    ("vocab.json", "twice", "two tokens have the same id"),
    ("merges.txt", "backwards", "do not rise in the order of the merges")])
def test_a_damaged_vocabulary_is_named(gpt2_files, file, content, words):
    folder, _ = gpt2_files
    if content == "twice":
        ids = json.loads((folder / file).read_text())
        content = json.dumps(ids | {data.EOT: 3}).encode()
    if content == "backwards":
        content = "\n".join((folder / file).read_text(encoding="utf-8").splitlines()[:0:-1]).encode()
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_tokenizer(folder)


def test_without_cache_and_network_the_message_says_how_to_get_the_vocabulary(monkeypatch):
    def offline(name):
        raise ConnectionError("no network")
    monkeypatch.setattr(data.tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match="cannot be downloaded.*vocab.json and merges.txt.*--tokenizer bpe"):
        load_tokenizer("gpt2")


MISTAKES = [  # name of the file, its bytes, flags, words of the message
    ("a.txt", b"good\n\nbad \xff byte", [], "a.txt, line 3: byte 0xff is not UTF-8.*--errors replace"),
    ("a.txt.gz", gzip.compress(b"ok\n\n" * 9 + b"\xc3("), [], "a.txt.gz, line 19: byte 0xc3"),
    ("a.txt", b"", [], "a.txt holds no text"), ("none.txt", None, [], "none.txt does not exist"),
    ("a.txt", b" \n\t\n  ", [], "a.txt holds no text"), ("folder", None, [], "holds no .txt"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', [], "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}', [], "a.jsonl, line 3: no field 'text'.*--field"),
    ("a.jsonl", b'{"text": 3}', [], "line 1: no field 'text' with a text"),
    ("a.jsonl", b'[1]', [], "line 1: .* is not an object"),
    ("a.json", b'[\n{"text": "x"}]', [], "line 1: not JSON"),
    ("a.jsonl", b'"text"', [], "line 1: .* is not an object"),
    ("a.jsonl", b'{"text": "\\ud800"}', [], "line 1: half a surrogate"),
    ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", [], "a.jsonl, line 1: not JSON"),
    ("a.jsonl", b'{"text": "x"}', ["--field", "body"], "no field 'body'"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500)[:-20], [],
     r"a.jsonl.gz, line \d+: cannot be read .*is the file whole"),
    ("a.txt", b"one", [], "none of 1 documents went to val"),
    ("a.txt", b"one", ["--val", "0.99999"], "none of 1 documents went to train"),
    ("a.txt", b"x", ["--val", "2"], "val is 2.0"),
    ("a.txt", b"x", ["--tokenizer", "nowhere"], "'nowhere' holds no tokenizer"),
    ("a.txt", b"x", ["--name", "a/b"], "name is 'a/b'"),
    ("a.txt", b"x", ["--name", "old"], "data/old is there already"),
    ("a.txt", b"x", ["--errors", "ignore"], "ignore"),
    ("a.txt", b"x", ["--vocab_size", "-100"], "vocab_size is -100"),
    ("a.txt", b"x", ["--vocab_size", "256"], "vocab_size is 256, expected 257"),
    ("a.txt", b"x", ["--vocab_size", "500", "--tokenizer", "gpt2"], "vocab_size is 500, .* with --tokenizer bpe alone"),
    ("a.txt", b"x", ["--workers", "0"], "workers is 0"), ("a.txt", b"x", ["--fields", "body"], "--fields")]


@pytest.mark.parametrize("name, content, flags, words", MISTAKES)
def test_a_mistake_is_named_with_file_and_place_and_leaves_nothing_to_be_used(tmp_path, call, name, content,
                                                                             flags, words):
    (tmp_path / "data/old").mkdir(parents=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    code, _, err = call(tmp_path, "data.py", "prepare", name, "--name", "x", "--tokenizer", "bpe", *flags)
    assert code == 2 and re.search(words, err.splitlines()[-1]) and "Traceback" not in err, err
    assert not (tmp_path / "data/x").exists()


def test_a_refused_command_writes_nothing_and_does_not_burn_its_name(tmp_path, call):
    write(tmp_path / "a.jsonl", field="body")
    for flags in ([], ["--field", "body", "--val", "3"], ["--field", "body", "--tokenizer", "nowhere"]):
        command = ["data.py", "prepare", "a.jsonl", "--name", "x", "--tokenizer", "bpe", *flags]
        assert call(tmp_path, *command)[0] == 2
        assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    flags = ["--field", "body", "--tokenizer", "bpe", "--val", "0.2"]
    assert call(tmp_path, "data.py", "prepare", "a.jsonl", "--name", "x", *flags)[0] == 0


def test_no_message_advises_to_delete_anything(tmp_path):
    path = write(tmp_path / "a.txt")
    (tmp_path / "mine").mkdir()
    small("ours", [path], tmp_path)
    for name in ("mine", "ours"):
        with pytest.raises(ValueError, match=f"{name} is there already: choose another --name$"):
            small(name, [path], tmp_path)
    assert not re.search(r"\b(delete|remove|rm)\b", (ROOT / "data.py").read_text())


def test_errors_replace_keeps_what_can_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\nbad \xff byte")
    assert read(tmp_path / "a.txt", errors="replace") == ["good", "bad \ufffd byte"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "half \\ud800 and whole \\ud83d\\ude00"}')
    assert read(tmp_path / "a.jsonl", errors="replace") == ["half ? and whole \U0001f600"]
