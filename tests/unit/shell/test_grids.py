"""The in-process grid, the private touches it needs, and who takes part."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedpriv.errors import InputError
from fedpriv.messages import HELLO, SCHEMA, Hello, Refusal
from simulations.flower_internals import become_server, set_message_id
from simulations.inline_grid import FIRST_NODE, InlineGrid, node_contexts
from strategies.roster import Member, ask_who, gather, sample


def say_hello(message, context):
    partition = context.node_config["partition-id"]
    hello = Hello(
        schema=SCHEMA,
        client=f"C{partition}",
        partition=partition,
        partitions=context.node_config["num-partitions"],
        source="s",
        mode="simulation",
    )
    return Message(hello.to_record(), reply_to=message)


class TestPrivateTouches:
    """If Flower changes these, our grids must change: Flower is pinned to 1.41 for this reason."""

    def test_messages_can_be_made_and_stamped(self):
        become_server()
        message = Message(RecordDict(), 7, "query")
        assert message.metadata.message_id == ""
        set_message_id(message, "m1")
        assert message.metadata.message_id == "m1"
        reply = Message(RecordDict(), reply_to=message)
        assert reply.metadata.reply_to_message_id == "m1"
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (7, TaskIdentity.node_id)

    def test_an_identity_given_by_flower_is_kept(self, monkeypatch):
        monkeypatch.setattr(TaskIdentity, "_run_id", 4711)
        monkeypatch.setattr(TaskIdentity, "_node_id", 12)
        monkeypatch.setattr(TaskIdentity, "_task_id", 3)
        become_server()
        assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (4711, 12, 3)


class TestInlineGrid:
    def messages(self, grid):
        return [Message(RecordDict(), node, "query.hello") for node in grid.get_node_ids()]

    def test_replies_come_in_order_and_once(self):
        grid = InlineGrid(say_hello, 3, {})
        replies = list(grid.send_and_receive(self.messages(grid)))
        assert [reply.metadata.src_node_id for reply in replies] == [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]
        ids = list(grid.push_messages(self.messages(grid)))
        assert len(list(grid.pull_messages(ids))) == 3
        assert list(grid.pull_messages(ids)) == []

    def test_an_exception_becomes_a_code_without_text(self):
        def broken(message, context):
            raise RuntimeError("SECRET-4711")

        grid = InlineGrid(broken, 1, {})
        (reply,) = grid.send_and_receive(self.messages(grid))
        assert (reply.error.code, reply.error.reason) == (Refusal.INTERNAL, "internal")

    def test_what_comes_after_the_deadline_is_not_run(self, monkeypatch):
        ran, now = [], [0.0]
        monkeypatch.setattr("simulations.inline_grid.time", SimpleNamespace(monotonic=lambda: now[0]))

        def slow(message, context):
            ran.append(context.node_id)
            now[0] += 0.05
            return say_hello(message, context)

        grid = InlineGrid(slow, 5, {})
        assert len(list(grid.send_and_receive(self.messages(grid), timeout=0.08))) == len(ran) == 2

    def test_contexts_are_those_of_flowers_simulation(self):
        contexts = node_contexts(2, {"run.seed": 1})
        assert [c.node_config for c in contexts.values()] == [
            {"partition-id": 0, "num-partitions": 2},
            {"partition-id": 1, "num-partitions": 2},
        ]


class Nodes:
    """A grid whose nodes come one after the other, in a random order of ids, as in Flower."""

    def __init__(self, arrivals, app=say_hello):
        become_server()
        self.arrivals, self.app, self.looks = arrivals, app, 0

    def get_node_ids(self):
        self.looks += 1
        return list(self.arrivals)[: self.looks]

    def send_and_receive(self, messages, *, timeout=None):
        class Where:
            def __init__(self, partition):
                self.node_config = {"partition-id": partition, "num-partitions": 9}

        return [self.app(m, Where(self.arrivals[m.metadata.dst_node_id])) for m in reversed(list(messages))]


class Clock:
    """The `time` module of those who wait, without waiting."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class TestRoster:
    def test_waits_for_all_and_sorts_by_partition(self):
        grid = Nodes({991: 2, 17: 0, 402: 1})
        members = gather(grid, 3, source="s", deadline=60.0, poll=0.001)
        assert [(m.partition, m.client, m.node_id) for m in members] == [(0, "C0", 17), (1, "C1", 402), (2, "C2", 991)]
        assert grid.looks == 3

    def test_ten_come_before_two(self):
        """Numbers sort as numbers."""
        members, _ = ask_who(Nodes({5: 10, 6: 2}), [5, 6], source="s", timeout=1.0)
        assert [m.partition for m in members] == [2, 10]

    def test_absent_clients(self, monkeypatch):
        clock = Clock()
        monkeypatch.setattr("strategies.roster.time", clock)
        with pytest.raises(InputError, match=r"2 of 3 clients are there after 0\.05 s"):
            gather(Nodes({1: 0, 2: 1}), 3, source="s", deadline=0.05, poll=0.001)
        assert len(gather(Nodes({1: 0, 2: 1}), 3, source="s", deadline=0.05, enough=2, poll=0.001)) == 2

    def test_other_code_is_left_out_at_once(self):
        start = time.monotonic()
        with pytest.raises(InputError, match=r"0 of 2 clients are there \(2 x source-mismatch\)"):
            gather(Nodes({1: 0, 2: 1}), 2, source="other", deadline=600.0, poll=0.001)
        assert time.monotonic() - start < 60

    def test_two_with_one_name(self):
        with pytest.raises(InputError, match="two nodes say that they are C0"):
            gather(Nodes({1: 0, 2: 0}), 2, source="s", deadline=60.0, poll=0.001)

    def test_errors_of_flower_are_counted_not_quoted(self):
        def lost(message, context):
            return Message(Error(3, "SECRET"), reply_to=message)

        with pytest.raises(InputError, match="node-lost") as caught:
            gather(Nodes({1: 0}, lost), 1, source="s", deadline=0.01, poll=0.001)
        assert "SECRET" not in str(caught.value)

    def test_queries_are_answered_only_by_what_we_declare(self):
        assert HELLO == "query.hello"


