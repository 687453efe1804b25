"""What Python code may do in a room, once its walls are up: compute, and read the installed libraries.

An audit hook of the interpreter refuses everything else: other files, all writing, sockets, other programs and
processes, signals, ctypes, shared memory, a look at the garbage collector's objects. Functions that reach beyond the
process without an audit event are taken away. The walls go up before a plugin is imported.

What a hook can't stop is native code: an extension module that a plugin brings with it, or a library whose own compiled
code opens files. Where the kernel has Landlock, it holds that back from files, connections and signals as well (see
`harness.data.landlock`); elsewhere, and for whatever else native code can do, nothing does: the process has no data,
key or environment of the harness to find, but it is a process of the same account. Who does not trust a plugin's native
code must not install it. How long code runs, or how much memory it takes, is not hidden.
"""

from __future__ import annotations

import _imp
import ctypes
import os
import resource
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from harness.data import landlock

_FINE = frozenset(
    {
        "array.__new__",
        "builtins.id",
        "code.__new__",
        "compile",
        "exec",
        "function.__new__",
        "glob.glob",
        "glob.glob/2",
        "import",
        "marshal.dumps",
        "marshal.load",
        "marshal.loads",
        "object.__delattr__",
        "object.__getattr__",
        "object.__setattr__",
        "os.putenv",
        "os.unsetenv",
        "os.walk",
        "pathlib.Path.glob",
        "pathlib.Path.rglob",
        "pickle.find_class",
        "sys._getframe",
        "sys.excepthook",
        "sys.set_asyncgen_hooks_finalizer",
        "sys.set_asyncgen_hooks_firstiter",
        "sys.unraisablehook",
        "time.sleep",
    }
)
"""Events that reach nothing beyond the process. All that is not listed is refused: a new Python may bring more."""
_MODULES = frozenset(
    {
        "_dbm",
        "_gdbm",
        "_imp",
        "_multiprocessing",
        "_posixshmem",
        "_posixsubprocess",
        "_signal",
        "_sqlite3",
        "_testcapi",
        "_thread",
        "_xxsubinterpreters",
        "posix",
        "pyarrow",
        "readline",
        "torch",
    }
)
"""They open files, start processes or share memory without an audit event, or would come back whole a second time."""
_LOOKS = ("access", "getxattr", "listxattr", "lstat", "pathconf", "readlink", "stat", "statvfs")
"""They tell of a file without opening it, its size for one."""
_TAKEN = {
    "posix": (
        "copy_file_range",
        "eventfd",
        "fchdir",
        "getpriority",
        "memfd_create",
        "mkfifo",
        "mknod",
        "nice",
        "openpty",
        "pidfd_open",
        "sched_getaffinity",
        "sched_setaffinity",
        "sched_setparam",
        "sched_setscheduler",
        "sendfile",
        "setpgid",
        "setpgrp",
        "setpriority",
        "setregid",
        "setreuid",
        "setsid",
        "splice",
        "tcsetpgrp",
        "vfork",
    ),
    "_signal": ("alarm", "pidfd_send_signal", "pthread_sigmask", "setitimer", "siginterrupt", "signal"),
    "_thread": ("start_new", "start_new_thread"),
    "_posixsubprocess": ("fork_exec",),
}
"""Functions without an audit event that leave a trace outside the process, or stop its clock."""
_ALSO_IN = {
    "posix": ("os",),
    "_signal": ("signal",),
    "_thread": ("threading",),
    "_posixsubprocess": ("subprocess",),
}

Hook = Callable[[str, tuple[Any, ...]], None]


class Walls:
    """Goes up in stages: `raise_` before a plugin is imported, `seal` in the process that runs it on something."""

    def __init__(self, refused: Sequence[str]) -> None:
        """Takes the folders in which nothing is read, even if a library lies there."""
        paths = sysconfig.get_paths()
        own = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        self._libraries = _folders(own)
        self._code = _folders({place for place in sys.path if os.path.isabs(place)})
        self._refused = _folders(refused)
        self._may_fork = [False]

    def raise_(self) -> None:
        """Puts them up; nothing takes them down again."""
        inside = _inside(self._libraries, self._code, self._refused)
        _take_away(inside)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        landlock.restrict((*self._libraries, *self._code))
        sys.addaudithook(_hook(inside, self._may_fork))

    def allow_forks(self) -> None:
        """The room itself makes a process for each user; `seal` takes this back, for good."""
        self._may_fork[0] = True

    def seal(self) -> None:
        """No process comes out of this one."""
        sys.addaudithook(_hook(_inside(self._libraries, self._code, self._refused), None))


