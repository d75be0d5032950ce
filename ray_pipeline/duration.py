"""How long something takes, in words."""


def duration(seconds: float) -> str:
    """A time as people say it: `0.2 s`, `41 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    if seconds < 59.5:
        return f"{round(seconds, 1):g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"
