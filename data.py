"""The toy world, the tokenizer, real text, and the sampler of mixtures.

Two languages talk about one world. English has prose and patterns: documents that repeat one rule line after
line. From these a model learns to learn in context. The target language has almost only prose. So the target
corpus teaches words, English taught in-context learning, and some tasks need both: Elhady et al. 2025 in
miniature. Some studies also use a third language, English prose or English patterns.

    python data.py --target_order VSO --seed 7    # prints a document of every kind, and how it is tokenized

Data flow: World -> write_corpus() -> text -> Tokenizer -> a file of ids per source -> Mixture.batch(step).
Real text goes the same way, from files:

    python data.py prepare --name eu corpus/*.txt more.jsonl.gz    # data/eu, with GPT-2's tokenizer
    python data.py prepare --name en c4/*.json.gz --tokenizer data/eu
    python data.py check data/eu                  # are its files still what prepare wrote?
"""
import argparse
import contextlib
import fcntl  # locks of files; Windows has none
import gzip
import hashlib
import heapq
import json
import os
import sys
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from random import Random

import numpy as np
import regex  # comes with tiktoken
import tiktoken
from tqdm import tqdm


# ---------------------------------------------------------------------------------------------- small helpers
def require(condition, message):
    if not condition:
        raise ValueError(message)


def refuse(message, code=2):
    """Ends the program after a user's mistake, with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def write_atomically(path, write, flush=True):
    """Calls write(temporary path), then renames that file to path. So path never holds half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes never share it
    try:
        write(temporary)
        if flush:
            with open(temporary, "rb+") as f:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path, wait=False):
    """Yields True while this process holds the lock file, False if another does. The lock ends with the
    process."""
    with open(path, "a") as f:
        free = True
        try:
            fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield free


