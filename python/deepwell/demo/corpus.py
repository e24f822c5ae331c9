"""Real text that is on the machine already: collected, split and cut into batches the same way every time."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Tests quote odd bytes and encodings, topics and configuration are generated tables: none of it reads like a program.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
MAX_BYTES = 64 << 20  # so that pointing --text at a large folder cannot fill the memory
MIN_BYTES = 64 << 10  # less than this trains nothing worth comparing
HELDOUT_SHARE = 10  # one file in so many is held out
MIN_FILES_TO_SPLIT = 20  # with fewer, every file's end is held out instead
REMEDY = "install them (Debian, Ubuntu: apt-get install libpython3-stdlib) or pass --text FILE_OR_DIR"


class CorpusError(Exception):
    """The text cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Corpus:
    name: str
    train: np.ndarray  # uint8, one dimension
    heldout: np.ndarray
    files: int
    split: str  # how the two were separated, for the report


def load_corpus(text: Path | None) -> Corpus:
    """The standard library's sources, or the file or folder that `text` names. Raises CorpusError."""
    if text is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        documents = _read_folder(root, ".py")
        name = f"sources of Python {sys.version_info.major}.{sys.version_info.minor}'s standard library"
        if sum(map(len, documents)) < MIN_BYTES:
            raise CorpusError(f"the Python standard library's sources are not in {root}; {REMEDY}")
    else:
        documents = _read_user_text(text)
        name = str(text)
        size = sum(map(len, documents))
        if size < MIN_BYTES:
            raise CorpusError(f"{text}: {size} bytes of text, expected at least {MIN_BYTES}; pass a larger --text")
    train, heldout, split = split_documents(documents)
    return Corpus(name, _join(train), _join(heldout), len(documents), split)


def split_documents(documents: list[bytes]) -> tuple[list[bytes], list[bytes], str]:
    """Separates whole files by a hash of their content, so equal files can never be on both sides."""
    if len(documents) >= MIN_FILES_TO_SPLIT:
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for document in documents:
            digest = hashlib.sha256(document).digest()
            sides[int.from_bytes(digest[:8], "big") % HELDOUT_SHARE == 0].append(document)
        # Hashes can gather all the bytes on one side when one file dwarfs the rest; cut the files then.
        total, held = sum(map(len, documents)), sum(map(len, sides[1]))
        if total // (4 * HELDOUT_SHARE) <= held <= total // 3:
            return *sides, f"one file in {HELDOUT_SHARE} held out, chosen by the hash of its content"
    cuts = [len(document) - len(document) // HELDOUT_SHARE for document in documents]
    return (
        [document[:cut] for document, cut in zip(documents, cuts, strict=True)],
        [document[cut:] for document, cut in zip(documents, cuts, strict=True)],
        f"the last 1/{HELDOUT_SHARE} of each file held out",
    )


def training_starts(corpus: Corpus, context: int, batch: int, steps: int, seed: int) -> np.ndarray:
    """Where each window of each step begins, [steps, batch]: the data order, fixed before any model exists."""
    last = len(corpus.train) - context - 1
    if last < 0:
        raise CorpusError(f"{corpus.name}: {len(corpus.train)} bytes to train on, expected over {context}")
    return np.random.default_rng(seed).integers(0, last + 1, size=(steps, batch))


def heldout_starts(corpus: Corpus, context: int, windows: int) -> np.ndarray:
    """Where at most `windows` windows begin that do not overlap and spread over the whole held-out text."""
    fitting = (len(corpus.heldout) - 1) // context
    if fitting < 1:
        raise CorpusError(f"{corpus.name}: {len(corpus.heldout)} bytes held out, expected over {context}")
    count = min(windows, fitting)
    return np.arange(count, dtype=np.int64) * fitting // count * context


def windows_at(stream: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes [windows, context] that begin at `starts`, and the byte that follows each of them."""
    cut = stream[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return cut[:, :-1], cut[:, 1:]


def _join(documents: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(documents), dtype=np.uint8)


def _read_user_text(path: Path) -> list[bytes]:
    if path.is_dir():
        return _read_folder(path, "")
    try:
        with path.open("rb") as stream:
            return [stream.read(MAX_BYTES)]
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}; pass a readable file or folder as --text") from error


def _read_folder(root: Path, suffix: str) -> list[bytes]:
    """Texts below `root` in the order of their paths, each content once. What is not UTF-8 text is passed over."""
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        paths += [Path(folder, name) for name in files if name.endswith(suffix) and not name.startswith((".", "_sys"))]
    paths.sort(key=lambda path: path.relative_to(root).as_posix())
    documents: dict[bytes, None] = {}
    room = MAX_BYTES
    for path in paths:
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > room:
                continue
            content = path.read_bytes()
            content.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if content and b"\0" not in content and content not in documents:
            documents[content] = None
            room -= len(content)
    return list(documents)
