"""The one exception that is meant for people."""


class InputError(Exception):
    """What the user gave cannot be used.

    The message is one line that names the file or key, says what is wrong and what to do. The command line prints it
    and exits with status 2. Nothing else catches it, but for the gate: there it is one reason among others.
    """