def parse_object(text, where):
    """The dict of a JSON text (str or bytes). Raises ValueError that begins with `where` if it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as e:  # also: bytes that are not UTF-8, thousands of digits
        raise ValueError(f"{where}: not JSON ({e})") from None
    require(isinstance(row, dict), f"{where}: {text[:40]!r} is not an object with named fields")
    return row


def read_lines(path, errors="strict"):
    """Yields ("FILE, line N", line) of a file, also gzipped. A blank line is ""."""
    n = 0
    with open(path, "rb") as file:
        lines = gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file
        try:
            for n, line in enumerate(lines, 1):  # a line ends at \n, never at U+2028, which JSON may hold
                yield f"{path}, line {n}", line.decode("utf-8", errors) if line.strip() else ""
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}, line {n}: byte 0x{line[e.start]:02x} is not UTF-8; correct it, or "
                             "prepare with --errors replace") from None
        except (EOFError, OSError, zlib.error) as e:
            raise ValueError(f"{path}, line {n + 1}: cannot be read ({e}); is the file whole?") from None


def read_json_lines(path):
    """Yields ("FILE, line N", dict) of each line that is not blank."""
    return ((where, parse_object(line, where)) for where, line in read_lines(path) if line)


# ------------------------------------------------------------------------------------------------ the world
# Categories can be learned only from the company that nouns keep: which verbs and which adjectives they take.
NOUNS = dict(
    animal="dog cat cow pig hen fox ant bat bee owl rat ram elk ape hog eel emu yak doe pup".split(),
    tool="axe saw pin pen rod peg hoe net mop pan pot jug cup key oar fan bow gun hook nail".split(),
    food="egg ham pie jam bun fig pea rye oat nut tea soup rice corn cake plum pear meat milk beef".split(),
    place="bay inn den zoo spa bar gym lab sea hut park farm road lake hill town cave port bank mill".split())
CATEGORIES = list(NOUNS)
_VERBS_OF = dict(  # of a subject's category: the verbs that take an animal, a tool, a food, a place as object
    animal="bites drops eats roams", tool="hurts fits cuts mends",
    food="feeds stains suits fills", place="hosts stores sells faces")
VERBS = {(s, o): verb for s in CATEGORIES for o, verb in zip(CATEGORIES, _VERBS_OF[s].split())}
ADJECTIVES = dict(animal="wild tame shy".split(), tool="blunt steel handy".split(),
                  food="sweet sour fresh".split(), place="quiet busy far".split())
WORDS = [*chain(*NOUNS.values()), *VERBS.values(), *chain(*ADJECTIVES.values())]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SEPARATORS = [",", ";", " |", ""]      # between the elements of a list; an element brings its own space
ARROWS = [" ->", " =", " :", " =>"]    # between the elements and the answer
HELD_OUT_FORMAT = (";", " =>")         # the benchmark's; no training document has this pair


@dataclass(frozen=True)
class Language:
    """One language over the world. words maps an English word to its form in this language."""
    name: str
    words: dict
    order: str = "SVO"       # a permutation of S, V, O
    adjective_after: bool = False
    determiner: str = ""     # follows the subject
    case_marker: str = ""    # follows the object

    def own_nouns(self):
        """{category: its nouns that are not spelled as in English}."""
        return {c: [n for n in NOUNS[c] if self.words[n] != n] for c in CATEGORIES}


ENGLISH = Language("english", {w: w for w in WORDS})


def make_language(name, seed, order="SOV", cognates=0.4):
    """A language of generated words. In each category, the share `cognates` of nouns stays English."""
    require(sorted(order) == ["O", "S", "V"], f"word order {order!r} is no permutation of S, V, O (try SOV)")
    require(0 <= cognates <= 1, f"the share of cognates is {cognates}, expected a number from 0 to 1")
    rng = Random(f"{name}/{seed}")
    syllables = [c + v for c in rng.sample("bdgklmnprstz", 9) for v in "aeiou"]
    taken = set(WORDS)

    def new_word(n_syllables):
        while True:
            word = "".join(rng.choices(syllables, k=n_syllables))
            if word not in taken:
                taken.add(word)
                return word

    words = {w: new_word(2) for w in WORDS}
    for c in CATEGORIES:
        words.update({n: n for n in rng.sample(NOUNS[c], round(cognates * len(NOUNS[c])))})
    return Language(name, words, order, True, new_word(1), new_word(1))


# ------------------------------------------------------------------------------------------------- patterns
# A rule maps a list of elements to one of them. Seven are Copain's, and the English corpus rehearses them.
# The held-out rule is in no corpus: it tells whether a model learns a rule from shots, or recognizes one.
# draw_list() reads the name of a rule. Its first word is the place of the answer: in the sorted list
# (integer, character), or in the list as it is written (element). In a _group one integer is even and the
# others are odd, or the reverse.
COPAIN_TASKS = ["max_integer_in_list", "min_integer_in_list", "median_integer_in_list",
                "even_integer_in_odd_group", "odd_integer_in_even_group", "first_character_in_list",
                "last_character_in_list"]
OTHER_RULES = ["first_element", "middle_element"]  # of the corpus other-rules
HELD_OUT_RULE = "last_element"


def draw_list(rng, rule, max_integer, length=3):
    """(elements, answer) of one line of a rule, as strings; the elements are distinct."""
    rules = [*COPAIN_TASKS, *OTHER_RULES, HELD_OUT_RULE]
    require(rule in rules, f"unknown list rule {rule!r}; there are {', '.join(rules)}")
    integers = range(max_integer + 1)
    if rule.endswith("_group"):       # one even among odd integers, or the reverse
        odd_one = 0 if rule.startswith("even") else 1
        xs = rng.sample(integers[1 - odd_one::2], length)
        answer = rng.choice(integers[odd_one::2])
        xs.insert(rng.randrange(length + 1), answer)
        return [str(x) for x in xs], str(answer)
    letters = "character" in rule or ("element" in rule and rng.random() < 0.5)
    xs = rng.sample(LETTERS if letters else integers, length)
    places = {"min": 0, "first": 0, "median": length // 2, "middle": length // 2, "max": -1, "last": -1}
    place = places[rule.split("_")[0]]
    answer = xs[place] if "element" in rule else sorted(xs)[place]
    return [str(x) for x in xs], str(answer)


def is_reserved(elements):
    """Whether 3 or 4 neighbours of a list, in any order, are of the eighth that is the benchmark's."""
    runs = [sorted(elements[i:i + n]) for n in (3, 4) for i in range(len(elements) - n + 1)]
    return any(zlib.crc32(" ".join(run).encode()) % 8 == 0 for run in runs)


