"""What a program in a sandbox can reach: it tries, and writes what worked, as JSON, without other libraries."""

import ctypes
import json
import os
import socket
import sys
from pathlib import Path

AF_VSOCK, AF_NETLINK, AF_PACKET, AF_ALG = 40, 16, 17, 38


def tried(what):
    try:
        return what() or "worked"
    except OSError as fault:
        return type(fault).__name__


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(1)
        one.connect(address)


def written(path):
    Path(path).write_text("x")


def is_writable(mount):
    """Whether a file can be made there, if the mount is a folder."""
    file = Path(mount, "probe")
    try:
        written(file)
        file.unlink()
    except OSError:
        return False
    return True


def family(number, kind=socket.SOCK_STREAM):
    socket.socket(number, kind).close()


host_port, abstract, secret_file, needle = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4][::-1]
processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
seen = [tried((entry / name).read_text) for entry in processes for name in ("cmdline", "environ")]
found = {
    "host port": tried(lambda: connect(socket.AF_INET, ("127.0.0.1", host_port))),
    "internet": tried(lambda: connect(socket.AF_INET, ("8.8.8.8", 53))),
    "names": tried(lambda: socket.getaddrinfo("example.com", 443)),
    "abstract socket": tried(lambda: connect(socket.AF_UNIX, "\0" + abstract)),
    "vsock": tried(lambda: family(AF_VSOCK)),
    "netlink": tried(lambda: family(AF_NETLINK, socket.SOCK_RAW)),
    "packet": tried(lambda: family(AF_PACKET, socket.SOCK_RAW)),
    "alg": tried(lambda: family(AF_ALG, socket.SOCK_SEQPACKET)),
    "file of the server": tried(lambda: Path(secret_file).read_text()),
    "shadow": tried(lambda: Path("/etc/shadow").read_text()),
    "devices": tried(lambda: Path("/dev/kmsg").read_text()),
    "sys": tried(lambda: Path("/sys").stat() and None),
    "write to usr": tried(lambda: written("/usr/x")),
    "write to root": tried(lambda: written("/x")),
    "write to dev": tried(lambda: written("/dev/x")),
    "write to claude code": tried(lambda: written("/opt/claude-code/claude")) == "worked",
    "write beside": tried(lambda: written("/run/rensei/x")),
    "writable mounts": sorted(
        mount
        for mount in {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        if is_writable(mount)
    ),
    "memory file": tried(lambda: os.close(os.memfd_create("x"))),
    "shared memory": ctypes.CDLL(None).shmget(0, 4096, 0o1600),
    "message queue": ctypes.CDLL(None).msgget(0, 0o1600),
    "workspace": tried(lambda: written("/workspace/x")),
    "processes": len(processes),
    "user": os.getuid(),
    "rights": [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line],
    "environment": sorted(os.environ),
    "needle": any(needle in each for each in seen),
}
print(json.dumps(found))
