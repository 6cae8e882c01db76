"""Real text becomes sources: the text that goes in comes out again, and what is no text stays out."""
import gzip
import json
import os
import re
import sys

import numpy as np
import pytest
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import data
from data import EOT, held_out_overlap, load_manifest, load_tokenizer, prepare, read_documents, read_json_lines

SCRIPTS = ["Txakurrak etxean daude. Ünïcode: ñ, ç.", "اللغة العربية لغة جميلة", "बिल्ली घर में है"]
DOCUMENTS = [f"{script} {i}\n{script[:20]}" for i in range(40) for script in SCRIPTS]
LFS = b"version https://git-lfs.github.com/spec/v1\noid"


def write(path, documents=DOCUMENTS):
    """The documents as a file of the kind that its name says."""
    text = "\n\n".join(documents) + "\n"
    if "json" in path.name.lower():
        text = "".join(json.dumps({"text": d}) + "\n" for d in documents)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def small(name, files, folder, **kwargs):
    return prepare(name, files, folder, **dict(tokenizer="bpe", vocab_size=400, val=0.2) | kwargs)


def documents_of(folder):
    """{train or val: list of documents} of a prepared source, decoded."""
    tok, sides = load_tokenizer(folder), {}
    for side in ("train", "val"):
        ids = np.fromfile(folder / f"{side}.bin", dtype=tok.dtype)
        sides[side] = [tok.decode(part[1:]) for part in np.split(ids, np.flatnonzero(ids == tok.eot))[1:]]
    return sides