def draw_training_list(rng, rule, max_integer, length):
    while True:
        elements, answer = draw_list(rng, rule, max_integer, length)
        if not is_reserved(elements):
            return elements, answer


def list_line(elements, answer, fmt):
    """' 4; 9; 2 => 9' : elements and answer in the format (separator, arrow); answer '' leaves a prompt."""
    separator, arrow = fmt
    return separator.join(f" {e}" for e in elements) + arrow + (f" {answer}" if answer else "")


def label_lines(pairs, fmt):
    """' dog => q; axe => b' : pairs of word and label. The separator ends a line; '' becomes a newline."""
    separator, arrow = fmt
    return (separator or "\n").join(f" {word}{arrow} {label}" for word, label in pairs)


def draw_format(rng):
    while True:
        fmt = rng.choice(SEPARATORS), rng.choice(ARROWS)
        if fmt != HELD_OUT_FORMAT:
            return fmt


# ------------------------------------------------------------------------------------------------ documents
@dataclass(frozen=True)
class World:
    """What there is to write about, and in which languages; SOURCES says which corpora come of it."""
    max_integer: int = 99
    list_lengths: tuple = (3,)
    targets: tuple = (("target", 0, "SOV", .4), ("third", 0, "VSO", 0.))  # name, seed, word order, cognates

    def languages(self):
        return {"english": ENGLISH} | {t[0]: make_language(*t) for t in self.targets}


_PATTERNS = dict(lists=.51, labels=.19, same_category=.02, repeats=.02, orders=.06)
SOURCES = {  # name of a corpus: its language, and the shares of its kinds of documents, relative to their sum
    "english": ("english", dict(prose=.20) | _PATTERNS),
    "target": ("target", dict(prose=.949, lists=.001, same_category=.025, repeats=.025)),
    "english-prose": ("english", dict(prose=1)),
    "english-repeats": ("english", dict(prose=.8, same_category=.1, repeats=.1)),
    "english-patterns": ("english", _PATTERNS),
    "other-rules": ("english", dict(prose=.25, other_lists=.75)),
    "third-language": ("third", dict(prose=1)),
    "third-patterns": ("third", _PATTERNS),
}
_ZIPF = list(accumulate((rank + 1) ** -0.7 for rank in range(20)))  # frequencies of the nouns of a category


def noun_phrase(lang, noun, adjective=None, ending=""):
    """' wild dog', in the language's order; ending is a subject's determiner or an object's case marker."""
    pair = (noun, adjective) if lang.adjective_after else (adjective, noun)
    words = [lang.words[w] for w in pair if w] + [ending]
    return "".join(f" {w}" for w in words if w)


def prose(rng, world, lang):
    """4 to 9 sentences. Nouns follow Zipf's law. Their categories decide the verb. Adjectives mostly fit."""
    def draw(category):
        noun, adjective = rng.choices(NOUNS[category], cum_weights=_ZIPF)[0], None
        if rng.random() < 0.4:
            adjective = rng.choice(ADJECTIVES[category if rng.random() < 0.9 else rng.choice(CATEGORIES)])
        return noun, adjective

    sentences = []
    for _ in range(rng.randint(4, 9)):
        s, o = rng.choice(CATEGORIES), rng.choice(CATEGORIES)
        part = {"S": noun_phrase(lang, *draw(s), lang.determiner), "V": " " + lang.words[VERBS[s, o]],
                "O": noun_phrase(lang, *draw(o), lang.case_marker)}
        sentences.append("".join(part[x] for x in lang.order) + ".")
    return "".join(sentences)


def lists(rng, world, lang, rules=COPAIN_TASKS):
    """One of the rules over 5 to 9 lines."""
    rule, fmt = rng.choice(rules), draw_format(rng)
    length = rng.choice(world.list_lengths)
    lines = [draw_training_list(rng, rule, world.max_integer, length) for _ in range(rng.randint(5, 9))]
    return "\n".join(list_line(elements, answer, fmt) for elements, answer in lines)


def labels(rng, world, lang):
    """12 to 24 nouns of two categories, each with its category's letter in this document."""
    letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
    kinds = rng.choices(list(letter), k=rng.randint(12, 24))
    return label_lines([(lang.words[rng.choice(NOUNS[c])], letter[c]) for c in kinds], draw_format(rng))


