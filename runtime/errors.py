"""The errors a user can mend: one sentence that names the thing and the mend, never a traceback."""


class UserError(Exception):
    """Something the user can mend. `str(error)` is the one sentence shown; commands exit with code 2."""


class InvalidInput(UserError):
    """The request itself is wrong (unreadable image, prompt too long). gRPC INVALID_ARGUMENT."""


class NotPossibleHere(UserError):
    """The request is fine, this bundle or machine is not (missing file, full disk). gRPC FAILED_PRECONDITION."""
