# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: PTH103, PTH111, PTH112, PTH118, PTH120
"""Keeps a program that only seems to train from touching its user's files: what it writes goes to a scratch folder.

Every function of Python that opens, lists, makes, renames or removes files is replaced by one that looks into the
scratch folder first and writes there only, so that the program finds again what it has saved. An existing file that is
changed is copied first; one that is removed is only marked as gone. Processes that the program starts in Python share
the folder. Where the kernel offers Landlock, it refuses all other writes of the process and of everything it starts:
compiled libraries and shell commands get "permission denied". Standard library only; knows no torch.
"""

import builtins
import errno
import functools
import hashlib
import io
import os
import shutil
import stat
import threading
from collections.abc import Callable
from typing import Any

from .directory_entries import Entries, Entry
from .landlock import refuse_other_writes

# Written as ever: nothing of the user's is there, or what is kept there is meant to be found again.
OUTSIDE = ("/dev", "/proc", "/sys")
CACHES = ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR", "NUMBA_CACHE_DIR")

REAL = {name: getattr(os, name) for name in dir(os)}
REAL_OPEN = builtins.open

_active: "Overlay | None" = None


def redirected(path: Any, *, writes: bool = False, keep: bool = False) -> Any:
    """The path that a compiled library is to read or write in place of this one; anything that is no path as it is.

    ``keep`` copies what is in the file now, for a library that changes parts of it.
    """
    if _active is None or not isinstance(path, str | bytes | os.PathLike):
        return path
    return _active.to_write(path, keep=keep) if writes else _active.to_read(path)


def install(scratch: str, ours: list[str]) -> None:
    """Redirect this process's writes into ``scratch``; the folders in ``ours`` and the user's caches stay writable."""
    global _active
    caches = [os.environ.get(name, "") for name in CACHES]
    writable = [scratch, *ours, *OUTSIDE, *filter(None, caches), os.path.expanduser("~/.cache")]
    os.makedirs(os.path.join(scratch, "tmp"), exist_ok=True)
    os.environ["TMPDIR"] = os.path.join(scratch, "tmp")
    _active = Overlay(scratch, [os.path.realpath(one) for one in writable])
    _active.install()
    refuse_other_writes(writable)


def _text(path: Any) -> str:
    return os.fsdecode(os.fspath(path))


class _Depth(threading.local):
    """How deep this thread is in calls of our own, which are not redirected."""

    real = 0


