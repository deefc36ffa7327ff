"""The pairs of pixels that the pair loss compares, and the paths between them."""

Offset = tuple[int, int]


def half_plane(radius: int) -> list[Offset]:
    """The offsets (dy, dx) with dy² + dx² < radius² in one half-plane: each pair of pixels appears once."""
    reach = range(1 - radius, radius)
    return [(y, x) for y in range(radius) for x in reach if (y, x) > (0, 0) and y * y + x * x < radius * radius]


def path(offset: Offset) -> list[Offset]:
    """The pixels of the straight path from (0, 0) to `offset`: those closer than 1 to the line, both ends included.

    In reading order. Where several pixels of a path share the highest edge, the first in this order takes the gradient.
    """
    dy, dx = offset
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]
