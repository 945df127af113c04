"""The running server, as its clients are told of it: an address and a key."""

from __future__ import annotations

import os

SERVER = os.environ["CHATTABLE_URL"]
URL = f"{SERVER}/v1"
KEY = os.environ["CHATTABLE_KEY"]
