"""What stores answer instead of what was asked for, as errors that name a way out; and which of it may pass by itself.

The packages behind fsspec have exceptions of their own. None of them is imported: their names and numbers tell enough.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from srcli.disk import DISK_FULL, first_line
from srcli.errors import SrcliError, escaped
from srcli.remote.urls import Url

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
"""HTTP's numbers of faults that pass."""
_BUSY_CODES = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ServerBusy", "OperationAborted"})
_LINE_KINDS = frozenset(
    {"HTTPClientError", "ClientConnectionError", "ClientPayloadError", "ServiceRequestError", "ServiceResponseError"}
)
"""Names of exceptions (of botocore, aiohttp, azure) where the line broke."""
_NO_ANSWERS = frozenset({"BadHttpMessage"})
"""aiohttp's exceptions whose number is none that a server has answered."""
_BROKEN_OFF = frozenset({"ClientPayloadError", "IncompleteRead", "ResponseStreamingError"})
_GARBLED = frozenset({"ResponseParserError", "JSONDecodeError", "ContentTypeError"})
_KEYLESS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound", "TokenRetrievalError"}
)
_EXPIRED = frozenset({"ExpiredToken", "RequestExpired", "TokenRefreshRequired", "InvalidToken"})
_WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_AGAIN = "then repeat the command: what is finished is skipped"
_KEYS = {
    "s3": "set `AWS_PROFILE`, or `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; `FSSPEC_S3_ANON=true` is for public buckets",
    "gs": "run `gcloud auth application-default login`, or set `GOOGLE_APPLICATION_CREDENTIALS`",
    "az": "set `AZURE_STORAGE_CONNECTION_STRING`, or `AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY`",
}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_CONNECTION_STRING"}


class StoreError(SrcliError):
    """A store or web server does not do what it is asked for.

    Attributes:
        passing: whether the same may work later.
        lasting: whether it concerns the whole store, so that no other object needs to be tried.
        missing: whether nothing of that name is there.
    """

    def __init__(self, message: str, hint: str, *, passing: bool = False, lasting: bool = False, missing: bool = False) -> None:
        super().__init__(escaped(message), hint)
        self.passing, self.lasting, self.missing = passing, lasting, missing
        self.exit_code = 1 if passing else 2


class ShortError(Exception):
    """Fewer bytes came than there are."""


def passes(fault: BaseException) -> bool:
    """Whether to ask once more makes sense: the line broke, or the store is busy or has a fault of its own."""
    status, codes, kinds = _facts(fault)
    if codes & _BUSY_CODES or status in _BUSY:
        return True
    if status or codes & (_NO_BUCKET | _WRONG_KEY | _EXPIRED) or kinds & _KEYLESS:
        return False
    lines = (ConnectionError, TimeoutError, ShortError)
    return bool(kinds & (_LINE_KINDS | _GARBLED)) or any(isinstance(each, lines) for each in _chain(fault))


def named(fault: BaseException, url: Url) -> StoreError:
    """The error that tells of what happened at `url`."""
    status, codes, kinds = _facts(fault)
    store = f"{url.scheme}://{url.place}"
    if isinstance(fault, OSError) and (_is_here(fault.filename) or fault.errno in DISK_FULL) and not status:
        message = f"`{url}` cannot be kept on the disk for its way: {fault.strerror or fault}"
        return StoreError(message, f"make room there, or name another folder by `XDG_CACHE_HOME`, {_AGAIN}")
    if kinds & _KEYLESS:
        return StoreError(f"there are no credentials for `{store}`: {first_line(fault)}", _keys(url), lasting=True)
    if codes & _NO_BUCKET:
        return no_bucket(url)
    if codes & _EXPIRED:
        return StoreError(f"the credentials for `{store}` have expired", f"renew them, {_AGAIN}", lasting=True)
    if codes & _WRONG_KEY:
        return StoreError(f"`{store}` does not take the credentials ({_word(codes)})", _keys(url), lasting=True)
    if status in (401, 403) or isinstance(fault, PermissionError):
        told = _word(codes) or status or first_line(fault)
        return StoreError(f"`{url}`: access is denied ({told})", _rights(url))
    if passes(fault):
        return _out_of_reach(fault, url, status, kinds)
    if status == 404 or isinstance(fault, FileNotFoundError):
        return StoreError(f"`{url}` does not exist", f"check the spelling{_endpoint_hint(url)}", missing=True)
    told = f"{_word(codes) or status}: " if codes or status else ""
    return StoreError(f"`{url}` cannot be used: {told}{first_line(fault)}", "see what the store's own tool says of it")


