"""The one error of the simulator."""


class MakeRunError(ValueError):
    """The call cannot be done as asked; the message says what to change."""
