"""The Files API of the local Gemini server: resumable upload, description, deletion, download of what jobs made."""

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from ray_pipeline.sandbox.gemini_wire import ApiError

_KEPT_FOR = timedelta(hours=48)
_GRANULARITY = 256 * 1024  # bytes


class FileStart(BaseModel):
    """What a client says of a file before it uploads it."""

    # The client writes these names in snake case.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    name: str | None = None
    display_name: str | None = None
    mime_type: str | None = None


class UploadStart(BaseModel):
    """The body that opens an upload."""

    file: FileStart = FileStart()


@dataclass
class StoredFile:
    """A file, uploaded or made by a job; its content lies at `path`."""

    name: str
    path: Path
    mime_type: str
    display_name: str | None = None
    generated: bool = False
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def described(self, base: str) -> dict[str, Any]:
        """The file as the API describes it; `base` is the address that it was asked under."""
        uri = f"{base}/{self.name}"
        told: dict[str, Any] = {
            "name": self.name,
            "mimeType": self.mime_type,
            "sizeBytes": str(self.path.stat().st_size),
            "createTime": timestamp(self.created),
            "updateTime": timestamp(self.created),
            "expirationTime": timestamp(self.created + _KEPT_FOR),
            "uri": uri,
            "state": "ACTIVE",
            "source": "GENERATED" if self.generated else "UPLOADED",
        }
        if self.display_name:
            told["displayName"] = self.display_name
        return told | ({"downloadUri": f"{uri}:download?alt=media"} if self.generated else {})


class Files:
    """The files of one server, in a folder; used from one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, StoredFile] = {}
        self._uploads: dict[str, StoredFile] = {}

    def add(self, name: str, mime_type: str, generated: bool = False) -> StoredFile:
        """A new empty file of that name ("files/…")."""
        made = StoredFile(name, self._folder / secrets.token_hex(8), mime_type, generated=generated)
        made.path.touch()
        self._files[name] = made
        return made

    def find(self, name: str) -> StoredFile:
        """The file of that name; raises the API's 403, which it answers in place of 404."""
        if name not in self._files:
            message = (
                f"You do not have permission to access the File {name.removeprefix('files/')} or it may not exist."
            )
            raise ApiError(403, "PERMISSION_DENIED", message)
        return self._files[name]

    async def upload(self, request: web.Request) -> web.Response:
        """Open a resumable upload; the answer's header says where its bytes go."""
        try:
            start = UploadStart.model_validate_json(await request.read() or b"{}").file
        except ValidationError as error:
            raise ApiError(400, "INVALID_ARGUMENT", f"Invalid JSON payload received: {error}") from error
        if request.headers.get("X-Goog-Upload-Command") != "start":
            raise ApiError(400, "INVALID_ARGUMENT", "An upload begins with the command start.")
        name = start.name or f"files/{secrets.token_hex(6)}"
        if name in self._files:
            raise ApiError(409, "ALREADY_EXISTS", f"The file {name} exists.")
        mime_type = request.headers.get("X-Goog-Upload-Header-Content-Type") or start.mime_type or "text/plain"
        upload = secrets.token_hex(12)
        self._uploads[upload] = StoredFile(name, self._folder / upload, mime_type, start.display_name)
        self._uploads[upload].path.touch()
        address = f"{request.scheme}://{request.host}{request.path}?upload_id={upload}&upload_protocol=resumable"
        headers = {"X-Goog-Upload-URL": address, "X-Goog-Upload-Status": "active"}
        return web.json_response({}, headers=headers | {"X-Goog-Upload-Chunk-Granularity": str(_GRANULARITY)})

    async def receive(self, request: web.Request) -> web.Response:
        """Take some bytes of an upload; its id stands for the key."""
        upload = request.query.get("upload_id", "")
        if upload not in self._uploads:
            raise ApiError(404, "NOT_FOUND", "No such upload is open.")
        file = self._uploads[upload]
        if request.headers.get("X-Goog-Upload-Offset") != str(file.path.stat().st_size):
            raise ApiError(400, "INVALID_ARGUMENT", "The offset is not where the last bytes ended.")
        with file.path.open("ab") as out:
            out.write(await request.read())
        if "finalize" not in request.headers.get("X-Goog-Upload-Command", ""):
            return web.json_response({}, headers={"X-Goog-Upload-Status": "active"})
        self._files[file.name] = self._uploads.pop(upload)
        return web.json_response({"file": file.described(_base(request))}, headers={"X-Goog-Upload-Status": "final"})

    async def get(self, request: web.Request) -> web.Response:
        """Describe a file."""
        return web.json_response(self.find(_name(request)).described(_base(request)))

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a file."""
        self.find(_name(request)).path.unlink()
        del self._files[_name(request)]
        return web.json_response({})

    async def download(self, request: web.Request) -> web.StreamResponse:
        """The content of a file that a job has made; uploaded ones are not given back."""
        file = self.find(_name(request))
        if not file.generated:
            raise ApiError(400, "INVALID_ARGUMENT", f"{file.name} was uploaded: only generated files are downloaded.")
        return web.FileResponse(file.path, headers={"Content-Type": file.mime_type})


def timestamp(moment: datetime) -> str:
    """A moment as the API writes it."""
    return moment.isoformat().replace("+00:00", "Z")


def _name(request: web.Request) -> str:
    return f"files/{request.match_info['name']}"


def _base(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}/{request.match_info['version']}"
