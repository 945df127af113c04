"""What the rows of a batch are made of."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from app.store.rows import TINY, _packed


@given(st.binary(max_size=3 * TINY))
def test_every_value_is_stored_as_zlib_has_it(body: bytes) -> None:
    assert zlib.decompress(bytes.fromhex(_packed(body).removeprefix("\\x"))) == body
