"""Words as people write them, for messages, reports and pages."""


def plural(count: int, one: str, many: str = "") -> str:
    """`1 clip`, `2 clips`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
