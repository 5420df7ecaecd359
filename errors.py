"""What can go wrong, each with the exit code that the command answers with."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line; of several targets' codes the first of `WORST_FIRST` is returned."""

    OK = 0
    VERIFICATION = 1
    USAGE = 2
    INPUT = 3
    BUILD = 4
    DEVICE = 5
    RESOURCES = 6
    INTERNAL = 7
    INTERRUPTED = 130
    TERMINATED = 143


WORST_FIRST = (Exit.INTERNAL, Exit.RESOURCES, Exit.BUILD, Exit.DEVICE, Exit.VERIFICATION)


def worst(codes: "list[Exit]") -> Exit:
    """The one code that stands for several targets' codes."""
    return next((code for code in WORST_FIRST if code in codes), Exit.OK)


class GraphwrightError(Exception):
    """An error whose message a user can act on: the thing, what came, what is allowed, the way out."""

    code = Exit.INTERNAL


class VerificationError(GraphwrightError):
    """A result differs from the reference by more than the tolerance."""

    code = Exit.VERIFICATION


class UsageError(GraphwrightError):
    """An unknown name, a bad option or recipe, an output folder that cannot be used."""

    code = Exit.USAGE


class InputError(GraphwrightError):
    """The model, its inputs or its data were rejected: unreadable, hostile, or not what they say."""

    code = Exit.INPUT


class BuildError(GraphwrightError):
    """A graph could not be exported, lowered or built."""

    code = Exit.BUILD


class DeviceError(GraphwrightError):
    """The target is not available here though it is required, or another provider ran than the one asked for."""

    code = Exit.DEVICE


class ResourceError(GraphwrightError):
    """Disk, memory or time ran out."""

    code = Exit.RESOURCES


class Interrupted(BaseException):
    """The run is to end, now, with `code`.

    It is no SystemExit, which a model's own code may raise and is an error of that then, and no KeyboardInterrupt: once
    that has passed through an exec of text, as in dataclasses and torch, Python ends by the signal, whatever exit code
    is asked for.
    """

    def __init__(self, code: Exit) -> None:
        self.code = code
        super().__init__(code)
