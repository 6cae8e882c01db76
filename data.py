"""The toy world, the tokenizer, the sampler of mixtures, and real text.

English has prose, and patterns that repeat one rule line after line and so teach in-context learning. The
target language has almost only prose, which teaches words. Some tasks need both.

    python data.py        # prints a document of every kind, and how it is tokenized

World -> write_corpus() -> text -> Tokenizer -> a file of ids per source -> Mixture.batch(step). Real text:

    python data.py prepare --name eu corpus/*.txt more.jsonl.gz    # data/eu, with GPT-2's tokenizer
    python data.py prepare --name en c4/ --tokenizer data/eu       # a folder, with the tokenizer of the first
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import signal
import sys
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, groupby, islice
from pathlib import Path
from random import Random

import numpy as np
import regex  # comes with tiktoken
import tiktoken
from tqdm import tqdm


def require(condition, message):
    if not condition:
        raise ValueError(message)


# ------------------------------------------------ the world
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
HELD_OUT_FORMAT = (";", " =>")         # the benchmark's; no training document of patterns has this pair
SENTENCE_ENDS = {".": 80, ";": 6, ",": 6, " |": 2, " :": 2, " =": 2, " ->": 1, " =>": 1}  # in percent


@dataclass(frozen=True)
class Language:
    """One language over the world. words: {English word: its form}."""
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


def make_language(name, seed, order="SOV", cognates=0.5):
    """A language of generated words. In each category, the share `cognates` of nouns stays English."""
    require(sorted(order) == ["O", "S", "V"], f"word order {order!r} is no permutation of S, V, O")
    rng = Random(f"{name}/{seed}")
    syllables = [c + v for c in rng.sample("bdgklmnprstz", 9) for v in "aeiou"]
    taken = set(WORDS)

    def new_word(n_syllables):
        while (word := "".join(rng.choices(syllables, k=n_syllables))) in taken:
            pass
        taken.add(word)
        return word

    words = {w: new_word(2) for w in WORDS}
    words |= {n: n for c in CATEGORIES for n in rng.sample(NOUNS[c], round(cognates * len(NOUNS[c])))}
    return Language(name, words, order, True, new_word(1), new_word(1))


# ------------------------------------------------ patterns
# A rule maps a list of elements to one of them. Seven are Copain's, and the English corpus rehearses them.
# The held-out rule is in no corpus: it tells whether a model learns a rule from shots, or recognizes one.
# The first word (if not even, odd) is the answer's place in the sorted list; of _element, as it is written.
COPAIN_TASKS = ["max_integer_in_list", "min_integer_in_list", "median_integer_in_list",
                "even_integer_in_odd_group", "odd_integer_in_even_group", "first_character_in_list",
                "last_character_in_list"]
OTHER_RULES = ["first_element", "middle_element"]  # of the corpus other-rules
HELD_OUT_RULE = "last_element"


def draw_list(rng, rule, max_integer, length=3):
    """(elements, answer) of one line of a rule, as strings; the elements are distinct."""
    integers = range(max_integer + 1)
    if rule.endswith("_group"):       # one even among odd integers, or the reverse
        parity = 0 if rule.startswith("even") else 1  # of the answer
        xs = rng.sample(integers[1 - parity::2], length)
        answer = rng.choice(integers[parity::2])
        xs.insert(rng.randrange(length + 1), answer)
        return [str(x) for x in xs], str(answer)
    letters = "character" in rule or ("element" in rule and rng.random() < 0.5)
    xs = rng.sample(LETTERS if letters else integers, length)
    places = {"min": 0, "first": 0, "median": length // 2, "middle": length // 2, "max": -1, "last": -1}
    place = places[rule.split("_")[0]]
    answer = xs[place] if "element" in rule else sorted(xs)[place]
    return [str(x) for x in xs], str(answer)


def is_reserved(elements):
    """Whether 3 or 4 neighbours, in any order, are kept for the benchmark, as an eighth of all sets are."""
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


def draw_format(rng):
    while True:
        fmt = rng.choice(SEPARATORS), rng.choice(ARROWS)
        if fmt != HELD_OUT_FORMAT:
            return fmt


@dataclass(frozen=True)
class World:
    """What there is to write about, and in which languages; SOURCES says which corpora come of it."""
    max_integer: int = 99
    list_lengths: tuple = (3,)
    targets: tuple = (("target", 0, "SOV", .5), ("third", 0, "VSO", 0.))  # name, seed, word order, cognates

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
    """4 to 9 sentences. Nouns follow Zipf's law. Their categories decide the verb. Adjectives mostly fit. A
    fifth of the noun phrases has an integer or a letter before it, as in real text."""
    def quantity():
        u = rng.random()
        if u < 0.15:
            return f" {rng.randrange(world.max_integer + 1)}"
        return f" {rng.choice(LETTERS)}" if u < 0.2 else ""

    def draw(category):
        noun, adjective = rng.choices(NOUNS[category], cum_weights=_ZIPF)[0], None
        if rng.random() < 0.4:
            adjective = rng.choice(ADJECTIVES[category if rng.random() < 0.9 else rng.choice(CATEGORIES)])
        return noun, adjective

    sentences = []
    for _ in range(rng.randint(4, 9)):
        s, o = rng.choice(CATEGORIES), rng.choice(CATEGORIES)
        part = {"S": quantity() + noun_phrase(lang, *draw(s), lang.determiner),
                "V": " " + lang.words[VERBS[s, o]],
                "O": quantity() + noun_phrase(lang, *draw(o), lang.case_marker)}
        sign = rng.choices(list(SENTENCE_ENDS), list(SENTENCE_ENDS.values()))[0]
        sentences.append("".join(part[x] for x in lang.order) + sign)
    return "".join(sentences)


def lists(rng, world, lang, rules=COPAIN_TASKS):
    """One of the rules over 5 to 9 lines."""
    rule, fmt, length = rng.choice(rules), draw_format(rng), rng.choice(world.list_lengths)
    lines = [draw_training_list(rng, rule, world.max_integer, length) for _ in range(rng.randint(5, 9))]
    return "\n".join(list_line(elements, answer, fmt) for elements, answer in lines)


def labels(rng, world, lang):
    """' dog = q | axe = b' : 12 to 24 nouns of two categories, each with its category's letter."""
    letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
    kinds = rng.choices(list(letter), k=rng.randint(12, 24))
    pairs = [(lang.words[rng.choice(NOUNS[c])], letter[c]) for c in kinds]
    separator, arrow = draw_format(rng)
    return (separator or "\n").join(f" {word}{arrow} {label}" for word, label in pairs)


