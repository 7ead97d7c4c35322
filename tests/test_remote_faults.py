"""Errors of stores: which may pass, and what they are called, by what the packages behind fsspec raise."""

from __future__ import annotations

import errno

import pytest

from srcli.remote.faults import named, passes
from srcli.remote.urls import parsed

URL = parsed("gs://bucket/photos/a.png")


def raised(kind: str, base: type[Exception] = Exception, **attributes: object) -> Exception:
    """An exception as a package that is not installed has it."""
    fault = type(kind, (base,), {})("so")
    for name, value in attributes.items():
        setattr(fault, name, value)
    return fault


def of_s3(code: str, status: int, base: type[Exception] = OSError) -> Exception:
    """As s3fs raises it: an error of Python's, because of botocore's."""
    fault = base(errno.EIO, "so")
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    fault.__cause__ = raised("ClientError", response=response)
    return fault


@pytest.mark.parametrize(
    ("fault", "passing", "lasting", "words"),
    [
        (of_s3("SlowDown", 503), True, False, "it answers 503"),
        (of_s3("RequestTimeout", 400), True, False, "it answers 400"),
        (of_s3("NoSuchKey", 404, FileNotFoundError), False, False, "`gs://bucket/photos/a.png` does not exist"),
        (FileNotFoundError(errno.ENOENT, "so", "bucket/photos/a.png"), False, False, "does not exist"),  # adlfs
        (of_s3("NoSuchBucket", 404, FileNotFoundError), False, True, "there is no bucket `bucket`"),
        (of_s3("ExpiredToken", 400, PermissionError), False, True, "have expired"),
        (
            of_s3("SignatureDoesNotMatch", 403, PermissionError),
            False,
            True,
            "does not take the credentials (SignatureDoesNotMatch)",
        ),
        (of_s3("InvalidObjectState", 403, PermissionError), False, False, "access is denied (InvalidObjectState)"),
        (of_s3("KeyTooLongError", 400), False, False, "cannot be used: KeyTooLongError"),
        (raised("NoCredentialsError"), False, True, "there are no credentials for `gs://bucket`"),
        (raised("DefaultCredentialsError"), False, True, "there are no credentials for `gs://bucket`"),
        (raised("HttpError", code=429), True, False, "it answers 429"),
        (raised("HttpError", code=401), False, False, "access is denied (401)"),
        (raised("HttpResponseError", status_code=404, error_code="ContainerNotFound"), False, True, "there is no bucket"),
        (raised("ClientResponseError", status=502), True, False, "it answers 502"),
        (
            raised("ContentLengthError", type("ClientPayloadError", (type("BadHttpMessage", (Exception,), {}),), {}), code=400),
            *((True, False, "breaks off on its way")),
        ),
        (raised("EndpointConnectionError", type("HTTPClientError", (Exception,), {})), True, False, "cannot be reached"),
        (raised("ResponseParserError"), True, False, "answers that are none of such a store"),
        (ConnectionResetError(errno.ECONNRESET, "so"), True, False, "cannot be reached"),
        (TimeoutError(), True, False, "cannot be reached: TimeoutError"),
        (OSError(errno.ENOSPC, "No space left on device"), False, False, "cannot be kept on the disk for its way: No space left"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_fault_is_told_from_others(fault: Exception, passing: bool, lasting: bool, words: str) -> None:
    error = named(fault, URL)
    assert (passes(fault), error.passing, error.lasting) == (passing, passing, lasting)
    assert words in error.message
    assert error.hint
    assert error.exit_code == (1 if passing else 2)
