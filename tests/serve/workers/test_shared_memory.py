"""Shared memory: whose, which and how much of it a client may name, and what that costs."""

import asyncio
import os
import struct
import sys
import uuid
from contextlib import suppress

import numpy as np
import pytest

from drivetrain.serve.execution.columns import UnfitError
from drivetrain.serve.workers.shared_memory import (
    Place,
    Region,
    SharedMemory,
    SharedMemoryLimits,
    agreement,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux'")


class Objects:
    """POSIX shared memory objects of a test."""

    def __init__(self):
        self.paths = []

    def make(self, content):
        key = f"/drivetrain-test-{uuid.uuid4().hex}"
        self.paths.append(f"/dev/shm{key}")
        self.write(key, content)
        return key

    def write(self, key, content):
        with open(f"/dev/shm{key}", "wb") as file:
            file.write(content)

    def read(self, key):
        with open(f"/dev/shm{key}", "rb") as file:
            return file.read()


@pytest.fixture
def objects():
    found = Objects()
    yield found
    for path in found.paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def with_memory(work, limits=None):
    """Run ``work(memory)`` in a loop; the process is alone."""

    async def main():
        ledger = agreement(1)
        memory = SharedMemory(ledger, 0, limits)
        await memory.begin()
        try:
            return await work(memory)
        finally:
            memory.end()
            ledger.close()

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_what_is_registered_is_listed_read_and_written(objects):
    key = objects.make(bytes(range(100)))

    async def work(memory):
        await memory.register("in", key, 10, 50)
        await memory.register("out", key, 60, 40)
        assert memory.status() == [Region("in", key, 10, 50), Region("out", key, 60, 40)]
        assert memory.status("in") == [Region("in", key, 10, 50)]
        assert memory.read("input 'x'", Place("in", 5, 4)) == bytes((15, 16, 17, 18))
        memory.write("output 'y'", Place("out", 2, 8), b"abc")
        assert objects.read(key)[62:66] == b"abc\x41"

    with_memory(work)


@pytest.mark.parametrize(
    ("offset", "size", "fits"),
    [(0, 50, True), (49, 1, True), (0, 51, False), (50, 1, False), (2**62 - 1, 1, False)],
)
def test_no_byte_beyond_a_region_is_read_or_written(objects, offset, size, fits):
    content = bytes(200)
    key = objects.make(content)

    async def work(memory):
        await memory.register("a", key, 0, 50)
        place = Place("a", offset, size)
        if fits:
            assert len(memory.read("input 'x'", place)) == size
            return
        with pytest.raises(ValueError, match=r"input 'x', region 'a': found .*allowed: 0 to 50"):
            memory.read("input 'x'", place)
        with pytest.raises(UnfitError, match="output 'y', region 'a'"):
            memory.write("output 'y'", place, b"z")

    with_memory(work)
    assert objects.read(key) == content


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/..",
        "..",
        "/.",
        "/../etc/passwd",
        "/a/b",
        "//a",
        "/a\0b",
        "/" + "a" * 300,
        7,
        None,
    ],
)
def test_a_key_is_one_name_and_no_path(key):
    async def work(memory):
        with pytest.raises(ValueError, match="region 'a', key"):
            await memory.register("a", key, 0, 1)

    with_memory(work)


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a/b", "é", "a" * 129])
def test_a_region_has_an_allowed_name(objects, name):
    key = objects.make(b"x")

    async def work(memory):
        with pytest.raises(ValueError, match="region name"):
            await memory.register(name, key, 0, 1)

    with_memory(work)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 101), (100, 1), (-1, 5), (0, 0), (0.5, 5), (0, True)]
)
def test_a_region_lies_within_its_object(objects, offset, size):
    key = objects.make(bytes(100))

    async def work(memory):
        with pytest.raises(ValueError, match="region 'a'"):
            await memory.register("a", key, offset, size)
        assert memory.status() == []

    with_memory(work)