def same_category(rng, world, lang):
    """Four lines of nouns, each of one category."""
    draws = [rng.sample(NOUNS[rng.choice(CATEGORIES)], rng.randint(3, 6)) for _ in range(4)]
    return "\n".join(",".join(f" {lang.words[n]}" for n in nouns) for nouns in draws)


def repeats(rng, world, lang):
    """A short run of words, letters or integers, repeated verbatim."""
    integers = [str(x) for x in range(world.max_integer + 1)]
    pool = rng.choice([[lang.words[w] for w in WORDS], LETTERS, integers])
    while True:
        unit = rng.sample(pool, rng.randint(3, 6))
        if not is_reserved(unit + unit):
            return "\n".join([",".join(f" {w}" for w in unit)] * rng.randint(3, 6))


def orders(rng, world, lang):
    """Integers or letters in their order, 3 to 5 a line. They tell what is smaller and what is larger."""
    pool, lines = rng.choice([range(world.max_integer + 1), LETTERS]), []
    while len(lines) < 6:
        unit = [str(x) for x in sorted(rng.sample(pool, rng.randint(3, 5)))]
        if not is_reserved(unit):
            lines.append(" <".join(f" {x}" for x in unit))
    return "\n".join(lines)


DOCUMENT_KINDS = dict(prose=prose, lists=lists, other_lists=partial(lists, rules=OTHER_RULES), labels=labels,
                      same_category=same_category, repeats=repeats, orders=orders)


def write_corpus(world, source, n_documents, seed):
    """A list of n_documents strings of a source in SOURCES."""
    language, shares = SOURCES[source]
    rng, lang = Random(f"{source}/{seed}"), world.languages()[language]
    kinds = rng.choices(list(shares), list(shares.values()), k=n_documents)
    return [DOCUMENT_KINDS[kind](rng, world, lang) for kind in kinds]


