"""What is remembered of exits that refuse, and for how long; which addresses no exit may connect to."""

from torkit.learnt.refusals import MAX_EXITS, MAX_TARGETS, Refusals

A, B = b"a" * 20, b"b" * 20


def test_a_target_is_a_host_in_any_case_and_a_port() -> None:
    refusals = Refusals()
    refusals.note_target(A, "a", "Web.test", 80)
    refusals.note_target(B, "a", "web.test", 80)
    refusals.note_target(A, "a", "web.test", None)
    assert refusals.exits_refusing("a", "WEB.test", 80) == {A, B}
    assert refusals.exits_refusing("a", "web.test", None) == {A}
    assert refusals.exits_refusing("a", "web.test", 443) == set()
    assert refusals.exits_refusing("a", "other.test", 80) == set()
    assert refusals.exits == set()


def test_a_new_consensus_and_only_that_forgets_all() -> None:
    refusals = Refusals()
    for consensus in (1000, 2000):
        refusals.note_consensus(consensus)
        assert refusals.exits == refusals.exits_refusing("a", "web.test", 80) == set()
        refusals.note_exit(A)
        refusals.note_target(B, "a", "web.test", 80)
        refusals.note_consensus(consensus)
        assert refusals.exits == {A}
        assert refusals.exits_refusing("a", "web.test", 80) == {A, B}
        assert refusals.exits_refusing("a", "other.test", 80) == {A}


def test_targets_can_be_forgotten_alone() -> None:
    refusals = Refusals()
    refusals.note_exit(A)
    refusals.note_target(B, "a", "web.test", 80)
    refusals.forget_targets()
    assert refusals.exits == refusals.exits_refusing("a", "web.test", 80) == {A}


def test_only_so_much_is_remembered() -> None:
    refusals = Refusals()
    for number in range(MAX_TARGETS + 1):
        refusals.note_target(A, "a", f"{number}.test", 80)
        refusals.note_target(A, "a", "often.test", 80)
    assert refusals.exits_refusing("a", "often.test", 80) == {A}
    known = [n for n in range(MAX_TARGETS + 1) if refusals.exits_refusing("a", f"{n}.test", 80)]
    assert known == list(range(2, MAX_TARGETS + 1))
    for number in range(MAX_EXITS + 5):
        refusals.note_target(bytes([number]) * 20, "a", "often.test", 80)
    assert len(refusals.exits_refusing("a", "often.test", 80)) == MAX_EXITS


def test_what_a_target_has_taught_one_isolation_does_not_steer_another() -> None:
    refusals = Refusals()
    refusals.note_target(A, "a", "web.test", 80)
    assert refusals.exits_refusing("b", "web.test", 80) == set()
    refusals.note_exit(B)  # it is no exit at all, as in C tor
    assert refusals.exits_refusing("b", "web.test", 80) == {B}