def test_no_link_no_pipe_no_directory_and_nothing_absent_is_opened(objects):
    target = objects.make(b"secret")
    kinds = [objects.make(b"") for _ in range(4)]
    paths = [f"/dev/shm{key}" for key in kinds]
    for path in paths:
        os.unlink(path)
    os.symlink(f"/dev/shm{target}", paths[0])
    os.mkfifo(paths[1])
    os.mkdir(paths[2])

    async def work(memory):
        for key in kinds:
            with pytest.raises(ValueError, match=f"region 'a', key '{key}'"):
                await memory.register("a", key, 0, 1)

    try:
        with_memory(work)
    finally:
        os.rmdir(paths[2])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_belongs_to_another_user_is_not_opened(objects):
    key = objects.make(b"theirs")
    os.chown(f"/dev/shm{key}", 65534, 65534)

    async def work(memory):
        with pytest.raises(ValueError, match=r"owner: found 65534, allowed: 0"):
            await memory.register("a", key, 0, 1)

    with_memory(work)


def test_a_name_is_taken_once_until_it_is_let_go(objects):
    key = objects.make(bytes(10))

    async def work(memory):
        await memory.register("a", key, 0, 5)
        with pytest.raises(ValueError, match="not registered yet"):
            await memory.register("a", key, 5, 5)
        assert memory.status("a") == [Region("a", key, 0, 5)]
        await memory.unregister("a")
        await memory.register("a", key, 5, 5)
        assert memory.status("a") == [Region("a", key, 5, 5)]

    with_memory(work)


def test_regions_are_bounded_in_number_and_in_bytes(objects):
    key = objects.make(bytes(100))

    async def work(memory):
        await memory.register("a", key, 0, 60)
        with pytest.raises(ValueError, match=r"bytes of all regions: found 101, allowed: 100"):
            await memory.register("b", key, 0, 41)
        await memory.register("b", key, 0, 40)
        await memory.unregister("a")
        await memory.register("c", key, 0, 1)
        with pytest.raises(ValueError, match=r"regions: found 3, allowed: 2 at once"):
            await memory.register("d", key, 0, 1)

    with_memory(work, SharedMemoryLimits(regions=2, bytes=100))


def test_nothing_stays_open_behind_an_unregister(objects):
    key = objects.make(bytes(10))

    async def work(memory):
        before = os.listdir("/proc/self/fd")
        for _ in range(50):
            await memory.register("a", key, 0, 5)
            await memory.register("b", key, 5, 5)
            with pytest.raises(ValueError, match="not registered yet"):
                await memory.register("b", key, 5, 5)
            await memory.unregister()
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert memory.status() == []
        with pytest.raises(ValueError, match="unknown region 'a' in input 'x'"):
            memory.read("input 'x'", Place("a", 0, 1))
        await memory.unregister("never")
        with pytest.raises(ValueError, match="unknown region 'never'"):
            memory.status("never")

    with_memory(work)


def test_memory_that_its_client_cuts_short_is_an_error_and_not_the_end(objects):
    key = objects.make(bytes(1 << 16))

    async def work(memory):
        await memory.register("a", key, 0, 1 << 16)
        os.truncate(f"/dev/shm{key}", 100)
        with pytest.raises(ValueError, match="ends at byte 100"):
            memory.read("input 'x'", Place("a", 0, 1 << 16))
        with pytest.raises(UnfitError, match="ends at byte 100"):
            memory.write("output 'y'", Place("a", 4096, 8), b"12345678")
        assert os.path.getsize(f"/dev/shm{key}") == 100
        assert memory.read("input 'x'", Place("a", 0, 100)) == bytes(100)

    with_memory(work)