def _folders(places: Any) -> tuple[str, ...]:
    """Folders as given and without links, each ending in a slash."""
    found = {os.path.abspath(place).rstrip("/") + "/" for place in places}
    return tuple(sorted(found | {os.path.realpath(place).rstrip("/") + "/" for place in places}))


def _inside(
    libraries: tuple[str, ...], code: tuple[str, ...], refused: tuple[str, ...]
) -> Callable[[object, bool], bool]:
    """Whether a path may be looked at. It uses nothing that a plugin could replace."""
    starts, ends, text, fsdecode = str.startswith, str.endswith, str, bytes.decode
    kinds = (".py", ".pyc", ".so", "/")

    def inside(path: object, folder: bool) -> bool:
        if type(path) is bytes:
            path = fsdecode(path, "utf-8", "surrogateescape")
        if type(path) is not text or not starts(path, "/") or "/../" in path or ends(path, "/.."):
            return False
        with_slash = path + "/"
        if starts(with_slash, refused):
            return False
        if starts(with_slash, libraries):
            return True
        return starts(with_slash, code) and (folder or ends(path, kinds))

    return inside


def _hook(inside: Callable[[object, bool], bool], may_fork: list[bool] | None) -> Hook:
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_TMPFILE", 0)
    writing &= ~os.O_DIRECTORY
    fine, modules, whole, text = _FINE, _MODULES, int, str

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if type(flags) is whole and not flags & writing and inside(path, False):
                return
        elif event in ("os.listdir", "os.scandir"):
            if inside(arguments[0], True):
                return
        elif event == "import":
            name = arguments[0]
            if type(name) is text and name not in modules:
                return
            raise ImportError("not allowed in a room")  # libraries do without it
        elif event in fine or (may_fork is not None and may_fork[0] and event in ("os.fork", "sys.addaudithook")):
            return
        raise PermissionError("not allowed in a room")

    return hook


def _take_away(inside: Callable[[object, bool], bool]) -> None:
    # Libraries import these for nothing: they must be there, and what reaches beyond the process taken away.
    assert subprocess
    assert ctypes
    for module, names in _TAKEN.items():
        for place in (module, *_ALSO_IN.get(module, ())):
            there = sys.modules.get(place)
            for name in names:
                for found in (name, "_" + name):
                    if there is not None and hasattr(there, found):
                        setattr(there, found, _refuse)
    for name in _LOOKS:
        guarded = _guarded(getattr(os, name), inside)
        for place in ("os", "posix"):
            setattr(sys.modules[place], name, guarded)
    create = _imp.create_builtin

    def create_builtin(spec: Any) -> Any:
        if spec.name in _MODULES:
            _refuse()
        return create(spec)

    setattr(_imp, "create_builtin", create_builtin)  # noqa: B010


def _guarded(look: Callable[..., Any], inside: Callable[[object, bool], bool]) -> Callable[..., Any]:
    fspath = os.fspath

    def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
        if inside(fspath(path) if not isinstance(path, int) else path, True) and "dir_fd" not in options:
            return look(path, *arguments, **options)
        raise PermissionError("not allowed in a room")

    return guarded


def _refuse(*_: object, **__: object) -> NoReturn:
    raise PermissionError("not allowed in a room")


def close_all_but(kept: Sequence[int]) -> None:
    """Closes every descriptor above 2 that is not listed: what was opened earlier can't be used to pass things on."""
    low = 3
    for number in sorted(kept):
        os.closerange(low, number)
        low = max(low, number + 1)
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0] if low > 2**20 else 2**20)


def limit_time(seconds: float) -> None:
    """The system ends this process when its time is up. To be called before the walls go up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
