"""The first process inside a sandbox's namespaces: it builds the new root and runs the program.

`sandbox` starts this file by its path, in Python's isolated mode; it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping


def enter(plan: Mapping) -> int:
    """Build the root that `plan` describes and run its command there; gives the exit status.

    Args:
        plan: "root", an empty folder for it; "binds", of (folder of the host, place in the root,
            whether to write there); "command", "environment" and "folder" to start in; "log", a
            file in the new root for attempts to leave the machine.
    """
    raise_loopback()
    socket.sethostname("localhost")  # a name that is known without asking anybody
    root = plan["root"]
    _mount("-t", "tmpfs", "-o", "mode=755", "none", root)
    for source, place, writable in plan["binds"]:
        _bind(source, root + place, writable)
    for kind, place in (("proc", "/proc"), ("tmpfs", "/dev/shm")):
        os.makedirs(root + place, exist_ok=True)
        _mount("-t", kind, "none", root + place)
    os.chroot(root)
    before = count_unroutable()
    done = subprocess.run(plan["command"], env=plan["environment"], cwd=plan["folder"])
    refused = count_unroutable() - before
    if refused:  # by whatever program; what Python asked for is named there already
        with open(plan["log"], "a", encoding="utf-8") as log:
            log.write(f"the system counted {refused}\n")
    return done.returncode


def _bind(source: str, target: str, writable: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    _mount("--rbind", source, target)
    if not writable:
        # A normal user must repeat what the host's own mount forbids.
        flags = os.statvfs(source).f_flag
        kept = [n for n in ("nosuid", "nodev", "noexec") if flags & getattr(os, f"ST_{n.upper()}")]
        _mount("-o", ",".join(["remount", "bind", "ro", *kept]), target)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"mount {' '.join(arguments)} failed"]
        sys.exit(reason[0])


def raise_loopback() -> None:
    """Do `ip link set lo up`, also where there is no `ip`."""
    import fcntl

    up, get_flags, set_flags = 0x1, 0x8913, 0x8914  # linux/if.h, linux/sockios.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | up))


def count_unroutable() -> int:
    """How often any program of this network namespace wanted an address beyond loopback."""
    with open("/proc/net/snmp", encoding="ascii") as file:
        names, values = (line.split() for line in file if line.startswith("Ip:"))
    count = int(values[names.index("OutNoRoutes")])
    if os.path.exists("/proc/net/snmp6"):  # not on a system without IPv6
        with open("/proc/net/snmp6", encoding="ascii") as file:
            count += sum(int(line.split()[1]) for line in file if line.startswith("Ip6OutNoRoutes"))
    return count


if __name__ == "__main__":
    sys.exit(enter(json.loads(sys.argv[1])))
