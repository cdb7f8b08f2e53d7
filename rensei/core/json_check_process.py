"""
Checks JSON in a separate process, of low priority: reading a hostile body holds Python's interpreter for up to tens of
milliseconds, in which a server would forward no call.

`json_check.py` starts this file by its path, and sends one body after the other. The process exits at the end of its
input.
"""

import json
import os
import struct
import sys
from typing import BinaryIO

# A request: whether the body is to be stored, and its size in bytes.
REQUEST = struct.Struct("!?I")
# A reply: the size of the refusal that follows, a JSON object. It is 0 for a body that can be read.
REPLY = struct.Struct("!I")
_NICENESS = 10


def _answer(requests: BinaryIO, replies: BinaryIO) -> None:
    # Its path comes as an argument, because it is installed in none that an isolated interpreter searches.
    sys.path.insert(0, sys.argv[1])
    from rensei.core.errors import FieldError
    from rensei.core.json_body import parse_object, read_object

    while head := requests.read(REQUEST.size):
        is_stored, size = REQUEST.unpack(head)
        body = requests.read(size)
        refusal = b""
        try:
            read_object(body) if is_stored else parse_object(body)
        except FieldError as fault:
            refusal = json.dumps({"pointer": fault.errors[0]["pointer"], "reason": fault.detail}).encode()
        replies.write(REPLY.pack(len(refusal)) + refusal)
        replies.flush()


if __name__ == "__main__":
    os.nice(_NICENESS)
    _answer(sys.stdin.buffer, sys.stdout.buffer)
