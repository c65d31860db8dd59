"""What is said of the etcd members."""

from __future__ import annotations

from vstor.mds.quorum import BEHIND_MAX, MemberState, Quorum


def member(number: int, *, voter: bool = True, alive: bool = True, behind: int = 0) -> MemberState:
    return MemberState(number, f"mds{number}", (f"https://127.0.0.{number}:1",), (), voter, alive, False, behind)


def test_summary() -> None:
    quorum = Quorum(None)
    assert quorum.summary() == {"members": 0, "voters": 0, "in_step": 0, "needed": 0, "can_lose": 0}
    quorum.members = [member(1)]
    assert quorum.summary() == {"members": 1, "voters": 1, "in_step": 1, "needed": 1, "can_lose": 0}
    quorum.members = [member(1), member(2), member(3, behind=BEHIND_MAX)]
    assert quorum.summary()["can_lose"] == 1
    quorum.members = [member(1), member(2), member(3, behind=BEHIND_MAX + 1)]
    assert quorum.summary()["can_lose"] == 0
    quorum.members = [member(1), member(2, alive=False), member(3, voter=False)]
    assert quorum.summary() == {"members": 3, "voters": 2, "in_step": 1, "needed": 2, "can_lose": -1}


def test_members_are_found_by_their_peer_url() -> None:
    quorum = Quorum(None)
    quorum.members = [member(1), member(2)]
    found = quorum.of_peer("https://127.0.0.2:1")
    assert found is not None
    assert found.member_id == 2
    assert quorum.of_peer("https://127.0.0.9:1") is None
