"""Token ids, lengths and counts as outcomes declare them, so that no record can say what no model could."""

from typing import Annotated

import msgspec

MOST = 2**31 - 1

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Length = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Row = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