def same_category(rng, world, lang):
    """Four lines of nouns, each of one category."""
    draws = [rng.sample(NOUNS[rng.choice(CATEGORIES)], rng.randint(3, 6)) for _ in range(4)]
    return "\n".join(",".join(f" {lang.words[n]}" for n in nouns) for nouns in draws)


def repeats(rng, world, lang):
    """A short run of words, letters or integers, repeated verbatim."""
    pool = rng.choice([[lang.words[w] for w in WORDS], LETTERS, [*map(str, range(world.max_integer + 1))]])
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


# ------------------------------------------------ tokenizer
EOT = "<|endoftext|>"
# Patterns that cut a text into words before byte-pair encoding. A word brings the space before it.
SPLIT = r""" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)|" + SPLIT  # GPT-2's own, with English contractions


def train_bpe(texts, vocab_size):
    """Byte-pair encoding (Sennrich et al. 2016): merges the most frequent pair, of equals the one that sorts
    first, until the vocabulary is full or every word is one token. Returns {token bytes: rank}."""
    ranks = {bytes([b]): b for b in range(256)}
    histogram = Counter(word for text in texts for word in regex.findall(SPLIT, text))
    pieces = {word: [bytes([b]) for b in word.encode()] for word in histogram}
    pairs, where = Counter(), defaultdict(set)  # how often a pair occurs; the words that have, or had, it

    def add(word, n):
        for pair in zip(pieces[word], pieces[word][1:]):
            pairs[pair] += n
            where[pair].add(word)
            if not pairs[pair]:
                del pairs[pair]

    for word, n in histogram.items():
        add(word, n)
    while pairs and len(ranks) < vocab_size - 1:  # one id is kept for EOT
        most = max(pairs.values())
        best = min(pair for pair, n in pairs.items() if n == most)
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
        self.encode = self.encoding.encode_ordinary  # encode(text): a list of ids

    def decode(self, ids):
        """The text of ids. An id without a token becomes U+FFFD."""
        return b"".join(self.tokens.get(int(i), b"\xff") for i in ids).decode("utf-8", "replace")

    def line_ends(self):
        """The ids that end a line of text: those of tokens with a newline, and EOT."""
        return {i for i, token in self.tokens.items() if b"\n" in token} | {self.eot}

    def encode_documents(self, documents):
        """One array of ids: EOT before each document. A document that spells EOT is divided there."""
        ids = self.encoding.encode_batch([EOT + d for d in documents], allowed_special={EOT})
        return np.fromiter(chain.from_iterable(ids), self.dtype)

    def to_json(self):
        tokens = {token.hex(): i for token, i in self.ranks.items()}
        return json.dumps({"split": self.split, "eot": self.eot, "tokens": tokens})

    @classmethod
    def from_json(cls, text):
        saved = json.loads(text)
        ranks = {bytes.fromhex(token): i for token, i in saved["tokens"].items()}
        return cls(ranks, saved["split"], saved["eot"])


class Mixture:
    """Draws batches from named arrays of ids. A batch is a pure function of (seed, step) and its weights.
    Each source has its own random stream, so runs with different weights see the same windows of it.
        mix = Mixture({"target": ids_a, "english": ids_b}, block_size=64, seed=0)
        x, y, rows = mix.batch(step=0, batch_size=32, weights={"target": .8, "english": .2})
    """

    def __init__(self, sources, block_size, seed):
        for name, ids in sources.items():
            require(len(ids) > block_size, f"{name} has {len(ids)} tokens, a block needs {block_size + 1}")
        self.sources, self.block_size, self.seed = sources, block_size, seed
        self.offset = np.random.default_rng([seed, 0]).random()

    def counts(self, step, batch_size, weights):
        """{source: rows} at a step. u has low discrepancy: over any steps, the sums stay near the weights."""
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


# ------------------------------------------------ files
FORMATS = {  # how files begin that are not plain text
    "a Git LFS pointer": rb"version https://git-lfs", "a tar archive": rb".{257}ustar", "bzip2": rb"BZh\d1AY",
    "a zip archive": rb"PK[\x03\x05]", "gzip in gzip": rb"\x1f\x8b", "xz": rb"\xfd7zX",
    "zstd": rb"\x28\xb5\x2f\xfd", "parquet": rb"PAR1[^ -~\s]",
    "UTF-16, UTF-32 or no text at all": rb"\xff\xfe|\xfe\xff|.*\x00"}
TEXT_FILE = r"(?i)(?<!^manifest|^tokenizer)\.(txt|jsonl?|ndjson)(\.gz)?$"  # in a folder; not prepare's own
JSON_FILE = r"(?i)\.(jsonl?|ndjson)(\.gz)?$"
JSON_LINE = r'\s*(\[\s*)?\{\s*"|\s*[\[{]\s*$'  # what JSON begins with, whatever the name of the file
LONGEST_DOCUMENT = 1 << 18   # characters; a longer one is cut (tiktoken fails at a million spaces in a row)


def refuse(message, code=2):
    """Ends the program after a user's mistake, with one line on stderr."""
    print(f"error: {str(message) or repr(message)}", file=sys.stderr)  # a MemoryError has no text
    sys.exit(code)