def test_a_process_takes_no_other_object_of_the_same_name_for_the_registered_one(objects):
    key = objects.make(b"first")

    async def main():
        ledger = agreement(2)
        one, two = SharedMemory(ledger, 0), SharedMemory(ledger, 1)
        await one.begin()
        await one.register("a", key, 0, 5)
        os.unlink(f"/dev/shm{key}")
        objects.write(key, b"other")
        await two.begin()
        assert one.read("input 'x'", Place("a", 0, 5)) == b"first"
        with pytest.raises(ValueError, match="the object of its register"):
            two.read("input 'x'", Place("a", 0, 5))
        await two.unregister()
        await two.register("a", key, 0, 5)
        assert [m.read("input 'x'", Place("a", 0, 5)) for m in (one, two)] == [b"other"] * 2
        one.end()
        two.end()
        ledger.close()

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"shared_memory_byte_size": 4}, "without shared_memory_region"),
        ({"shared_memory_region": "a"}, "shared_memory_byte_size: found None"),
        ({"shared_memory_region": 3, "shared_memory_byte_size": 4}, "the name of a region"),
        ({"shared_memory_region": "a", "shared_memory_byte_size": -1}, "a number of bytes"),
        ({"shared_memory_region": "a", "shared_memory_byte_size": True}, "a number of bytes"),
        (
            {
                "shared_memory_region": "a",
                "shared_memory_byte_size": 4,
                "shared_memory_offset": 2**63,
            },
            "shared_memory_offset",
        ),
    ],
)
def test_parameters_that_name_no_place_are_refused(parameters, part):
    with pytest.raises(ValueError, match=part):
        Place.of("input 'x'", parameters)


# -- over HTTP -------------------------------------------------------------------------------------


def tensor(name, datatype, rows, place=None, data=None):
    found = {"name": name, "datatype": datatype, "shape": [rows]}
    if place is None:
        return {**found, "data": data}
    region, offset, size = place
    return {
        **found,
        "parameters": {
            "shared_memory_region": region,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": size,
        },
    }


def place(name, region, offset, size):
    return {
        "name": name,
        "parameters": {
            "shared_memory_region": region,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": size,
        },
    }


@pytest.fixture
def managed(serve):
    client = serve(management_port=0)
    client.address = (client.server.host, client.server.management_port)
    return client


def columns(rows):
    words = b"".join(struct.pack("<I", 2) + b"AA" for _ in range(rows))
    distance = np.linspace(0, 2000, rows, dtype="<f4").tobytes()
    return words, distance, (np.arange(rows, dtype="<i8") % 24).tobytes()


def test_tensors_in_shared_memory_give_the_same_bits_as_those_in_the_body(managed, objects):
    rows = 16
    words, distance, hour = columns(rows)
    key, out = objects.make(words + distance + hour), objects.make(bytes(rows * 12))
    memory = "/v2/systemsharedmemory/region"
    sizes = [len(words), len(distance), len(hour)]
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    for name, k, size in (("in", key, sum(sizes)), ("out", out, rows * 12)):
        assert managed.post(f"{memory}/{name}/register", {"key": k, "byte_size": size}).json == {}
    kinds = [("carrier", "BYTES"), ("distance", "FP32"), ("hour", "INT64")]
    inputs = [
        tensor(name, kind, rows, ("in", start, size))
        for (name, kind), start, size in zip(kinds, starts, sizes, strict=True)
    ]
    outputs = [place("late", "out", 0, rows * 4), place("slot", "out", rows * 4, rows * 8)]
    target = "/v2/models/tiny/infer"
    reply = managed.post(target, {"inputs": inputs, "outputs": outputs})
    assert reply.status == 200
    assert [o["parameters"]["shared_memory_byte_size"] for o in reply.json["outputs"]] == [64, 128]
    assert all("data" not in output for output in reply.json["outputs"])
    plain = managed.post(target, {"inputs": inputs}).json["outputs"]
    found = objects.read(out)
    assert np.frombuffer(found[:64], "<f4").tolist() == [np.float32(x) for x in plain[0]["data"]]
    assert np.frombuffer(found[64:], "<i8").tolist() == plain[1]["data"]
    body = {
        "inputs": [
            tensor("carrier", "BYTES", rows, data=["AA"] * rows),
            tensor("distance", "FP32", rows, data=np.frombuffer(distance, "<f4").tolist()),
            tensor("hour", "INT64", rows, data=np.frombuffer(hour, "<i8").tolist()),
        ]
    }
    assert managed.post(target, body).json["outputs"] == plain


