"""What was computed once and is kept on disk by its content: vectors and decoded pictures."""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from entrep.artifacts import atomic_path, sha256_json

APPLICATION_ID = 0x454E5431  # "ENT1": stands in the header of our SQLite files
BUSY_S = 60.0  # how long to wait for another process that writes; it needs milliseconds
KEYS_AT_ONCE = 500  # SQLite limits the values of one query (999 in old builds)
MAKE_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS vectors "
    "(key TEXT PRIMARY KEY, vector BLOB NOT NULL, crc32 INTEGER NOT NULL)",
)


class VectorStore:
    """Float32 vectors by key, in one SQLite file that several processes may fill at once.

    SQLite because it comes with Python, appends safely, recovers after a crash in the middle
    of a write, and locks between processes. No connection outlives a call, so the store may
    be used before and after a fork. It must lie on a disk whose locks work, which some
    network drives' do not.

    A store that cannot be written (read-only, disk full) is read all the same and says once
    that new vectors are not kept: a cache costs time, never the run.
    """

    def __init__(self, folder: str | Path, name: str, identity: object):
        """Name the file; it is made by the first `write`.

        Args:
            folder: where it lies; made when needed.
            name: first part of the file's name, for people.
            identity: all that the vectors depend on beside their keys, as JSON.
        """
        self.identity = sha256_json(identity)
        readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")
        self.file = Path(folder) / f"{readable}-{self.identity[:12]}.sqlite"
        self.writable = True

    def read(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors that are there, bit by bit as they were written; read-only arrays.

        Raises:
            ValueError: if the file is damaged or is none of ours.
        """
        if not self.file.is_file() or not self.file.stat().st_size:
            return {}
        try:
            # Able to write if it may be, to undo what a killed process left half-written.
            with self._translated(), self._connect("rw") as connection:
                return self._select(connection, keys) if self._is_made(connection) else {}
        except sqlite3.OperationalError as error:
            print(f"{self.file}: cannot be read ({error}); all is computed.")
            return {}

    def write(self, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Keep vectors and give back what the store now holds for their keys.

        That is the vectors themselves, unless another process kept some of these keys
        before: the first one counts, so that all processes go on with the same bits.

        Raises:
            ValueError: if the file is damaged or is none of ours.
        """
        if not vectors or not self.writable:
            return dict(vectors)
        rows = []
        for key, vector in vectors.items():
            packed = np.ascontiguousarray(vector, "<f4").tobytes()
            rows.append((key, packed, zlib.crc32(packed)))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self._translated(), self._connect("rwc") as connection:
                connection.execute("BEGIN IMMEDIATE")
                self._make(connection)
                before = connection.total_changes
                connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)
                new = connection.total_changes - before
                connection.commit()
                if new < len(rows):
                    return self._select(connection, list(vectors))
        except (OSError, sqlite3.OperationalError) as error:
            self.writable = False
            print(f"{self.file}: cannot be written ({error}); new vectors are not kept.")
        return dict(vectors)

    @contextmanager
    def _connect(self, mode: str) -> Iterator[sqlite3.Connection]:
        # A URI, because only there SQLite takes the mode. as_uri() escapes what it must.
        where = f"{self.file.absolute().as_uri()}?mode={mode}"
        with closing(
            sqlite3.connect(where, uri=True, timeout=BUSY_S, isolation_level=None)
        ) as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Say what to do about a damaged file; let problems of writing pass."""
        try:
            yield
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(self._damaged(error)) from error

    def _damaged(self, reason: object) -> str:
        return (
            f"{self.file} is damaged or no vector store of this kit ({reason}); "
            "delete it and run again."
        )

    def _is_made(self, connection: sqlite3.Connection) -> bool:
        """Whether the tables are there; another process may be about to make them."""
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not tables:
            return False
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise ValueError(self._damaged("made by another program"))
        query = "SELECT value FROM about WHERE name = 'identity'"
        identity = (connection.execute(query).fetchone() or ("nothing",))[0]
        if identity != self.identity:
            raise ValueError(self._damaged(f"made for {identity[:12]}"))
        return True

    def _make(self, connection: sqlite3.Connection) -> None:
        if self._is_made(connection):
            return
        for table in MAKE_TABLES:
            connection.execute(table)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("INSERT INTO about VALUES ('identity', ?)", (self.identity,))

    def _select(self, connection: sqlite3.Connection, keys: Sequence[str]) -> dict:
        found = {}
        for start in range(0, len(keys), KEYS_AT_ONCE):
            part = list(keys[start : start + KEYS_AT_ONCE])
            marks = ",".join("?" * len(part))
            query = f"SELECT key, vector, crc32 FROM vectors WHERE key IN ({marks})"
            for key, packed, crc32 in connection.execute(query, part):
                # SQLite notices a broken page's structure, not a flipped bit in its content.
                if zlib.crc32(packed) != crc32:
                    raise ValueError(self._damaged(f"checksum of {key[:12]}"))
                found[key] = np.frombuffer(packed, "<f4").astype(np.float32, copy=False)
        return found


def write_pixels(
    file: str | Path, shape: tuple[int, int, int, int], parts: Iterable[np.ndarray]
) -> None:
    """Write pictures as one .npy as they come, atomically.

    Written like any file and not through a memory map: a full disk is an error then, where
    a map would kill the process.

    Args:
        file: the .npy.
        shape: (N, S, S, 3) of all parts together.
        parts: (n, S, S, 3) uint8 each.
    """
    with atomic_path(file) as temporary, open(temporary, "wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(out, header)
        for part in parts:
            out.write(np.ascontiguousarray(part, np.uint8))


def open_pixels(file: str | Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Map pictures of `write_pixels` into memory: (N, S, S, 3) uint8.

    Writing into the array changes this process's copy of the touched pages, never the file;
    PyTorch warns of arrays that cannot be written at all.

    Raises:
        ValueError: if the file is damaged or holds another shape.
    """
    try:
        pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no whole .npy ({error}); delete it and run again.") from error
    if pixels.shape != tuple(shape) or pixels.dtype != np.uint8:
        raise ValueError(
            f"{file} holds {pixels.shape} {pixels.dtype}, expected {tuple(shape)} uint8; "
            "delete it and run again."
        )
    return pixels