class TestSampling:
    members = tuple(Member(i, f"C{i}", 1000 - i, "simulation") for i in range(10))

    def test_same_seed_same_clients_in_partition_order(self):
        first = [sample(self.members, 4, seed=3, round=r) for r in range(1, 30)]
        again = [sample(self.members, 4, seed=3, round=r) for r in range(1, 30)]
        other = [sample(self.members, 4, seed=4, round=r) for r in range(1, 30)]
        assert first == again != other
        assert all(chosen == sorted(chosen) and len(set(chosen)) == 4 for chosen in first)

    def test_all_when_zero_or_more_than_there_are(self):
        assert (
            sample(self.members, 0, seed=1, round=1) == list(self.members) == sample(self.members, 99, seed=1, round=1)
        )

    def test_node_ids_do_not_matter(self):
        renamed = sorted(
            Member(m.partition, m.client, int(n), m.mode)
            for m, n in zip(self.members, np.random.default_rng(0).permutation(10), strict=True)
        )
        for round_ in range(1, 9):
            a = [m.client for m in sample(self.members, 3, seed=1, round=round_)]
            assert a == [m.client for m in sample(renamed, 3, seed=1, round=round_)]

    def test_everyone_is_drawn_about_equally(self):
        counts = np.zeros(10)
        for round_ in range(2000):
            for member in sample(self.members, 3, seed=0, round=round_):
                counts[member.partition] += 1
        # 600 expected, standard deviation 20.5; 5 sigma is far beyond a significance of 1e-3 for ten counts
        assert np.all(np.abs(counts - 600) < 103)


class TestRayPacking:
    """What travels through Ray's object store, without Ray."""

    def test_any_number_of_array_records(self):
        from flwr.app import ConfigRecord

        from fedpriv.messages import encode_model
        from simulations.ray_grid import _same, pack, split, unpack

        become_server()
        model, rule = (encode_model(np.arange(n, dtype=np.float32)) for n in (5, 3))
        content = RecordDict({"model": model, "words": ConfigRecord({"a": "b"}), "rule": rule})
        message = Message(content, 2, "train")
        set_message_id(message, "m")
        light, records = split(message)
        assert list(light.content) == ["words"]
        assert light.metadata.message_id == "m"
        assert list(message.content) == ["model", "words", "rule"]  # the original is whole
        assert unpack(pack(records)) == {"model": model, "rule": rule}
        assert _same(records, split(message)[1])
        assert not _same(records, {"model": encode_model(np.arange(5, dtype=np.float32)), "rule": rule})
        bare = Message(RecordDict(), 2, "query.hello")
        assert split(bare) == (bare, {})
        refused = Refusal.INTERNAL.to_message(message)
        assert split(refused) == (refused, {})
