"""What errors tell people and programs."""

import pytest

from torkit import errors
from torkit.errors import (
    DestroyReason,
    EndReason,
    OnionServiceError,
    OnionStep,
    Retry,
    StreamClosed,
    TorkitError,
    trace,
)

# Whether the same call may succeed: a class of errors that is not here has not been thought about.
NOW = {
    *("PeerError", "ChannelError", "CertificateNotCurrent", "CircuitError"),
    *("Closed", "ChannelClosed", "HandshakeCut", "CircuitClosed", "TimedOut", "NotProven"),
}
LATER = {
    *("DocumentError", "NotPossible", "NoPath", "NoGuard", "NoDirectory", "ClockSkewed", "NoNetwork"),
    *("Unreachable", "Filtered", "NotServed", "NothingNewer", "OutOfResources", "NoProxy"),
}
NEVER = {"TorkitError", "UsageError", "StorageError", "InternalError"}
BY_REASON = {"StreamClosed", "OnionServiceError"}

# One exit's or circuit's fault: another may do better. All else is what the target, or several exits, say.
ENDS_NOW = {
    *(EndReason.DESTROY, EndReason.HIBERNATING, EndReason.INTERNAL),
    *(EndReason.RESOURCELIMIT, EndReason.TORPROTOCOL, EndReason.NOTDIRECTORY),
}
STEPS_NEVER = {OnionStep.ADDRESS, OnionStep.NO_KEY, OnionStep.WRONG_KEY}


def classes(root: type[TorkitError]) -> set[type[TorkitError]]:
    found = {root}
    for one in root.__subclasses__():
        found |= classes(one)
    return {one for one in found if one.__module__ == errors.__name__}


def test_every_class_says_whether_to_try_again() -> None:
    table = {name: retry for retry in Retry for name in globals()[retry.name]}
    assert len(table) == len(NOW) + len(LATER) + len(NEVER)
    assert {one.__name__: one.retry for one in classes(TorkitError) if one.__name__ not in BY_REASON} == table


@pytest.mark.parametrize("reason", EndReason)
def test_a_stream_is_tried_again_at_once_only_where_another_exit_may_do_better(reason: EndReason) -> None:
    expected = Retry.NOW if reason in ENDS_NOW else Retry.LATER
    assert StreamClosed("ended", reason=reason).retry is expected


@pytest.mark.parametrize("step", OnionStep)
def test_an_onion_service_is_tried_again_unless_the_user_has_to_act(step: OnionStep) -> None:
    expected = Retry.NEVER if step in STEPS_NEVER else Retry.LATER
    assert OnionServiceError("failed", step=step).retry is expected


@pytest.mark.parametrize("reasons", [EndReason, DestroyReason])
def test_every_reason_of_a_peer_is_a_sentence(reasons: type[EndReason] | type[DestroyReason]) -> None:
    sentences = {reason.sentence for reason in reasons}
    assert len(sentences) == len(reasons)
    assert not any(reason.name in reason.sentence for reason in reasons)
    assert all(sentence[0].islower() and " " in sentence for sentence in sentences)


def test_a_reason_of_tomorrow_is_one_that_says_nothing() -> None:
    assert DestroyReason(250) is DestroyReason.NONE
    assert EndReason(250) is EndReason.MISC


def test_an_error_with_its_hint_is_one_line() -> None:
    assert TorkitError("it failed", hint="do that").with_hint == "it failed; do that"
    assert TorkitError("it failed").with_hint == "it failed"


def raise_the_one_of(group: ExceptionGroup[Exception]) -> None:
    try:
        raise group
    except ExceptionGroup:
        raise group.exceptions[0] from None


def test_the_trace_of_what_was_taken_out_of_its_group_ends() -> None:
    """Python makes a circle of the two; it was a RecursionError, in the place of what had happened."""
    with pytest.raises(KeyError) as caught:
        raise_the_one_of(ExceptionGroup("", [KeyError("web.test")]))
    lines = trace(caught.value).splitlines()
    assert [line for line in lines if line.endswith(" at")] == ["ExceptionGroup at", "KeyError at"]