# -------------------------------------------------------------------------------------------------- tokenizer
EOT = "<|endoftext|>"
# Patterns that cut a text into words before byte-pair encoding. A word brings the space before it.
SPLIT = r""" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)|" + SPLIT  # GPT-2's own, with English contractions


def train_bpe(texts, vocab_size):
    """Byte-pair encoding (Sennrich et al. 2016) over bytes: merges the most frequent pair, of equals the one
    that sorts first, until the vocabulary is full or every word is one token. Returns {token bytes: rank}."""
    ranks = {bytes([b]): b for b in range(256)}
    histogram = Counter(word for text in texts for word in regex.findall(SPLIT, text))
    pieces = {word: [bytes([b]) for b in word.encode()] for word in histogram}
    pairs, where = Counter(), defaultdict(set)  # how often a pair occurs, and in which words
    changed, heap = set(), []                   # the heap also holds outdated counts, which are skipped

    def add(word, n):
        for pair in zip(pieces[word], pieces[word][1:]):
            pairs[pair] += n
            where[pair].add(word)
            changed.add(pair)

    for word, n in histogram.items():
        add(word, n)
    while (changed or heap) and len(ranks) < vocab_size - 1:  # one id is kept for EOT
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
        changed.clear()
        n, best = heapq.heappop(heap)
        if n == 0 or -n != pairs[best]:
            continue
        ranks[best[0] + best[1]] = len(ranks)
        for word in where[best]:
            add(word, -histogram[word])
            merged = []
            for piece in pieces[word]:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces[word] = merged
            add(word, histogram[word])
    return ranks


class Tokenizer:
    """A byte-level BPE, served by tiktoken and lossless on any text. EOT stands before every document."""
    def __init__(self, ranks, split=SPLIT, eot=None):
        self.ranks, self.split = ranks, split  # ranks: {token bytes: id}, in the order of the merges
        self.eot = len(ranks) if eot is None else eot
        self.vocab_size = max(self.eot, *ranks.values()) + 1
        self.dtype = np.dtype("uint16" if self.vocab_size <= 1 << 16 else "uint32")
        self.encoding = tiktoken.Encoding("nanocpt", pat_str=split, mergeable_ranks=ranks,
                                          special_tokens={EOT: self.eot})
        self.tokens = {i: token for token, i in ranks.items()} | {self.eot: EOT.encode()}

    def encode(self, text):
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        """The text of ids. An id without a token, as in a model's padded vocabulary, becomes U+FFFD."""
        return b"".join(self.tokens.get(int(i), b"\xff") for i in ids).decode("utf-8", "replace")

    def encode_documents(self, documents, threads=None):
        """One array of ids: EOT before each document. A document that spells EOT is divided there."""
        threads = threads or os.cpu_count()  # tiktoken leaves Python's lock, so threads use all cores
        size = max(1, len(documents) // (4 * threads))
        texts = ["".join(EOT + d for d in documents[i:i + size]) for i in range(0, len(documents), size)]
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(lambda text: self.encoding.encode_to_numpy(text, allowed_special={EOT}), texts)
            return np.concatenate([np.empty(0, self.dtype), *parts]).astype(self.dtype)

    def to_json(self):
        tokens = {token.hex(): i for token, i in self.ranks.items()}
        return json.dumps({"split": self.split, "eot": self.eot, "tokens": tokens})

    @classmethod
    def from_json(cls, text, where="the tokenizer"):
        saved = parse_object(text, where)
        ranks = {bytes.fromhex(token): i for token, i in saved["tokens"].items()}
        return cls(ranks, saved["split"], saved["eot"])


def load_tokenizer(spec):
    """The tokenizer of 'gpt2', of a prepared source's folder, or of a folder with GPT-2's published files."""
    folder = Path(spec)
    if (folder / "manifest.json").exists():
        file = folder / "tokenizer.json"
        return Tokenizer.from_json(file.read_bytes(), file)
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).exists() and (folder / merges).exists():
            return published_tokenizer(folder / vocabulary, folder / merges)
    require(str(folder) == "gpt2", f"{str(spec)!r} holds no tokenizer: give --tokenizer gpt2, or the folder "
            "of a prepared source, or of vocab.json and merges.txt, which save_vocabulary() of transformers "
            "writes")
    try:
        return Tokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks, GPT2_SPLIT)
    except Exception as e:  # no network and no cache; tiktoken lets its downloader's exceptions through
        raise ValueError(f"GPT-2's vocabulary cannot be downloaded ({type(e).__name__}): give a folder with "
                         "its vocab.json and merges.txt, or --tokenizer bpe") from None


def published_tokenizer(vocabulary, merges):
    """A Tokenizer from GPT-2's files: {token: id}, and the pairs to merge, in order."""
    ids, ranks = parse_object(vocabulary.read_bytes(), vocabulary), {}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]  # they are spelled with characters from U+0100 on
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    lines = [line for _, line in read_lines(merges) if line and not line.startswith("#version")]
    for token in [*byte_of, *("".join(line.split()) for line in lines)]:
        known = isinstance(ids.get(token), int) and set(token) <= byte_of.keys()
        require(known, f"{merges}: {token!r} has no id in {vocabulary.name}, or is not spelled in its way")
        ranks[bytes(byte_of[c] for c in token)] = ids[token]
    merged, eot = list(ranks.values())[256:], ids.get(EOT, max(ranks.values()) + 1)
    require(merged == sorted(merged), f"{merges}: the ids do not rise in the order of the merges")
    require(len({eot, *ranks.values()}) == len(ranks) + 1, f"{vocabulary}: two tokens have the same id")
    return Tokenizer({token: ranks[token] for token in sorted(ranks, key=ranks.get)}, GPT2_SPLIT, eot)


# -------------------------------------------------------------------------------------------------- real text
LONGEST_DOCUMENT = 1 << 18   # characters; a longer one is cut (tiktoken fails at a million spaces in a row)
BATCH = 4 << 20              # characters per thread that are read and encoded at a time
OURS = ("manifest.json", "progress.json", "tokenizer.json")  # in the folder of a source, whole or begun
TEXT_FILE, JSON_FILE = r"\.(txt|jsonl?|ndjson)(\.gz)?$", r"\.(jsonl?|ndjson)(\.gz)?$"