class Overlay:
    """Files as the program sees them: those of the scratch folder over those that are there."""

    def __init__(self, scratch: str, writable: list[str]) -> None:
        self._files = os.path.join(os.path.realpath(scratch), "files")
        self._gone = os.path.join(os.path.realpath(scratch), "gone")
        self._writable = tuple(writable)
        here = str(REAL["getcwd"]())
        in_scratch = here.startswith(self._files + "/")  # a parent that went into a folder of its own has started us
        self._cwd: str | None = here.removeprefix(self._files) if in_scratch else None
        self._thread = _Depth()

    # --- where a path lies --------------------------------------------------------------------------------------------

    def locate(self, path: Any) -> str | None:
        """The absolute path, its folder without links; None for one that is written as ever."""
        absolute = os.path.normpath(os.path.join(self.cwd(), _text(path)))
        if self._is_writable(absolute):
            return None
        folder, name = os.path.split(absolute)
        with self._real_calls():
            canonical = os.path.join(os.path.realpath(folder), name)
        return None if self._is_writable(canonical) else canonical

    def cwd(self) -> str:
        """The working folder as the program sees it."""
        return self._cwd or str(REAL["getcwd"]())

    def upper(self, canonical: str) -> str:
        """The place in the scratch folder."""
        return self._files + canonical

    def lower(self, canonical: str) -> bool:
        """The user has such a file, and the program has not removed it."""
        return self._has(canonical) and not self._is_gone(canonical)

    def exists(self, canonical: str) -> bool:
        """The program sees such a file."""
        return self._has(self.upper(canonical)) or self.lower(canonical)

    def to_read(self, path: Any) -> Any:
        """The path to be read in place of this one."""
        if not (self._has(self._files) or self._has(self._gone)):
            return path if self._cwd is None else os.path.join(self._cwd, _text(path))
        canonical = self.locate(path)
        if canonical is None:
            return os.path.join(self.cwd(), _text(path))
        upper = self.upper(canonical)
        return upper if self._has(upper) or self._is_gone(canonical) else os.path.join(self.cwd(), _text(path))

    def to_write(self, path: Any, *, keep: bool) -> Any:
        """The path to be written in place of this one; with what is in the file now if that is to be kept."""
        canonical = self.locate(path)
        if canonical is None:
            return os.path.join(self.cwd(), _text(path))
        upper = self.upper(canonical)
        if self._has(upper):
            return upper
        if self.lower(canonical):
            mode = REAL["lstat"](canonical).st_mode
            if stat.S_ISLNK(mode):
                with self._real_calls():
                    return self.to_write(os.path.realpath(canonical), keep=keep)
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not REAL["access"](canonical, os.W_OK):
                return canonical  # a device or a pipe; or the kernel's own refusal
            self._make_folder_of(upper)
            if stat.S_ISDIR(mode):
                REAL["mkdir"](upper)
            elif keep:
                with self._real_calls():
                    shutil.copy2(canonical, upper)
            return upper
        folder = os.path.dirname(canonical)
        if self.exists(folder):
            self._make_folder_of(upper)
        return upper

    def _is_writable(self, path: str) -> bool:
        return any(path == one or path.startswith(one + "/") for one in self._writable)

    def _has(self, path: str) -> bool:
        try:
            REAL["lstat"](path)
        except (OSError, ValueError):
            return False
        return True

    def _mark(self, canonical: str) -> str:
        return os.path.join(self._gone, hashlib.sha1(os.fsencode(canonical)).hexdigest())

    def _is_gone(self, canonical: str) -> bool:
        if not self._has(self._gone):
            return False
        while len(canonical) > 1:
            if self._has(self._mark(canonical)):
                return True
            canonical = os.path.dirname(canonical)
        return False

    def _make_folder_of(self, upper: str) -> None:
        folder = os.path.dirname(upper)
        if not self._has(folder):
            self._make_folder_of(folder)
            try:
                REAL["mkdir"](folder)
            except FileExistsError:
                return

    def _real_calls(self) -> "_RealCalls":
        return _RealCalls(self._thread)

    # --- what programs call -------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Replace the functions of ``os``, ``io`` and ``builtins`` in this process."""
        for name in ("stat", "lstat", "access", "readlink", "statvfs", "listxattr", "getxattr"):
            self._set(name, functools.partial(self._reading, REAL[name]))
        for name in ("chmod", "chown", "lchown", "utime", "truncate", "setxattr", "removexattr"):
            self._set(name, functools.partial(self._changing, REAL[name]))
        for name in ("open", "mkdir", "rmdir", "remove", "rename", "link", "symlink", "listdir", "scandir", "chdir"):
            self._set(name, getattr(self, "_" + name))
        os.unlink, os.replace = os.remove, os.rename
        os.getcwd = self.cwd
        os.getcwdb = lambda: os.fsencode(self.cwd())

        @functools.wraps(REAL_OPEN)
        def open_file(*args: Any, **options: Any) -> Any:
            return self._open_file(*args, **options)

        builtins.open = io.open = open_file
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        for supported in (os.supports_follow_symlinks, os.supports_dir_fd, os.supports_effective_ids):
            supported |= {getattr(os, one.__name__) for one in supported if hasattr(os, one.__name__)}

    def _set(self, name: str, function: Callable[..., Any]) -> None:
        """A replacement that steps aside for descriptors, for folders given by descriptor, and for our own calls."""
        real = REAL[name]

        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            given = [options.get(one) for one in ("dir_fd", "src_dir_fd", "dst_dir_fd")]
            path = args[0] if args else options.get("path", options.get("src", "."))
            aside = bool(self._thread.real) or isinstance(path, int) or any(one is not None for one in given)
            return (real if aside else function)(*args, **options)

        setattr(os, name, call)

    def _reading(self, real: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
        return real(self.to_read(path), *args, **options)

    def _changing(self, real: Callable[..., Any], path: Any, *args: Any, **options: Any) -> Any:
        canonical = self.locate(path)
        if canonical is not None and not self.exists(canonical):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(path))
        return real(self.to_write(path, keep=True), *args, **options)

    def _open_file(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opener = options.get("opener") or (args[5] if len(args) > 5 else None)
        if isinstance(file, int) or opener is not None or self._thread.real:
            return REAL_OPEN(file, mode, *args, **options)
        if not set(mode) & set("wax+"):
            return REAL_OPEN(self.to_read(file), mode, *args, **options)
        canonical = self.locate(file)
        if canonical is not None:
            if "x" in mode and self.exists(canonical):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), _text(file))
            if "r" in mode and not self.exists(canonical):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(file))
        return REAL_OPEN(self.to_write(file, keep="w" not in mode), mode, *args, **options)

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            return int(REAL["open"](self.to_read(path), flags, mode, **options))
        canonical = self.locate(path)
        if canonical is not None:
            exists = self.exists(canonical)
            if flags & os.O_EXCL and flags & os.O_CREAT and exists:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), _text(path))
            if not exists and not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(path))
        return int(REAL["open"](self.to_write(path, keep=not flags & os.O_TRUNC), flags, mode, **options))

    def _mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        canonical = self.locate(path)
        if canonical is not None and self.exists(canonical):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), _text(path))
        REAL["mkdir"](self.to_write(path, keep=False), mode, **options)

    def _remove(self, path: Any, **options: Any) -> None:
        canonical = self.locate(path)
        if canonical is None:
            REAL["remove"](os.path.join(self.cwd(), _text(path)))
            return
        if not self.exists(canonical):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(path))
        upper = self.upper(canonical)
        here = upper if self._has(upper) else canonical
        if stat.S_ISDIR(REAL["lstat"](here).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), _text(path))
        if here == upper:
            REAL["remove"](upper)
        self._forget(canonical)

    def _rmdir(self, path: Any, **options: Any) -> None:
        canonical = self.locate(path)
        if canonical is None:
            REAL["rmdir"](os.path.join(self.cwd(), _text(path)))
            return
        if self._names(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), _text(path))
        if self._has(self.upper(canonical)):
            REAL["rmdir"](self.upper(canonical))
        self._forget(canonical)

    def _forget(self, canonical: str) -> None:
        """Mark a file of the user as removed."""
        if self._has(canonical):
            self._make_folder_of(self._mark(canonical))
            os.close(REAL["open"](self._mark(canonical), os.O_CREAT | os.O_WRONLY, 0o600))

    def _rename(self, src: Any, dst: Any, **options: Any) -> None:
        source, target = self.locate(src), self.locate(dst)
        if source is not None and not self.exists(source):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(src))
        if source is not None and os.path.isdir(src) and self.lower(source):
            os.makedirs(dst, exist_ok=True)
            for name in self._names(src):
                self._rename(os.path.join(_text(src), name), os.path.join(_text(dst), name))
            self._rmdir(src)
            return
        REAL["replace"](self.to_write(src, keep=True), self.to_write(dst, keep=False))
        if source is not None:
            self._forget(source)
        if target is not None and self._has(target) and os.path.isdir(self.upper(target)):
            self._forget(target)

    def _link(self, src: Any, dst: Any, **options: Any) -> None:
        self._must_be_new(dst)
        REAL["link"](self.to_write(src, keep=True), self.to_write(dst, keep=False))

    def _symlink(self, src: Any, dst: Any, *args: Any, **options: Any) -> None:
        self._must_be_new(dst)
        seen = os.path.join(os.path.dirname(os.path.join(self.cwd(), _text(dst))), _text(src))
        upper = self.to_read(seen)
        REAL["symlink"](upper if upper != seen else seen, self.to_write(dst, keep=False), *args, **options)

    def _must_be_new(self, path: Any) -> None:
        canonical = self.locate(path)
        if canonical is not None and self.exists(canonical):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), _text(path))

    def _chdir(self, path: Any) -> None:
        seen = os.path.normpath(os.path.join(self.cwd(), _text(path)))
        canonical = self.locate(path)
        made = canonical is not None and not self.lower(canonical)  # by the program: it is in the scratch folder only
        REAL["chdir"](self.upper(canonical) if made and canonical else seen)
        self._cwd = seen if made else None

    def _names(self, path: Any) -> list[str]:
        canonical = self.locate(path)
        if canonical is None:
            return list(REAL["listdir"](os.path.join(self.cwd(), _text(path))))
        upper = self.upper(canonical)
        found = dict.fromkeys(REAL["listdir"](upper)) if self._has(upper) else {}
        if self.lower(canonical):
            names = REAL["listdir"](canonical)
            found.update(dict.fromkeys(one for one in names if not self._is_gone(os.path.join(canonical, one))))
        elif not self._has(upper):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _text(path))
        return list(found)

    def _listdir(self, path: Any = ".") -> list[Any]:
        names = self._names("." if path is None else path)
        return [os.fsencode(name) for name in names] if isinstance(path, bytes) else names

    def _scandir(self, path: Any = ".") -> Any:
        path = "." if path is None else path
        canonical = self.locate(path)
        if canonical is None or not (self._has(self.upper(canonical)) or self._has(self._gone)):
            return REAL["scandir"](path if self._cwd is None else os.path.join(self._cwd, _text(path)))
        return Entries([Entry(os.fspath(path), name) for name in self._listdir(path)])


class _RealCalls:
    """A context in which this thread's calls are not redirected."""

    def __init__(self, thread: _Depth) -> None:
        self._thread = thread

    def __enter__(self) -> None:
        self._thread.real += 1

    def __exit__(self, *error: object) -> None:
        self._thread.real -= 1
