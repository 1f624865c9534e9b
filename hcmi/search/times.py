"""Times in a file as they are shown to people: the command, the page and the picture of an explanation."""


def span_text(start_s: float, end_s: float) -> str:
    """The seconds of a moment; after the first minute of a file as a player counts: `21:24.0 - 21:26.3`.

    Of a moment that is shorter than what one digit can show, two are given.
    """
    if end_s >= 60:
        return f"{_clock(start_s)} - {_clock(end_s)}"
    digits = 2 if f"{start_s:.1f}" == f"{end_s:.1f}" else 1
    return f"{start_s:.{digits}f} - {end_s:.{digits}f} s"


def time_text(seconds: float) -> str:
    """A time in a file, as `span_text` shows the times of a moment: `59.5 s`, `21:24.0`."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)


def _clock(seconds: float) -> str:
    """`0:07.2`, `21:24.0`, `1:00:05.5`."""
    minutes, tenths = divmod(round(10 * seconds), 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{tenths / 10:04.1f}"
