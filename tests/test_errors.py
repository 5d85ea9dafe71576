"""What errors tell people and programs."""

import pytest

from torkit.errors import EndReason, Retry, StreamClosed


def test_every_reason_of_an_end_is_a_sentence() -> None:
    sentences = {reason.sentence for reason in EndReason}
    assert len(sentences) == len(EndReason)
    assert not any(reason.name in reason.sentence for reason in EndReason)


@pytest.mark.parametrize(
    ("reason", "retry"),
    [
        (EndReason.RESOLVEFAILED, Retry.LATER),
        (EndReason.CONNECTREFUSED, Retry.LATER),
        (EndReason.EXITPOLICY, Retry.LATER),
        (EndReason.DESTROY, Retry.NOW),
        (EndReason.HIBERNATING, Retry.NOW),
    ],
)
def test_what_another_exit_would_answer_alike_is_not_to_be_tried_again_at_once(
    reason: EndReason, retry: Retry
) -> None:
    assert StreamClosed("ended", reason=reason).retry is retry