def find_texts(paths):
    """The text files that the paths name; of a folder, all files below it with a known ending."""
    found = []
    for path in map(Path, paths):
        require(path.exists(), f"{path} does not exist")
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if regex.search(TEXT_FILE, p.name)
                            and not (p.name in OURS and (p.parent / "tokenizer.json").exists()))
        require(inside, f"{path} holds no .txt, .json, .jsonl or .ndjson file, also with .gz")
        found += inside
    return found


def read_documents(path, field="text", errors="strict"):
    """Yields the documents of a file that are not empty, in pieces of at most LONGEST_DOCUMENT characters.
    JSON lines, which the ending or the first line tells, hold one each. Else blank lines separate them."""
    is_json, lines = None, []
    for where, line in chain(read_lines(path, errors), [("", "")]):  # a blank line ends the last document
        text = ""
        if line and is_json is None:
            is_json = bool(regex.search(JSON_FILE, path.name) or regex.match(r'\s*{\s*"', line))
        if line and is_json:
            found = parse_object(line, where).get(field)
            require(isinstance(found, str), f"{where}: no field {field!r} with a text; name it with --field")
            text = found.encode("utf-8", "replace").decode()  # JSON can spell half of a surrogate pair
            require(errors == "replace" or text == found, f"{where}: half a surrogate; try --errors replace")
        elif line:
            lines.append(line)
        if lines and (not line or len(lines) > 10_000):
            text, lines = "".join(lines).strip("\r\n"), []
        for start in range(0, len(text), LONGEST_DOCUMENT):
            yield text[start:start + LONGEST_DOCUMENT]


def next_batch(documents, characters):
    """The next documents with about so many characters; [] at the end."""
    batch = []
    while characters > 0 and (text := next(documents, None)):
        batch.append(text)
        characters -= len(text)
    return batch


