"""
The system calls that a sandbox of this installation may not make, as a filter for bubblewrap's `--seccomp`.

Namespaces hide most of the host. These calls reach what they do not hide: kernel interfaces that no program here needs,
sockets of families without a namespace (on a virtual machine, AF_VSOCK reaches the hypervisor), and new namespaces.
Refused calls fail with EPERM, as for a user without rights; `clone3`, whose flags a filter cannot read, with ENOSYS,
after which libraries use `clone`. https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import errno
import platform
import struct

MACHINE = "x86_64"
_ARCH, _X32 = 0xC000003E, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH_AT, _FIRST_ARGUMENT = 0, 4, 16
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = 41, 53, 56, 435
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
# From the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
_REFUSED = {
    # Memory that no limit of a process counts, and that stays after its end.
    "shmget": 29,
    "shmat": 30,
    "semget": 64,
    "msgget": 68,
    "ptrace": 101,
    "syslog": 103,
    "personality": 135,
    "ustat": 136,
    "modify_ldt": 154,
    "pivot_root": 155,
    "_sysctl": 156,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "create_module": 174,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "lookup_dcookie": 212,
    "clock_settime": 227,
    "mbind": 237,
    "set_mempolicy": 238,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "migrate_pages": 256,
    "unshare": 272,
    "move_pages": 279,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "memfd_create": 319,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "memfd_secret": 447,
}


def is_supported() -> bool:
    return platform.machine() == MACHINE


def filter_program() -> bytes:
    """Assemble the filter. A jump's distances are counted from the next instruction."""
    refuse, kill, allow = (_step(_RETURN, value) for value in (_ERRNO | errno.EPERM, _KILL, _ALLOW))
    number = _step(_LOAD, _NUMBER)
    steps = [
        *(_step(_LOAD, _ARCH_AT), _step(_EQUAL, _ARCH, if_true=1), kill),
        *(number, _step(_AT_LEAST, _X32, if_false=1), refuse),
        *(_step(_EQUAL, _CLONE3, if_false=1), _step(_RETURN, _ERRNO | errno.ENOSYS)),
    ]
    for refused in _REFUSED.values():
        steps += [_step(_EQUAL, refused, if_false=1), refuse]
    steps += [_step(_EQUAL, _CLONE, if_false=4), _step(_LOAD, _FIRST_ARGUMENT)]
    steps += [_step(_ANY_BIT, _NEW_NAMESPACES, if_false=1), refuse, allow]
    for call in (_SOCKET, _SOCKETPAIR):
        families = [_step(_EQUAL, family, if_true=len(_FAMILIES) - place) for place, family in enumerate(_FAMILIES)]
        steps += [number, _step(_EQUAL, call, if_false=len(families) + 3), _step(_LOAD, _FIRST_ARGUMENT)]
        steps += [*families, refuse, allow]
    return b"".join([*steps, allow])


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