def run_command(function, *args, **kwargs):
    """Calls a function. A user's mistake, ValueError or OSError, gets one line and code 2."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    sys.stdout.reconfigure(errors="replace")  # of what a terminal lacks
    try:
        function(*args, **kwargs)
    except (ValueError, OSError, MemoryError) as e:
        refuse(e)
    except KeyboardInterrupt:
        refuse("stopped; the same command starts again", 130)


def sha256(path):  # an empty file cannot be mapped
    return hashlib.sha256(np.memmap(path, mode="r") if Path(path).stat().st_size else b"").hexdigest()


def write_file(path, write):
    """Writes a file whole or not at all, by write(file). OSError with the reason, such as a full disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes never share it
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        cause = e if isinstance(e, OSError) else e.__context__ or e  # torch.save hides "No space left"
        raise OSError(f"cannot write {path}: {cause}; it still holds what it held") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    write_file(path, lambda file: file.write(text.encode()))


def read_lines(path, errors=None):
    """Yields ("FILE, line N", line) of a text in UTF-8, also gzipped; a blank line is "". Lines do not end at
    U+2028, which JSON may hold. errors: "strict", "replace", or None in a command without that flag."""
    n = 0
    with open(path, "rb") as file:
        try:
            file = gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            for kind, start in FORMATS.items():
                good = not regex.match(start, file.peek(4096), regex.DOTALL)
                require(good, f"{path} is {kind}: give the text itself, in UTF-8 (Git LFS: git lfs pull)")
            for n, line in enumerate(io.TextIOWrapper(file, "utf-8", errors), 1):
                require("\0" not in line, f"{path}, line {n}: a NUL byte, so this is no text")
                line = line.replace("\ufeff", "").rstrip("\n")
                yield f"{path}, line {n}", line if line.strip() else ""
        except UnicodeDecodeError as e:
            n += 1 + e.object[:e.start].count(b"\n")
            hint = "; if little is damaged, use --errors replace" if errors else ""
            raise ValueError(f"{path}, line {n}: byte 0x{e.object[e.start]:02x} is not UTF-8{hint}") from None
        except (EOFError, OSError, zlib.error) as e:
            raise ValueError(f"{path}, after line {n}: cannot be read ({e}); is the file whole?") from None


