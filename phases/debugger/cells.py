"""Text in cells of a terminal, of which wide characters take two."""

from rich.cells import cell_len, set_cell_size


def fitted(text: str, width: int) -> str:
    """Text in exactly so many cells: filled up with spaces, or cut."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, max(0, width - 1)).rstrip(" ") + "…" * min(1, width)
