"""The one error this package raises on purpose: what was needed, what was found, what to do."""


class DarlingError(RuntimeError):
    """Stops a run with three sentences a user can act on.

    Args:
        needed: what the code required.
        found: what it got instead, with the value.
        do: the next step that would cure it.
    """

    def __init__(self, needed: str, found: str, do: str) -> None:
        # All three stay in `args`, so that the error survives pickling on its way out of a Ray worker.
        super().__init__(needed, found, do)

    def __str__(self) -> str:
        needed, found, do = self.args
        return f"darling-plugin\n  needed: {needed}\n  found:  {found}\n  do:     {do}"
