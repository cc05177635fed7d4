"""A file's text, a part at a time: decoded, placed by line and column, and let go once it is read."""

import stat
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterator
from pathlib import Path

from twintune.errors import UserError

CHUNK_BYTES = 2**20
FOREIGN = {  # the first bytes of what is often renamed to .json
    b"\x1f\x8b": "gzip; unpack it with gunzip",
    b"PK\x03\x04": "zip; unpack it with unzip",
    b"\x28\xb5\x2f\xfd": "zstd; unpack it with zstd -d",
    b"\xfd7zXZ": "xz; unpack it with xz -d",
    b"BZh": "bzip2; unpack it with bunzip2",
    b"\xff\xfe\0\0": "UTF-32 text; save the file as UTF-8",
    b"\0\0\xfe\xff": "UTF-32 text; save the file as UTF-8",
    b"\xff\xfe": "UTF-16 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; save the file as UTF-8",
    b"ARROW1": "Arrow; save the file as parquet",
}


def read_bytes(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, at least one, the first empty for an empty file.

    Raises:
        UserError: for what is not there, is no regular file (a pipe would wait for ever), or cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UserError(f"{path}: the data must be a regular file, got {kind}; name a file")
        with path.open("rb") as stream:
            yield stream.read(CHUNK_BYTES)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise UserError(f"{path}: the data must be a file that exists, got nothing there") from None
    except OSError as error:
        raise UserError(f"{path}: the data must be a readable file, got: {error.strerror}") from None


def read_text(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in chunks, without its byte order mark.

    Raises:
        UserError: what read_bytes raises; for packed files and other encodings by their first bytes; for a NUL
            and for bytes that are not UTF-8, each with its offset.
    """
    decoder = getincrementaldecoder("utf-8")()
    done, begun = 0, False  # bytes; whether any text has come
    for chunk in read_bytes(path):
        if not done:
            refuse_foreign(path, chunk)
        if (nul := chunk.find(b"\0")) >= 0:
            raise UserError(
                f"{path}: the data must be text without NUL bytes, got one at byte {done + nul}; "
                "the file is damaged, or not UTF-8: save it anew as UTF-8"
            )
        text = _decode(path, decoder, chunk, done)
        done += len(chunk)
        yield text if begun else text.removeprefix("\ufeff")
        begun = begun or bool(text)
    _decode(path, decoder, b"", done, final=True)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Raise UserError if a file's first bytes are those of a packed file or of another encoding."""
    for first, kind in FOREIGN.items():
        if head.startswith(first):
            raise UserError(f"{path}: the data must be JSON, CSV or parquet in UTF-8, got {kind}")


def _decode(path: Path, decoder: IncrementalDecoder, chunk: bytes, done: int, *, final: bool = False) -> str:
    begin = done - len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the data must be UTF-8 text, got byte 0x{error.object[error.start]:02x} at byte "
            f"{begin + error.start}; save the file as UTF-8"
        ) from None