def read(path, content, **kwargs):
    """The documents of a file with this content, str or bytes."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_documents(path, **kwargs))


@pytest.mark.parametrize("kind", ["a.txt", "a.txt.gz", "a.jsonl", "a.JSONL.gz", "a.json.gz", "a.ndjson"])
def test_every_document_of_three_scripts_comes_back_from_every_kind_of_file(tmp_path, kind):
    folder = small("x", [write(tmp_path / kind)], tmp_path / "data")
    sides, manifest = documents_of(folder), load_manifest(folder, 8)
    assert sorted(sides["train"] + sides["val"]) == sorted(DOCUMENTS) and manifest["documents"] == 120
    assert manifest["sha256"] == data.sha256(folder / "train.bin")
    assert set(os.listdir(folder)) == {"train.bin", "val.bin", "tokenizer.json", "manifest.json"}


def test_a_smaller_share_is_held_out_of_a_larger_and_equal_documents_share_a_side(tmp_path):
    a = small("a", [write(tmp_path / "a.txt", DOCUMENTS * 2)], tmp_path, val=.4)
    b = small("b", [write(tmp_path / "b.jsonl")], tmp_path, val=.1, tokenizer=str(a))
    one, other = documents_of(a), documents_of(b)
    assert set(other["val"]) < set(one["val"]) and not set(one["val"]) & set(one["train"])
    assert held_out_overlap(a, b) == len(set(one["val"]) & set(other["train"])) > 20
    assert held_out_overlap(b, a) == 0 == held_out_overlap(a, a)


def test_an_interrupted_run_leaves_nothing_to_be_used_and_starts_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
    whole = small("whole", [write(tmp_path / "a.txt")], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(data.Tokenizer, "encode_documents", stop)
        with pytest.raises(KeyboardInterrupt):
            small("x", [tmp_path / "a.txt"], tmp_path)
    assert not (tmp_path / "x").exists()
    (tmp_path / "x.part/train.bin").write_bytes(b"left over, and longer than what comes" * 999)
    again = small("x", [tmp_path / "a.txt"], tmp_path)
    assert (again / "train.bin").read_bytes() == (whole / "train.bin").read_bytes()


@pytest.mark.parametrize("file, content", [
    ("tokenizer.json", "{}"), ("train.bin", "x"), ("val.bin", ""), ("manifest.json", "{"), ("manifest.json", "[]"),
    ("manifest.json", '{"tokens": {}, "sha256": {}}')])
def test_a_source_that_has_changed_or_is_shorter_than_a_block_is_refused(tmp_path, file, content):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    with pytest.raises(ValueError, match=r"bin has \d+ tokens; a block needs 5001"):
        load_manifest(folder, 5000)
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match="x is not as data.py prepare makes it.*: prepare it again"):
        load_manifest(folder, 8)


@pytest.mark.parametrize("content", [
    "a\nb\n\nc", "\ufeffa\nb\n\nc", "a\r\nb\r\n\r\nc\r\n", "a\rb\r\rc", "a\nb\n \t\n\n\ufeffc\n", "\ufeff\na\nb\n\nc",
    '{"text": "a\\r\\nb"}\r\n\n{"text": "\ufeffc"}', '\ufeff{"text": "a\\rb"}\n{"text": null}\n{"text": "c"}'])
def test_byte_order_marks_line_ends_and_json_in_a_text_file_are_no_part_of_documents(tmp_path, content):
    for file in (content.encode(), gzip.compress(content.encode())):
        assert read(tmp_path / "a.txt", file, skip_null=True) == ["a\nb", "c"]


def test_lines_end_at_newlines_alone_and_a_line_that_is_not_utf8_is_counted(tmp_path):
    path, texts = tmp_path / "task.jsonl", ["a\u2028b", "c\u0085d", "e\u2029f", "g\x1ch"]
    path.write_text("\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), newline="")
    rows = [(f"{path}, line {n}", {"text": t}) for n, t in enumerate(texts, 1)]
    assert list(read_json_lines(path)) == rows
    for n in (1, 700, 5000):
        path.write_bytes(b'{"a": "\xc3\xb1"}\r\n' * (n - 1) + b"bad \xff\n" + b"{}\n" * 3000)
        with pytest.raises(ValueError, match=f"task.jsonl, line {n}: byte 0xff is not UTF-8$"):  # no --errors
            list(read_json_lines(path))


@pytest.mark.parametrize("content, kind", [
    (b"a" * 257 + b"ustar", "a tar archive"), (b"PK\x03\x04", "a zip archive"), (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PAR1\x15\x04", "parquet"), (LFS, "LFS.*git lfs pull"),
    (gzip.compress(gzip.compress(b"text")), "gzip in gzip"), (b"a line\n" * 9999 + b"\0", "line 10000: a NUL"),
    *((SCRIPTS[1].encode(code), "UTF-16") for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"))])
def test_what_is_no_text_is_refused_by_its_name_whatever_the_flags(tmp_path, content, kind):
    for file in (content, gzip.compress(content)):
        with pytest.raises(ValueError, match=kind) as e:
            read(tmp_path / "a.txt", file, errors="replace")
        assert "--errors" not in str(e.value)


def test_damaged_characters_are_replaced_and_a_long_document_is_cut_without_a_loss(tmp_path, monkeypatch):
    assert read(tmp_path / "a.txt", b"good\n\nbad \xff byte", errors="replace") == ["good", "bad \ufffd byte"]
    assert read(tmp_path / "a.json", r'{"text": "half \ud800, whole \ud83d\ude00"}') == ["half ?, whole \U0001f600"]
    text = "".join(f"line {i}\n" for i in range(12_000))  # over 10,000 lines
    assert "\n".join([*read(tmp_path / "a.txt", text), ""]) == text
    long = ["x" + " " * 1_100_000 + "y", f"a {EOT} b"]
    sides = documents_of(small("x", [write(tmp_path / "b.jsonl", [*long, *DOCUMENTS])], tmp_path))
    step, texts = data.LONGEST_DOCUMENT, [long[0], "a ", " b", *DOCUMENTS]
    pieces = [text[k:k + step] for text in texts for k in range(0, len(text), step)]
    assert sorted(sides["train"] + sides["val"]) == sorted(pieces)


def test_a_folder_gives_each_of_its_texts_once_and_tells_what_it_passed_over(tmp_path, capsys):
    texts = tmp_path / "texts"
    for name in ("texts/A.TXT", "texts/b.Json", "texts/sub/c.txt", "texts/.ipynb_checkpoints/A.txt", "elsewhere/d.txt.gz",
                 "texts/._A.txt", "texts/image.png", "texts/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [f"{name} {i}" for i in range(9)])
    for link, target in (("link", tmp_path / "elsewhere"), ("sub/loop", texts), ("e.txt", texts / "A.TXT")):
        (texts / link).symlink_to(target)
    manifest = load_manifest(small("x", [texts, texts / "A.TXT", texts / "../texts/b.Json"], tmp_path), 0)
    assert manifest["files"] == [str(texts / name) for name in ("A.TXT", "b.Json", "link/d.txt.gz", "sub/c.txt")]
    assert manifest["documents"] == 36 and manifest["passed_over"] == {
        "hidden": 2, "met before": 4, "of another kind": 2}
    assert "4 files taken; passed over: 2 hidden, 4 met before, 2 of another kind" in capsys.readouterr().out
    assert load_manifest(small("y", [texts / "image.png"], tmp_path), 0)["documents"] == 9  # named, so taken
    (texts / "gone.txt").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match="texts/gone.txt does not exist, or is a broken link"):
        small("z", [texts], tmp_path)


PRINTABLE = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
TOKENS = [*map(chr, PRINTABLE), *(chr(256 + i) for i in range(256 - len(PRINTABLE))), "et", "Ġet", "xe"]  # published form
IDS = {token: i for i, token in enumerate(TOKENS)}


@pytest.mark.parametrize("file, content, eot", [
    ("vocab.json", IDS | {EOT: 259}, 259), ("vocab.json", {EOT: 0} | {t: i + 1 for t, i in IDS.items()}, 0),
    ("added_tokens.json", {EOT: 400}, 400), ("config.json", {"eos_token_id": 70000}, 70000),
    ("config.json", {"eos_token_id": 7}, "two ids are equal"), ("config.json", {}, "<.endoftext.> has no id in"),
    ("vocab.json", {"!": 0}, "KeyError"), ("vocab.json", LFS.decode(), "vocab.json is a Git LFS pointer"),
    ("vocab.json", IDS | {EOT: 500, "et": 300}, "do not rise in the order of the merges")])
def test_published_files_give_the_published_ids_and_the_end_of_text_is_never_guessed(tmp_path, file, content, eot):
    (tmp_path / "merges.txt").write_text("#version: 0.2\ne t\nĠ et\nx e\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(IDS))
    theirs = data_gym_to_mergeable_bpe_ranks(str(tmp_path / "merges.txt"), str(tmp_path / "vocab.json"))
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    if isinstance(eot, str):
        with pytest.raises(ValueError, match=eot):
            load_tokenizer(tmp_path)
        return
    tok, shift = load_tokenizer(tmp_path), int(eot == 0)
    assert tok.ranks == {token: i + shift for token, i in theirs.items()} and tok.eot == eot
    assert tok.encode(" etxe") == [257 + shift, 258 + shift] and tok.decode(tok.encode(SCRIPTS[1])) == SCRIPTS[1]
    assert tok.encode_documents([" et"]).tolist() == [eot, 257 + shift]


@pytest.mark.parametrize("name, content, flags, words", [
    ("a.txt", b"good\n\nbad \xff byte", [], "a.txt, line 3: byte 0xff is not UTF-8.*--errors replace"),
    ("a.txt", b" \n\t\n  ", [], "no text in a.txt"), ("none.txt", None, [], "none.txt does not exist"),
    ("a.jsonl", b'{"text": "x"}\n{"text": ', [], "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}', [], "a.jsonl, line 3: no field 'text', but txt; .*--field"),
    ("a.jsonl", b'{"text": null}', [], "line 1: 'text' holds null, .*--skip_null"),
    ("a.txt", b'[\n{"text": "x"}]', [], "line 1: not JSON"), ("a.json", b"[1]", [], "line 1: .* is not an object"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 500)[:-20], [], "cannot be read .*is the file whole"),
    ("a.txt", b"one", [], "val.bin has 0 tokens.*--val"), ("a.txt", b"x", ["--val", "2"], "val is 2.0"),
    ("a.txt", b"x", ["--tokenizer", "nowhere"], "no tokenizer in nowhere"),
    ("a.txt", b"x", ["--name", "old"], "data/old is there already"), ("a.txt", b"x", ["--fields", "y"], "--fields")])
def test_a_mistake_is_named_in_one_line_and_leaves_nothing_to_be_used(tmp_path, monkeypatch, capsys, name,
                                                                      content, flags, words):
    (tmp_path / "data/old").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["data.py", "prepare", name, "--name", "x", "--tokenizer", "bpe", *flags])
    with pytest.raises(SystemExit) as e:
        data.main()
    assert e.value.code == 2 and re.search(words, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "data/x").exists()
