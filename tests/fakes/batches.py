"""Files and Batches of the fake upstream: a batch is validated, in progress, and completed, by the clock alone.

`seconds` is how long each of its first two states lasts. Lines are answered as chat requests are; one whose fault is a status
(`[[fault: 400]]`) is in the error file. `fault` makes the next batches go wrong: `fail` (the file is refused), `expire` (its second
half is not answered in time), `never` (it ends only when it is cancelled, with its first half answered), `stubborn` (not even then).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
"""The HTTP status and body for the body of a chat request."""


@dataclass
class Batch:
    """One batch: its lines as they came, and what is to become of it."""

    id: str
    input_file_id: str
    metadata: dict[str, str]
    lines: list[dict[str, Any]]
    fault: str
    seconds: float
    began: float = field(default_factory=time.monotonic)
    cancelled: float | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        age = time.monotonic() - self.began
        if self.cancelled is not None:
            is_over = self.fault != "stubborn" and time.monotonic() - self.cancelled >= self.seconds
            return "cancelled" if is_over else "cancelling"
        if age < self.seconds:
            return "validating"
        if self.fault == "fail":
            return "failed"
        if age < 2 * self.seconds or self.fault in ("never", "stubborn"):
            return "in_progress"
        return "expired" if self.fault == "expire" else "completed"

    @property
    def answered(self) -> int:
        """How many of its lines have an answer when it ends."""
        return len(self.lines) if self.status == "completed" else (len(self.lines) + 1) // 2


class Batches:
    """All files and batches of a server."""

    def __init__(self, answer: Answer) -> None:
        self.seconds = 0.05
        self.fault = ""
        self.lines: list[dict[str, Any]] = []
        """The bodies of all lines of all batches, in order."""
        self.batches: dict[str, Batch] = {}
        self.files: dict[str, bytes] = {}
        self.polls = 0
        self.refusals: list[int] = []
        """Statuses with which the next requests are refused."""
        self._answer = answer
        self._made = 0

    def stats(self) -> dict[str, Any]:
        states = [batch.status for batch in self.batches.values()]
        return {"lines": self.lines, "batches": states, "files": len(self.files), "polls": self.polls}

    def serve(self, method: str, path: str, content_type: str, raw: bytes) -> tuple[int, bytes] | None:
        """The answer to a request; None when it is about something else."""
        kind, _, rest = path.partition("?")[0].removeprefix("/v1/").partition("/")
        if kind not in ("files", "batches"):
            return None
        if self.refusals:
            return self.refusals.pop(0), b'{"error": {"message": "Not now."}}'
        id, _, verb = rest.partition("/")
        given = (
            self._file(method, id, verb, content_type, raw) if kind == "files" else self._batch(method, id, verb, raw)
        )
        if given is None:
            return 404, b'{"error": {"message": "There is no such object."}}'
        return 200, given if isinstance(given, bytes) else json.dumps(given).encode()

    def _id(self, kind: str) -> str:
        self._made += 1
        return f"{kind}-{self._made}"

    def _file(self, method: str, id: str, verb: str, content_type: str, raw: bytes) -> Any:
        if method == "POST" and not id:
            parts = BytesParser().parsebytes(f"content-type: {content_type}\r\n\r\n".encode() + raw)
            fields = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in parts.get_payload()  # type: ignore[union-attr]  # a multipart message has messages
            }
            assert fields["purpose"] == b"batch"
            made = self._id("file")
            self.files[made] = fields["file"]  # type: ignore[assignment]  # decoded, so bytes
            return {"id": made, "object": "file", "purpose": "batch"}
        if id not in self.files:
            return None
        if method == "DELETE":
            del self.files[id]
            return {"id": id, "object": "file", "deleted": True}
        return self.files[id] if verb == "content" else {"id": id, "object": "file"}

    def _batch(self, method: str, id: str, verb: str, raw: bytes) -> Any:
        if method == "POST" and not id:
            asked = json.loads(raw)
            assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
            lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
            made = Batch(
                self._id("batch"), asked["input_file_id"], asked.get("metadata") or {}, lines, self.fault, self.seconds
            )
            self.batches[made.id] = made
            self.lines += [line["body"] for line in lines]
            return self._shape(made)
        if not id:
            return {"object": "list", "data": [self._shape(batch) for batch in reversed(self.batches.values())]}
        batch = self.batches.get(id)
        if batch is None:
            return None
        self.polls += method == "GET"
        if verb == "cancel" and batch.status in ("validating", "in_progress"):
            batch.cancelled = time.monotonic()
        return self._shape(batch)

    def _shape(self, batch: Batch) -> dict[str, Any]:
        status = batch.status
        if status in ("completed", "expired", "cancelled") and not batch.files:
            self._write(batch)
        shown = {"id": batch.id, "object": "batch", "status": status, "input_file_id": batch.input_file_id}
        return {**shown, "metadata": batch.metadata, **batch.files}

    def _write(self, batch: Batch) -> None:
        """Answer a batch's lines, and put the answers into its files, in another order than they were asked."""
        written: dict[str, list[str]] = {"output_file_id": [], "error_file_id": []}
        for number, line in reversed(list(enumerate(batch.lines))):
            told: dict[str, Any] = {
                "id": f"req-{number}",
                "custom_id": line["custom_id"],
                "response": None,
                "error": None,
            }
            if number >= batch.answered:
                if batch.status == "expired":
                    written["error_file_id"].append(json.dumps(told | {"error": {"code": "batch_expired"}}))
                continue
            status, body = self._answer(line["body"])
            told["response"] = {"status_code": status, "request_id": "req", "body": body}
            written["output_file_id" if status == 200 else "error_file_id"].append(json.dumps(told))
        for name, lines in written.items():
            if lines:
                batch.files[name] = self._id("file")
                self.files[batch.files[name]] = ("\n".join(lines) + "\n").encode()