def test_a_request_may_take_no_more_out_of_shared_memory_than_a_body_holds(serve, objects):
    from drivetrain.serve.transport.http import HttpLimits

    client = serve(management_port=0, limits=HttpLimits(body_bytes=1000))
    client.address = (client.server.host, client.server.management_port)
    key = objects.make(bytes(2000))
    client.post("/v2/systemsharedmemory/region/in/register", {"key": key, "byte_size": 2000})
    inputs = [
        tensor("carrier", "BYTES", 75, data=["AA"] * 75),
        tensor("distance", "FP32", 75, ("in", 0, 300)),
        tensor("hour", "INT64", 75, ("in", 300, 600)),
    ]
    assert client.post("/v2/models/tiny/infer", {"inputs": inputs}).status == 200
    inputs[1] = tensor("distance", "FP32", 75, ("in", 0, 800))
    reply = client.post("/v2/models/tiny/infer", {"inputs": inputs})
    assert reply.status == 400  # it is too long for its shape
    inputs[1] = tensor("distance", "FP32", 75, ("in", 0, 1001))
    reply = client.post("/v2/models/tiny/infer", {"inputs": inputs})
    assert (reply.status, "1001 bytes of inputs" in reply.json["error"]) == (413, True)


def test_the_serving_port_reads_and_writes_no_shared_memory(managed, objects):
    key = objects.make(bytes(1200))
    managed.post("/v2/systemsharedmemory/region/in/register", {"key": key, "byte_size": 1200})
    managed.address = (managed.server.host, managed.server.port)
    given = [
        tensor("carrier", "BYTES", 1, data=["AA"]),
        tensor("distance", "FP32", 1, data=[1.5]),
        tensor("hour", "INT64", 1, data=[3]),
    ]
    taken = [*given[:2], tensor("hour", "INT64", 1, ("in", 0, 8))]
    for body in ({"inputs": taken}, {"inputs": given, "outputs": [place("late", "in", 0, 4)]}):
        reply = managed.post("/v2/models/tiny/infer", body)
        assert (reply.status, "management_port" in reply.json["error"]) == (403, True)
    assert objects.read(key) == bytes(1200)


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (place("late", "nope", 0, 4), "unknown region 'nope'"),
        (place("late", "in", 1198, 4), "output 'late', region 'in'"),
        (place("late", "in", 0, 2), "shared_memory_byte_size: found 2"),
    ],
)
def test_an_output_that_does_not_fit_is_400_and_the_server_goes_on(managed, objects, output, part):
    key = objects.make(bytes(1200))
    managed.post("/v2/systemsharedmemory/region/in/register", {"key": key, "byte_size": 1200})
    given = [
        tensor("carrier", "BYTES", 1, data=["AA"]),
        tensor("distance", "FP32", 1, data=[1.5]),
        tensor("hour", "INT64", 1, data=[3]),
    ]
    reply = managed.post("/v2/models/tiny/infer", {"inputs": given, "outputs": [output]})
    assert (reply.status, part in reply.json["error"]) == (400, True)
    assert managed.post("/v2/models/tiny/infer", {"inputs": given}).status == 200


def test_data_and_a_region_for_one_input_are_one_too_many(managed):
    both = {**tensor("hour", "INT64", 1, ("in", 0, 8)), "data": [3]}
    reply = managed.post("/v2/models/tiny/infer", {"inputs": [both]})
    assert (reply.status, "found data and shared_memory_region" in reply.json["error"]) == (
        400,
        True,
    )
