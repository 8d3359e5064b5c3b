"""The error that all modules of audio files raise."""


class BadAudio(Exception):  # noqa: N818 (its message is a reason, not an error for the user)
    """A file is not a usable clip; the message is the reason, without the file's name."""