def read_text(path):
    return "\n".join(line for _, line in read_lines(path))


def read_json_lines(path, errors=None):
    """Yields ("FILE, line N", dict) of each line that is not blank."""
    for where, line in read_lines(path, errors):
        if line:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise ValueError(f"{where}: not JSON on one line ({e})") from None
            require(isinstance(row, dict), f"{where}: {line[:40]!r} is not an object with named fields")
            yield where, row


def write_json_lines(path, rows):
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def load_tokenizer(spec):
    """The tokenizer of 'gpt2', of a prepared source or a run, or of a folder with GPT-2's published files."""
    folder = Path(spec)
    try:
        if (folder / "vocab.json").exists():
            return published_tokenizer(folder)
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_json(read_text(folder / "tokenizer.json"))
        require(str(folder) == "gpt2", "there is none")
        return Tokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks, GPT2_SPLIT)
    except Exception as e:  # damaged files, or no network; tiktoken lets its downloader's exceptions through
        raise ValueError(f"no tokenizer in {folder} ({type(e).__name__}: {e}): give gpt2, a prepared source, "
                         "or vocab.json + merges.txt (transformers: backend_tokenizer.model.save)") from None


def published_tokenizer(folder):
    """A Tokenizer from GPT-2's vocab.json, {token: id}, and merges.txt, the pairs to merge, in order."""
    ids, eot = json.loads(read_text(folder / "vocab.json")), None
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]  # they are spelled with characters from U+0100 on
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    merges = [line for _, line in read_lines(folder / "merges.txt") if not line.startswith("#version")]
    tokens = [*byte_of, *("".join(line.split()) for line in merges if line)]
    ranks = {bytes(byte_of[c] for c in token): ids[token] for token in tokens}
    for file, key in (("vocab.json", EOT), ("added_tokens.json", EOT), ("config.json", "eos_token_id")):
        if eot is None and (folder / file).exists():
            eot = json.loads(read_text(folder / file)).get(key)
    require(isinstance(eot, int), f"{EOT} has no id in vocab.json, added_tokens.json or config.json")
    merged = list(ranks.values())[256:]
    good = merged == sorted(merged) and len({eot, *ranks.values()}) == len(ranks) + 1 > len(ids) - 99
    require(good, "two ids are equal, do not rise in the order of the merges, or merges.txt is cut")
    return Tokenizer(ranks, GPT2_SPLIT, eot)