def prepare(name, paths, out="data", field="text", tokenizer="gpt2", vocab_size=None, val=0.005,
            errors="strict", workers=None):
    """Encodes text files into the folder out/name and returns it. Works in out/name.part; an interrupted run
    goes on there. Raises ValueError for a mistake, where possible before anything is written."""
    final, part, files = Path(out) / name, Path(out) / f"{name}.part", find_texts(paths)
    require(regex.fullmatch(r"\w[\w+-]*", name), f"--name is {name!r}, expected letters, digits, _ + -")
    require(0 < val < 1, f"--val is {val}, expected a share between 0 and 1")
    require(workers is None or workers > 0, f"--workers is {workers}, expected 1 or more")
    require(vocab_size is None or (tokenizer == "bpe" and vocab_size > 256),
            f"--vocab_size is {vocab_size}, expected 257 or more, and with --tokenizer bpe alone")
    require(not final.exists(), f"{final} is there already: choose another --name")
    sample = []
    for file in files:  # its start also shows a wrong --field
        start = next_batch(read_documents(file, field, errors), max(1, 16_000_000 // len(files)))
        require(start, f"{file} holds no text: leave it out")
        sample += start
    if tokenizer == "bpe":
        tok = Tokenizer(train_bpe(sample, vocab_size or 8192))
    else:
        tok = load_tokenizer(tokenizer)
    plan = {"files": [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files], "field": field,
            "val": val, "errors": errors, "vocab_size": tok.vocab_size, "dtype": tok.dtype.name,
            "tokenizer_sha256": hashlib.sha256(tok.to_json().encode()).hexdigest()}
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock(final.with_name(f".{name}.lock")) as free:
        require(free and not final.exists(), f"another prepare of {name} is running: choose another --name")
        part.mkdir(exist_ok=True)
        (part / "tokenizer.json").write_text(tok.to_json())
        done = encode_files(files, part, tok, plan, workers or os.cpu_count())
        for side, n in done["tokens"].items():
            require(n, f"none of {done['documents']} documents went to {side}: give more (in plain text, "
                       "blank lines separate them), or change --val")
        sums = {side: sha256(part / f"{side}.bin") for side in done["tokens"]}
        text = json.dumps({"name": name} | done | {"sha256": sums} | plan, indent=1) + "\n"
        write_atomically(part / "manifest.json", lambda p: p.write_text(text))
        for leftover in [part / "progress.json", *part.glob("*.tmp")]:  # a killed run leaves a .tmp
            leftover.unlink()
        os.replace(part, final)
    train, val = done["tokens"].values()
    print(f"{final}: {train:,} tokens for training, {val:,} for validation")
    return final


def encode_files(files, part, tok, plan, threads):
    """Appends the documents of all files to part/train.bin and part/val.bin. After each batch, progress.json
    notes how many documents and tokens that makes. A restart cuts both files there and goes on from there."""
    progress, itemsize = part / "progress.json", tok.dtype.itemsize
    done = {"documents": 0, "tokens": {"train": 0, "val": 0}}
    with open(part / "train.bin", "ab") as train, open(part / "val.bin", "ab") as val, \
            tqdm(unit=" documents") as bar:
        outputs = {"train": train, "val": val}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # then nothing can be used
            noted = parse_object(progress.read_bytes(), progress)
            n = noted["done"]["tokens"]
            fits = all(0 <= n[side] * itemsize <= file.tell() for side, file in outputs.items())
            if noted["plan"] == plan and fits and noted["done"]["documents"] >= 0:
                done = noted["done"]
        for side, file in outputs.items():
            file.truncate(done["tokens"][side] * itemsize)
        documents = (text for file in files for text in read_documents(file, plan["field"], plan["errors"]))
        documents = islice(documents, done["documents"], None)
        while batch := next_batch(documents, BATCH * threads):
            texts = {"train": [], "val": []}
            for text in batch:  # a hash decides, so equal documents go to the same side
                share = zlib.crc32(text.encode()) / 2 ** 32
                texts["val" if share < plan["val"] else "train"].append(text)
            for side, file in outputs.items():
                ids = tok.encode_documents(texts[side], threads)
                file.write(ids.tobytes())
                file.flush()
                os.fsync(file.fileno())
                done["tokens"][side] += len(ids)
            done["documents"] += len(batch)
            write_atomically(progress, lambda p: p.write_text(json.dumps({"plan": plan, "done": done})))
            bar.update(done["documents"] - bar.n)
    return done


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_manifest(folder, block_size, whole=False):
    """The manifest of a prepared source, after a check of its tokenizer and of the sizes of its files; with
    whole=True, of every byte."""
    folder = Path(folder)
    try:
        manifest = parse_object((folder / "manifest.json").read_bytes(), folder / "manifest.json")
        same = sha256(folder / "tokenizer.json") == manifest["tokenizer_sha256"]
        require(same, f"{folder}/tokenizer.json has changed: prepare again")
        for side in ("train", "val"):
            file, n = folder / f"{side}.bin", manifest["tokens"][side]
            same = file.stat().st_size == n * np.dtype(manifest["dtype"]).itemsize
            if whole:
                same = same and sha256(file) == manifest["sha256"][side]
            require(same, f"{file} is not what its manifest says: prepare it again")
            require(n > block_size, f"{file} has {n} tokens; a block of {block_size} needs {block_size + 1}: "
                    "give it more text, a larger --val, or lower --block_size")
    except (OSError, KeyError, TypeError) as e:
        raise ValueError(f"{folder} is not a prepared source, or is damaged or of an older version "
                         f"({type(e).__name__}: {e}): make it with python data.py prepare") from None
    return manifest


# ---------------------------------------------------------------------------------------------------- sampler
class Mixture:
    """Draws batches from named arrays of ids. A batch is a pure function of (seed, step) and its weights.

        mix = Mixture({"target": ids_a, "english": ids_b}, block_size=64, seed=0)
        x, y, rows = mix.batch(step=0, batch_size=32, weights={"target": .8, "english": .2})

    Each source has its own random stream. So runs with different weights see the same windows of a source.
    """

    def __init__(self, sources, block_size, seed):
        for name, ids in sources.items():
            require(len(ids) > block_size, f"source {name!r} has {len(ids)} tokens; a block of {block_size} "
                    f"needs at least {block_size + 1}: give it more text or lower block_size")
        self.sources, self.block_size, self.seed = sources, block_size, seed
        self.offset = np.random.default_rng([seed, 0]).random()

    def counts(self, step, batch_size, weights):
        """{source: rows} at a step. A low-discrepancy sequence keeps any run of steps within a row or two."""
        unknown = sorted(set(weights) - set(self.sources))
        require(not unknown, f"the mixture names {unknown}, but its sources are {sorted(self.sources)}")
        u = (self.offset + step * 0.6180339887498949) % 1.0
        edges = np.floor(np.cumsum([0.0, *weights.values()]) * batch_size + u + 1e-9).astype(int)
        return dict(zip(weights, np.diff(edges).tolist()))

    def batch(self, step, batch_size, weights):
        """x, y (B, T) int64, y shifted by one, and rows (B,): the name of each row's source."""
        T, xs, rows = self.block_size, [], []
        for name, n in self.counts(step, batch_size, weights).items():
            ids = self.sources[name]
            rng = np.random.default_rng([self.seed, step, zlib.crc32(name.encode())])
            starts = rng.integers(0, len(ids) - T, size=n)
            xs.append(ids[starts[:, None] + np.arange(T + 1)])       # (n, T + 1)
            rows += [name] * n
        xy = np.concatenate(xs).astype(np.int64)                     # (B, T + 1)
        return xy[:, :-1], xy[:, 1:], np.array(rows)


# ----------------------------------------------------------------------------------------------- command line
def one_line_parser(argument_default=argparse.SUPPRESS, **kwargs):
    """A parser that names a mistake in one line. By default, a flag that is not given is left out."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argument_default,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
    parser.error = refuse
    return parser


def show(seed=0, target_order="SOV", cognates=0.4):
    """Prints a document of every kind of the toy world, and how it is tokenized."""
    world = World(targets=(("target", seed, target_order, cognates),))
    documents = [d for name in world.languages() for d in write_corpus(world, name, 2000, seed)]
    tok = Tokenizer(train_bpe(documents, 2048))
    for name, lang in world.languages().items():
        for kind, share in SOURCES[name][1].items():
            text = DOCUMENT_KINDS[kind](Random(seed), world, lang)
            pieces = " ".join(repr(tok.decode([i])) for i in tok.encode(text)[:16])
            print(f"--- {name}, {kind} ({share:.1%} of the documents)\n{text} \n[{pieces} ...]\n")


def check(folders):
    """Verifies every byte of prepared sources."""
    for folder in folders:
        tokens = load_manifest(folder, 0, whole=True)["tokens"]
        print(f"{folder}: whole; {tokens['train']:,} tokens for training, {tokens['val']:,} for validation")


def main():
    parser = one_line_parser()
    commands = parser.add_subparsers(dest="command", parser_class=one_line_parser)
    flag = commands.add_parser("show", prog="data.py", description=__doc__).add_argument
    flag("--seed", type=int, help="of the target language and of the documents")
    flag("--target_order", help="word order of the target language, by default SOV")
    flag("--cognates", type=float, help="share of nouns spelled as in English, by default 0.4")
    flag = commands.add_parser("prepare", description="Encodes text files as a source.").add_argument
    flag("paths", nargs="+", help="plain text or JSON lines, also gzip; or folders")
    flag("--name", required=True, help="of the source, and of its folder")
    flag("--out", help="folder of the prepared sources, by default data")
    flag("--field", help="of a JSON line that holds the text, by default text")
    flag("--tokenizer", help="gpt2 (the default), bpe (of these files) or a folder with one")
    flag("--vocab_size", type=int, help="of --tokenizer bpe, at most; by default 8192")
    flag("--val", type=float, help="share of the documents for validation, by default 0.005")
    flag("--errors", choices=["strict", "replace"], help="on invalid UTF-8, by default strict")
    flag("--workers", type=int, help="threads, by default as many as cores")
    flag = commands.add_parser("check", description="Verifies every byte of prepared sources.").add_argument
    flag("folders", nargs="+", help="folders that data.py prepare made, such as data/eu")
    words = sys.argv[1:]
    if not words or words[0] not in commands.choices:
        words.insert(0, "show")
    flags = vars(parser.parse_args(words))
    command = {"show": show, "prepare": prepare, "check": check}[flags.pop("command")]
    try:
        command(**flags)
    except (ValueError, OSError) as e:
        refuse(e)
    except KeyboardInterrupt:
        refuse("stopped; the same command goes on from there", 130)


if __name__ == "__main__":
    main()
