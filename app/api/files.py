"""Files, as OpenAI's protocol has them: stored while they arrive, and given back as nothing but bytes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.responses import Response

from app.api.callers import Chat, Here
from app.api.fields import FileName, Key, ModelName, file_ref, to_file_id
from app.api.multipart import Form, Part
from app.api.openai_errors import PREFIXES
from app.api.pieces import Pieces
from app.api.problems import sentence
from app.api.responses_wire import answer, listing
from app.domain import File
from app.errors import InvalidInput
from app.usecases import files
from app.usecases.files import OCTETS, Upload

T = TypeVar("T", bound=BaseModel)
router = APIRouter(tags=["openai"])
UPLOAD_PATHS = tuple(f"{prefix}/files" for prefix in PREFIXES)
MAX_PAGE = 10_000
Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
FileId = Annotated[
    UUID, BeforeValidator(to_file_id), WithJsonSchema({"type": "string", "pattern": "^file-[0-9a-f]{32}$"})
]
InPath = Annotated[FileId, Path(description="the file's id: `file-…`")]
SAFE = {
    "content-security-policy": "sandbox; default-src 'none'",
    "cross-origin-resource-policy": "same-origin",
}
"""Whatever a file holds, no browser shows or runs it as a page of this server's; `nosniff` and `no-store` are on every answer."""


class FileOut(BaseModel):
    """A file. Times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | None = None


class FilesOut(BaseModel):
    """Some of the caller's files."""

    object: Literal["list"] = "list"
    data: list[FileOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Fields(BaseModel):
    """What comes with a file."""

    model_config = ConfigDict(hide_input_in_errors=True)

    purpose: Purpose
    anchor: Literal["created_at"] = Field("created_at", alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=3600, le=2_592_000)


class _Named(BaseModel):
    file: FileName


FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(Purpose.__args__)},  # type: ignore[attr-defined]  # a Literal's
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                    },
                }
            }
        },
    }
}


def _shape(file: File) -> dict[str, Any]:
    shape = {
        "id": file_ref(file.id),
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at.timestamp()),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }
    return shape | ({"expires_at": int(file.expires_at.timestamp())} if file.expires_at else {})


@router.post("/files", response_model=FileOut, openapi_extra=FORM)
async def create_file(here: Here, caller: Chat, request: Request, idempotency_key: Key = None) -> Response:
    """Upload a file, which is stored while it arrives. Files are kept until they are deleted, or as long as `expires_after` says."""
    form = Form(request.headers.get("content-type", ""), request.stream())
    length = request.headers.get("content-length")
    async with files.uploading(here, caller, at_most=int(length) if length else None) as upload:
        part, fields = await _receive(form, upload)
        file = await upload.keep(
            _checked(_Named, {"file": part.filename}).file,
            fields.purpose,
            media_type=part.media_type or OCTETS,
            expires_seconds=fields.seconds,
            key=idempotency_key,
        )
    return answer(_shape(file))


async def _receive(form: Form, upload: Upload) -> tuple[Part, Fields]:
    """The one file, which is stored now, and the fields, before or after it."""
    found: Part | None = None
    fields: dict[str, str] = {}
    async for part in form.parts():
        if part.filename is None:
            if part.name in fields:
                raise InvalidInput("The form has a field twice.")
            fields[part.name] = await part.text()
        elif found or part.name != "file":
            raise InvalidInput("file: send one file, in the part of this name.", param="file")
        else:
            found = part
            _checked(_Named, {"file": part.filename})
            if "purpose" in fields:  # a wrong one is told before the file is taken
                _checked(Fields, fields)
            await upload.take(part.chunks())
    if found is None:
        raise InvalidInput("file: the form has no file.", param="file")
    return found, _checked(Fields, fields)


def _checked(model: type[T], given: dict[str, Any]) -> T:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise sentence(error) from None


@router.get("/files", response_model=FilesOut)
async def list_files(
    here: Here,
    caller: Chat,
    after: Annotated[FileId | None, Query(description="the id of the last one already seen")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many at most")] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
    purpose: ModelName | None = None,
) -> Response:
    """The caller's files, the newest first unless `order` says otherwise."""
    page = await files.list_page(here, caller, after=after, limit=limit, purpose=purpose, newest_first=order == "desc")
    return answer(listing([_shape(file) for file in page.items], has_more=page.has_more))


@router.get("/files/{file_id}", response_model=FileOut)
async def get_file(here: Here, caller: Chat, file_id: InPath) -> Response:
    """What is known of a file."""
    return answer(_shape(await files.open(here, caller, file_id)))


@router.delete("/files/{file_id}")
async def delete_file(here: Here, caller: Chat, file_id: InPath) -> FileDeleted:
    """Erase a file."""
    await files.delete(here, caller, file_id)
    return FileDeleted(id=file_ref(file_id))


CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("/files/{file_id}/content", response_class=Response, responses=CONTENT)
async def get_file_content(here: Here, caller: Chat, file_id: InPath) -> Response:
    """A file's bytes. Browsers keep them as a file, whatever they hold."""
    file = await files.open(here, caller, file_id)
    rest = files.content(here, file)
    first = await anext(rest, b"")  # so that a refusal comes before the headers
    headers = {
        "content-length": str(file.size),
        "content-disposition": disposition(file.name),
        "etag": f'"{file.sha256.hex()}"',
    }
    return Pieces(first, rest, headers | SAFE, media_type=OCTETS)


def disposition(name: str) -> str:
    """`Content-Disposition` (RFC 6266) for a name that anybody may have made up: no path, no control, no quote; UTF-8 beside ASCII."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(letter if letter.isprintable() else "_" for letter in last).strip(". ") or "file"
    plain = re.sub(r"[^A-Za-z0-9 ._()+,=@-]", "_", shown)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(shown, safe='')}"