# ------------------------------------------------ real text
def find_texts(paths, found, others, are_named=True):
    """Adds {real path: path} to found: paths that a user named (are_named), whatever they are, and the text
    files below folders. Counts in others why the rest is passed over."""
    for path in paths:
        if path.name.startswith(".") and not are_named:
            others["hidden"] += 1
        elif not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} does not exist, or is a broken link or a pipe")
        elif path.is_file() and not are_named and not regex.search(TEXT_FILE, path.name):
            others["of another kind"] += 1
        elif path.resolve() in found:
            others["met before"] += 1
        else:
            found[path.resolve()] = path
            if path.is_dir():
                find_texts(sorted(path.iterdir()), found, others, are_named=False)


def read_documents(path, field="text", errors="strict"):
    """Yields the documents of a file in pieces of at most LONGEST_DOCUMENT characters. If its ending or
    first line is JSON's, every line is a document (or null); in plain text, blank lines separate them."""
    first = next((line for _, line in read_lines(path, errors) if line), "")
    is_json = regex.search(JSON_FILE, path.name) or regex.match(JSON_LINE, first)
    for text in json_texts(path, field, errors) if is_json else paragraphs(path, errors):
        for start in range(0, len(text), LONGEST_DOCUMENT):
            yield text[start:start + LONGEST_DOCUMENT]


def paragraphs(path, errors):
    for is_text, lines in groupby((line for _, line in read_lines(path, errors)), key=bool):
        while is_text and (some := list(islice(lines, 10_000))):  # this bounds the memory
            yield "\n".join(some)


def json_texts(path, field, errors):
    for where, row in read_json_lines(path, errors):
        require(field in row, f"{where}: no field {field!r}, but {', '.join(row)}; name one with --field")
        text = "" if row[field] is None else row[field]
        require(isinstance(text, str), f"{where}: {field!r} holds {json.dumps(text)[:40]}, expected a text")
        text = text.encode("utf-8", "replace").decode()  # JSON can spell half of a surrogate pair
        yield text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")


