"""The exceptions by which a request ends without a response. In the worker."""

from __future__ import annotations


class Failure(Exception):
    """What the client is answered in place of a response: `ERR code message`.

    counter: the word of the scoreboard that counts it.
    """

    def __init__(self, code: str, message: str, counter: int) -> None:
        super().__init__(message)
        self.code, self.message, self.counter = code, message, counter


class Gone(Exception):
    """The client of a stream has closed its end."""
