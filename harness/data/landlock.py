"""The kernel's own wall around a room, where the kernel has it (Linux 5.13 and later): it holds for native code too.

A process that restricts itself, and all that come out of it, can read files beneath a few folders and write none;
from Linux 6.7 on it can't open or take TCP connections, from 6.12 on it can't send signals out of the room. What a file
is called and how large it is can still be seen: Landlock does not hide that.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all architectures of 64 bits
_NO_NEW_PRIVILEGES = 38
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FIRST_RIGHTS = (1 << 13) - 1
_LATER_RIGHTS = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
"""Rights over files that later versions can take away: to link, to truncate, to control devices."""
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
"""Where libraries find what they are linked to."""


def version() -> int:
    """The kernel's version of Landlock; 0 where it has none."""
    return max(0, int(_syscall(_CREATE, None, 0, 1)))


def restrict(readable: Iterable[str]) -> bool:
    """Takes from this process, for good, all files but those beneath `readable` and the system's libraries.

    Returns:
        Whether it could: not, where the kernel has no Landlock.
    """
    found = version()
    if found == 0:
        return False
    rights = _FIRST_RIGHTS | sum(right for since, right in _LATER_RIGHTS if found >= since)
    parts = [rights] + ([3] if found >= 4 else []) + ([3] if found >= 6 else [])  # TCP; signals and sockets by name
    attributes = struct.pack(f"={len(parts)}Q", *parts)
    rules = _syscall(_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        for place in {*readable, *_SYSTEM}:
            _allow(rules, place)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return _syscall(_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(rules: int, place: str) -> None:
    try:
        descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # nothing there to be read
    try:
        rights = _READ_FILE | (_READ_FOLDER if os.path.isdir(place) else 0)
        _syscall(_ADD, rules, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _syscall(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None).syscall(ctypes.c_long(number), *arguments))
