"""The peer: a named tuple made by hand must behave as one."""

from __future__ import annotations

import copy
import pickle

from ipcsrv.peer import Peer


def test_a_peer_is_a_tuple_with_names():
    peer = Peer(10, 20, 30)
    pid, uid, gid = peer
    assert (pid, uid, gid) == (peer.pid, peer.uid, peer.gid) == peer == (10, 20, 30)
    assert repr(peer) == "Peer(pid=10, uid=20, gid=30)"
    assert {peer: 1}[Peer(pid=10, uid=20, gid=30)] == 1


def test_what_a_system_does_not_tell_is_none():
    assert Peer(None, "S-1-5-18") == (None, "S-1-5-18", None)


def test_a_peer_survives_pickle_and_copy():
    peer = Peer(10, 20, 30)
    for again in (pickle.loads(pickle.dumps(peer)), copy.copy(peer), copy.deepcopy(peer)):
        assert again == peer
        assert type(again) is Peer