def _is_here(name: object) -> bool:
    """Whether a fault's file is one of this disk: all of ours have whole paths, and the packages' objects have not."""
    return isinstance(name, str | bytes | os.PathLike) and Path(os.fsdecode(name)).is_absolute()


def no_bucket(url: Url) -> StoreError:
    """The error where a bucket or container is missing."""
    what = "container" if url.scheme == "az" else "bucket"
    hint = f"check the spelling{_endpoint_hint(url)}"
    return StoreError(f"there is no {what} `{url.place}`, which `{url}` names", hint, lasting=True)


def _out_of_reach(fault: BaseException, url: Url, status: int, kinds: set[str]) -> StoreError:
    store = f"{url.scheme}://{url.place}"
    if any(isinstance(each, ShortError) for each in _chain(fault)):
        return StoreError(f"`{url}` {fault}", "repeat the command; if it stays so, the object itself is damaged", passing=True)
    if kinds & _GARBLED:
        message = f"`{store}` gives answers that are none of such a store: {first_line(fault)}"
        return StoreError(message, f"check what is asked{_endpoint_hint(url)}", passing=True)
    if kinds & _BROKEN_OFF:
        return StoreError(f"`{url}` breaks off on its way: {first_line(fault)}", f"check the network, {_AGAIN}", passing=True)
    why = f"it answers {status}" if status else first_line(fault) or "it does not answer"
    message = f"`{url}` cannot be had: {why}" if status else f"`{store}` cannot be reached: {why}"
    return StoreError(message, f"check the network{_endpoint_hint(url)}, {_AGAIN}", passing=True)


def _keys(url: Url) -> str:
    return _KEYS.get(url.scheme, "give an address that needs no password")


def _rights(url: Url) -> str:
    if url.is_web:
        return "the address may have expired, or need a password; get a new one"
    return "the credentials need the rights to list and read the photos, and to list and write the results"


def _endpoint_hint(url: Url) -> str:
    """What else may be wrong: the service is asked at an address of the user's."""
    name = _ENDPOINTS.get(url.scheme, "")
    if not name:
        return ""
    value = os.environ.get(name, "")
    return f" and `{name}`" + (f", which is `{value}`" if value and name != "AZURE_STORAGE_CONNECTION_STRING" else "")


def _word(codes: set[str]) -> str:
    return ", ".join(sorted(code for code in codes if not code.isdigit()))


def _chain(fault: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = fault
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _facts(fault: BaseException) -> tuple[int, set[str], set[str]]:
    """HTTP's number (0 where there is none), the store's own codes, and the names of the exceptions' classes."""
    status, codes, kinds = 0, set[str](), set[str]()
    for each in _chain(fault):
        kinds |= {kind.__name__ for kind in type(each).__mro__}
        response = getattr(each, "response", None)
        if isinstance(response, dict):  # botocore's
            codes |= {str(response.get("Error", {}).get("Code", ""))} - {""}
            status = status or int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        codes |= {str(getattr(each, "error_code", "") or "")} - {""}  # azure's
        if not kinds & _NO_ANSWERS:
            numbers = (getattr(each, name, 0) for name in ("status", "status_code", "code"))
            status = status or next((number for number in numbers if isinstance(number, int) and number), 0)
    return status, codes, kinds