def prepare(name, paths, out="data", field="text", tokenizer="gpt2", vocab_size=8192, val=0.005,
            errors="strict"):
    """Encodes text files into the folder out/name and returns it. An interrupted run starts again."""
    final, part = Path(out) / name, Path(out) / f"{name}.part"
    require(not final.exists(), f"{final} is there already: choose another --name")
    require(name and Path(name).name == name, f"--name is {name!r}, expected a plain name; --out says where")
    require(0 < val < 1, f"--val is {val}, expected a share between 0 and 1")
    found, others = {}, Counter()
    find_texts(map(Path, paths), found, others)
    files = [path for path in found.values() if path.is_file()]
    print(len(files), "files taken; passed over:", ", ".join(f"{n} {x}" for x, n in others.items()) or "none")
    read = partial(read_documents, field=field, errors=errors)
    empty = [str(file) for file in files if not any(read(file))]  # a wrong --field is found here, too
    require(files and not empty, f"no text in {', '.join(empty or map(str, paths))}")
    if tokenizer == "bpe":
        sample = [text[:2000] for file in files for text in islice(read(file), 1 + 20_000 // len(files))]
        tok = Tokenizer(train_bpe(sample, vocab_size))
    else:
        tok = load_tokenizer(tokenizer)
    documents = chain.from_iterable(map(read, files))
    part.mkdir(parents=True, exist_ok=True)
    bins, held = {side: part / f"{side}.bin" for side in ("train", "val")}, []
    with open(bins["train"], "wb") as train, open(bins["val"], "wb") as held_out, tqdm(unit=" texts") as bar:
        while batch := list(islice(documents, 1000)):
            texts = []
            for text in batch:  # by hash: equal documents share a side, and a smaller --val lies in a larger
                (held if zlib.crc32(text.encode()) < val * 2 ** 32 else texts).append(text)
            train.write(tok.encode_documents(texts))
            bar.update(len(batch))
        held_out.write(tok.encode_documents(Random(0).sample(held, len(held))))  # files mixed
    (part / "tokenizer.json").write_text(tok.to_json())
    tokens = {side: file.stat().st_size // tok.dtype.itemsize for side, file in bins.items()}
    manifest = dict(name=name, documents=bar.n, tokens=tokens, val=val, dtype=tok.dtype.name,
                    vocab_size=tok.vocab_size, tokenizer_sha256=sha256(part / "tokenizer.json"),
                    sha256=sha256(bins["train"]), files=[str(file) for file in files], passed_over=others)
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    load_manifest(part, 0)
    os.replace(part, final)
    print(f"{final}: {tokens['train']:,} tokens for training, {tokens['val']:,} for validation")
    return final


def load_manifest(folder, block_size, val_blocks=1):
    """The manifest of a prepared source, after a check of its tokenizer and of its files' sizes."""
    try:
        manifest = json.loads(read_text(folder / "manifest.json"))
        same = sha256(folder / "tokenizer.json") == manifest["tokenizer_sha256"]
        for side, n in manifest["tokens"].items():
            size = (folder / f"{side}.bin").stat().st_size
            same = same and size == n * np.dtype(manifest["dtype"]).itemsize
        require(same and len(manifest["sha256"]) == 64, "its files have changed, or are of an older version")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder} is not as data.py prepare makes it ({e}): prepare it again") from None
    for side, n in manifest["tokens"].items():
        least = 1 + block_size * (val_blocks if side == "val" else 1)
        require(n >= least, f"{folder}/{side}.bin has {n} tokens, needs {least}: more text or another --val")
    return manifest


# ------------------------------------------------ command line
def one_line_parser(argument_default=argparse.SUPPRESS, **kwargs):
    """A parser that names a mistake in one line, and leaves out flags that are not given."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argument_default,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
    parser.error = refuse
    return parser


def show():
    """Prints a document of every kind of the toy world, and how it is tokenized."""
    world = World()
    tok = Tokenizer(train_bpe(write_corpus(world, "english", 4000, seed=0), 540))  # of English alone
    for name in ("english", "target"):
        for kind, share in SOURCES[name][1].items():
            text = DOCUMENT_KINDS[kind](Random(0), world, world.languages()[name])
            pieces = " ".join(repr(tok.decode([i])) for i in tok.encode(text)[:16])
            print(f"--- {name}, {kind} ({share:.1%} of the documents)\n{text} \n[{pieces} ...]\n")


def main():
    parser = one_line_parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", parser_class=one_line_parser)
    flag = commands.add_parser("prepare", description="Encodes text files as a source.").add_argument
    flag("paths", nargs="+", help="plain text, a document ends at a blank line; JSON lines; .gz; folders")
    flag("--name", required=True, help="of the source, and of its folder")
    flag("--out", help="folder of the prepared sources, by default data")
    flag("--field", help="field of a JSON line that holds the text, by default text")
    flag("--tokenizer", help="gpt2 (the default), bpe (of these files) or a folder with one")
    flag("--vocab_size", type=int, help="largest vocabulary of --tokenizer bpe, by default 8192")
    flag("--val", type=float, help="share of held-out documents, the same for all sources; by default 0.005")
    flag("--errors", choices=["strict", "replace"], help="on invalid UTF-8, by default strict")
    flags = vars(parser.parse_args())
    run_command(prepare if flags.pop("command", None) else show, **flags)


if __name__ == "__main__":
    main()
