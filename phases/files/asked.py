"""What one request of a file asks for, and in whose form it is to be answered."""

from dataclasses import dataclass
from enum import Enum

from phases.request import RowRequest


class Form(Enum):
    """In which form an answer is written."""

    OURS = "ours"
    CHAT = "chat.completion"  # of OpenAI's batches
    TEXT = "text_completion"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a file, or what is wrong with it."""

    line: int  # from 1
    id: str | int
    mark: str  # digest of where and what it is: no other request has it, and the same one has it again
    form: Form
    row: RowRequest | None
    problem: str = ""  # why there is no row
