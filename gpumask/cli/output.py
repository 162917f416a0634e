"""Messages to the user, and the errors that are shown as messages."""

import sys

USER_ERRORS = (OSError, ValueError, TypeError, ImportError, MemoryError, RuntimeError)


def tell(message: object) -> None:
    """Write a message to standard error, as one line."""
    print(" ".join(str(message).split()), file=sys.stderr, flush=True)
