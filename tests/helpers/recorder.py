"""What a program does to the disk, noted in order, and the states that a crash may leave behind:
SQLite's way to test (https://www.sqlite.org/testing.html, crash tests).

`Recorder` notes every operation below a folder. `Disk` applies them one by one and knows, as POSIX
does, what has become durable: a file's content by fsync of the file, a name by fsync of its folder.
`Disk.crashes` gives the folders that may be there after a power cut.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KINDS = ("open", "rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")
ENDED_PID = 999_999_999  # above any that a system gives: its temporary files are a dead process's
Tree = dict[str, bytes | None]  # path -> content; None for a folder


@dataclass(frozen=True)
class Operation:
    """One change of the disk, or a note of the test's own (kind "mark")."""

    kind: str  # open, write, sync, rename, remove, mkdir, rmdir, mark
    path: str = ""  # below the recorded folder
    value: Any = None  # content of a write, new path of a rename, a mark's value


class Recorder:
    """Notes the operations below a folder while it is entered; one at a time in a process.

    An audit hook sees every call that creates, renames or removes; before each of them the files
    that were opened for writing are compared with what they held, which finds what was written by
    whatever means. Only fsync has no audit event and is wrapped. `before` is called with an
    operation's number and kind before it happens: a kill there leaves those before it.
    """

    active: Recorder | None = None
    is_hooked = False  # an audit hook stays until the process ends

    def __init__(
        self, root: Path, before: Callable[[int, Operation], None] = lambda number, operation: None
    ) -> None:
        self.root, self.before = os.path.realpath(root), before
        self.operations: list[Operation] = []
        self.contents: dict[str, bytes | None] = {}  # of the files that were opened for writing

    def __enter__(self) -> Recorder:
        if not Recorder.is_hooked:
            sys.addaudithook(see)
            Recorder.is_hooked = True
        self.fsync = os.fsync
        os.fsync = self.synchronize  # type: ignore[assignment]
        Recorder.active = self
        return self

    def __exit__(self, *_: object) -> None:
        Recorder.active = None
        os.fsync = self.fsync
        self.note_contents()

    def relative(self, path: Any) -> str | None:
        """A path below the folder, "" for itself; None for any other, and for a file's number."""
        if isinstance(path, int) or path is None:
            return None
        whole = os.path.abspath(os.fsdecode(path)) + os.sep
        return whole[len(self.root) + 1 : -1] if whole.startswith(self.root + os.sep) else None

    def note_event(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an operation that is about to happen."""
        kind = event.removeprefix("os.")
        if kind == "open" and not args[2] & WRITING:
            return
        if kind not in (
            "open",
            "rename",
            "remove",
            "mkdir",
            "rmdir",
            "link",
            "symlink",
            "truncate",
        ):
            return
        path = self.relative(args[0])
        if path is None:
            return
        if kind in ("link", "symlink", "truncate"):
            raise NotImplementedError(f"{event} of {path}: the recorder knows no such operation")
        self.note(Operation(kind, path, self.relative(args[1]) if kind == "rename" else None))
        if kind == "open":
            self.contents.setdefault(path, None)
        elif path in self.contents:
            content = self.contents.pop(path)
            if kind == "rename":
                self.contents[self.operations[-1].value] = content

    def synchronize(self, handle: int) -> None:
        """In the place of os.fsync."""
        path = self.relative(os.readlink(f"/proc/self/fd/{handle}"))
        if path is not None:
            self.note(Operation("sync", path))
        self.fsync(handle)

    def note(self, operation: Operation) -> None:
        """Note an operation, and before it what was written since the last one."""
        self.note_contents()
        self.before(len(self.operations), operation)
        self.operations.append(operation)

    def mark(self, value: object) -> None:
        """Note something of the test's own."""
        self.note_contents()
        self.operations.append(Operation("mark", value=value))

    def note_contents(self) -> None:
        """Note the files whose content has changed."""
        for path, before in self.contents.items():
            with contextlib.suppress(FileNotFoundError):
                content = Path(self.root, path).read_bytes()
                if content != before:
                    self.contents[path] = content
                    self.operations.append(Operation("write", path, content))


def see(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook."""
    if Recorder.active is not None:
        Recorder.active.note_event(event, args)


class Disk:
    """The files that are there, and those that a power cut would leave."""

    def __init__(self, tree: Mapping[str, bytes | None]) -> None:
        """tree: what lies there at the start, all of it durable."""
        self.now = {path: None if tree[path] is None else path for path in tree}
        self.durable = dict(self.now)  # path -> key of its content; None for a folder
        self.written = {path: content for path, content in tree.items() if content is not None}
        self.synced = dict(self.written)
        self.last = Operation("mark")

    def apply(self, operation: Operation, number: int) -> None:
        """Apply an operation as the system would; what it would refuse changes nothing. number: of
        the operation, which names the content of a new file.
        """
        kind, path = operation.kind, operation.path
        self.last = operation
        parent = path.rpartition("/")[0]
        if kind in ("open", "mkdir"):
            if path not in self.now and (not parent or self.now.get(parent, "") is None):
                self.now[path] = None if kind == "mkdir" else f"{number}"
                self.written |= {} if kind == "mkdir" else {f"{number}": b""}
        elif kind == "write":
            self.written[self.now[path] or ""] = operation.value
        elif kind == "sync" and self.now.get(path) is not None:
            self.synced[self.now[path] or ""] = self.written[self.now[path] or ""]
        elif kind == "sync":
            entries = {p: key for p, key in self.now.items() if p.rpartition("/")[0] == path}
            gone = {p for p in self.durable if p.rpartition("/")[0] == path} - entries.keys()
            self.durable = {p: key for p, key in self.durable.items() if p not in gone} | entries
        elif kind == "rename" and path in self.now:
            self.now[operation.value] = self.now.pop(path)
        elif kind in ("remove", "rmdir") and not any(p.startswith(f"{path}/") for p in self.now):
            self.now.pop(path, None)

    def whole(self) -> Tree:
        """The folder as it is."""
        return self.tree(self.now, self.written.__getitem__)

    def crashes(self) -> dict[str, Tree]:
        """{what became of that which was not yet durable: the folder after a crash}."""

        def unsynced_as(lose: Callable[[bytes], bytes]) -> Callable[[str], bytes]:
            whole, synced = self.written, self.synced
            return lambda key: whole[key] if synced.get(key) == whole[key] else lose(whole[key])

        def durable(key: str) -> bytes:
            return self.synced.get(key, b"")

        removed = {path: key for path, key in self.durable.items() if path in self.now}
        last = dict(self.durable)
        if self.last.kind in ("rename", "remove"):
            last.pop(self.last.path, None)
            last |= {p: key for p, key in self.now.items() if p == self.last.value}
        return {
            "all": self.whole(),
            "nothing": self.tree(self.durable, durable),
            "names, half the data": self.tree(self.now, unsynced_as(lambda c: c[: len(c) // 2])),
            "names, zeros as data": self.tree(self.now, unsynced_as(lambda c: bytes(len(c)))),
            "names, no data": self.tree(self.now, unsynced_as(lambda c: b"")),
            "only removals": self.tree(removed, durable),
            "only additions": self.tree(self.durable | self.now, durable),
            "only the last": self.tree(last, durable),
        }

    @staticmethod
    def tree(entries: Mapping[str, str | None], content: Callable[[str], bytes]) -> Tree:
        """The paths that can be reached from the top, with their contents."""
        found: Tree = {}
        for path in sorted(entries, key=lambda p: PurePosixPath(p).parts):
            parent, key = path.rpartition("/")[0], entries[path]
            if not parent or found.get(parent, b"") is None:
                found[path] = None if key is None else content(key)
        return found


def crash_states(start: Tree, operations: list[Operation]) -> Iterator[tuple[str, Tree, list[Any]]]:
    """(name, folder, marks so far) of each distinct state after a crash: before the first
    operation, between any two, and after the last.
    """
    disk, seen, marks = Disk(start), set[int](), list[Any]()
    for number in range(len(operations) + 1):
        for variant, tree in disk.crashes().items():
            state = hash((frozenset(tree.items()), tuple(marks)))
            if state not in seen:
                seen.add(state)
                yield f"{number}, {variant}", tree, list(marks)
        if number < len(operations):
            if operations[number].kind == "mark":
                marks.append(operations[number].value)
            disk.apply(operations[number], number)


def read_tree(root: Path) -> Tree:
    """A folder's content."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def write_tree(tree: Tree, root: Path) -> None:
    """Make a folder of this content; temporary files become those of a process that has ended."""
    root.mkdir(parents=True)
    for path, content in tree.items():
        target = root / path.replace(f"-{os.getpid()}-", f"-{ENDED_PID}-")
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)
