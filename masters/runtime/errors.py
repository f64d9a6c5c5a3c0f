"""What libraries say when they fail, in one line for the user."""


def one_line(error: object, longest: int = 200) -> str:
    """Return an error's message, or a text, without line breaks; the name of its type if it is empty."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def typed_line(error: BaseException) -> str:
    """Return the name of an error's type with its message, for errors of unknown types."""
    name, line = type(error).__name__, one_line(error)
    return line if line == name else f"{name}: {line}"
