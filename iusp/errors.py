"""The exception for errors that the user can correct."""


class InputError(Exception):
    """Input of the user cannot be used.

    The message is one line: it names the file or key, and says what is wrong and what to do. The command line prints it
    and exits with status 2. Only the promotion gate also catches it, and turns it into a reason to refuse.
    """
