"""What a record says about the generation that it is of."""

import msgspec

from phases.request import GenerationRequest
from statemachine import Journal, JournalError


def request_of(journal: Journal) -> GenerationRequest:
    """The request of a recorded generation."""
    try:
        return msgspec.convert(journal.header.request, GenerationRequest)
    except (msgspec.ValidationError, ValueError) as error:
        raise JournalError(f"{journal.path} records no generation: its request is damaged ({error})") from error
