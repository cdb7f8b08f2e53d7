"""What the fuzzer cannot make from the document's words alone."""

import schemathesis
from hypothesis import strategies as st

# Opaque: those of a list's first page, forward and back. Others are refused, which tests of the lists see.
schemathesis.openapi.format("cursor", st.sampled_from(["", "cj0x"]))
