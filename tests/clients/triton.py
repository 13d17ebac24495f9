"""Everything that tritonclient offers, asked of a server; prints what it got as JSON.

Run by the Python of the client's own environment: ``python triton.py ADDRESS MANAGED WHICH`` with
two addresses ``host:port`` and one of ``http``, ``grpc``, ``http.aio`` and ``grpc.aio``.
"""

import asyncio
import importlib
import inspect
import json
import queue
import sys

import numpy as np
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

ROWS = {
    "carrier": np.array(["AA", "β", ""], np.object_),
    "distance": np.array([733.5, np.nan, 0.1], np.float32),
    "hour": np.array([7, 23, -(2**63)], np.int64),
}
TYPES = {"carrier": "BYTES", "distance": "FP32", "hour": "INT64"}


def inputs(module, rows=ROWS, **options):
    made = []
    for name, values in rows.items():
        tensor = module.InferInput(name, list(values.shape), TYPES[name])
        tensor.set_data_from_numpy(values, **options)
        made.append(tensor)
    return made


def outputs_of(result, names=("late", "slot")):
    found = {name: result.as_numpy(name) for name in names}
    return {name: None if a is None else a.tolist() for name, a in found.items()}


def failure(error):
    return {"status": error.status(), "message": error.message()}


async def settled(value):
    """The value itself, also of the asyncio clients."""
    return await value if inspect.isawaitable(value) else value


class Conversation:
    """One kind of client, talking to one server."""

    def __init__(self, kind, address, managed):
        self.kind = kind
        self.http = kind.startswith("http")
        self.module = importlib.import_module(f"tritonclient.{kind}")
        self.client = self.module.InferenceServerClient(address)
        self.managing = self.module.InferenceServerClient(managed)
        self.json = {} if self.http else {"as_json": True}

    async def ask(self, name, *args, managing=False, **options):
        client = self.managing if managing else self.client
        return await settled(getattr(client, name)(*args, **options))

    async def refused(self, name, *args, **options):
        try:
            await self.ask(name, *args, **options)
        except InferenceServerException as error:
            return failure(error)
        return None

    async def infer(self, rows=ROWS, model="tiny", made=None, **options):
        made = inputs(self.module, rows) if made is None else made
        return await self.ask("infer", model, made, **options)

    # -- what is asked -------------------------------------------------------------------------

    async def health(self):
        return [
            await self.ask("is_server_live"),
            await self.ask("is_server_ready"),
            await self.ask("is_model_ready", "tiny"),
            await self.ask("is_model_ready", "none"),
        ]

    async def metadata(self):
        return {
            "server": await self.ask("get_server_metadata", **self.json),
            "model": await self.ask("get_model_metadata", "tiny", **self.json),
            "config": await self.ask("get_model_config", "tiny", **self.json),
        }

    async def inference(self):
        asked = [self.module.InferRequestedOutput(name) for name in ("slot", "late")]
        result = await self.infer(request_id="call-7", outputs=asked[:1])
        response = result.get_response()
        identity = response["id"] if self.http else response.id
        version = response["model_version"] if self.http else response.model_version
        one = {name: values[:1] for name, values in ROWS.items()}
        many = {name: np.concatenate([values[:2]] * 50) for name, values in ROWS.items()}
        return {
            "all": outputs_of(await self.infer()),
            "again": outputs_of(await self.infer()),
            "one": outputs_of(await self.infer(one)),
            "many": outputs_of(await self.infer(many)),
            "version": outputs_of(await self.infer(model_version=version)),
            "chosen": outputs_of(result),
            "id": identity,
            "columns": outputs_of(
                await self.infer({name: values.reshape(-1, 1) for name, values in ROWS.items()})
            ),
        }

    async def json_tensors(self):
        """Only HTTP has them; the client writes NaN as it is, which JSON has not."""
        rows = {name: values[:1] for name, values in ROWS.items()}
        made = inputs(self.module, rows, binary_data=False)
        two = {name: values[:2] for name, values in ROWS.items()}
        asked = [self.module.InferRequestedOutput(n, binary_data=False) for n in ("late", "slot")]
        mixed = [
            self.module.InferRequestedOutput(n, binary_data=n == "late") for n in ("late", "slot")
        ]
        return {
            "json": outputs_of(await self.infer(made=made, outputs=asked)),
            "mixed": outputs_of(await self.infer(made=made, outputs=mixed)),
            "binary": outputs_of(await self.infer(rows, outputs=asked)),
            "nan": outputs_of(
                await self.infer(made=inputs(self.module, two, binary_data=False), outputs=asked)
            ),
        }

    async def compressed(self):
        if self.http:
            ways = {
                f"{part} {name}": {f"{part}_compression_algorithm": name}
                for part in ("request", "response")
                for name in ("gzip", "deflate")
            }
            return {way: outputs_of(await self.infer(**given)) for way, given in ways.items()}
        return {
            name: outputs_of(await self.infer(compression_algorithm=name))
            for name in ("gzip", "deflate")
        }

    async def mistakes(self):
        wrong = self.module.InferInput("distance", [3], "FP64")
        wrong.set_data_from_numpy(np.zeros(3))
        good = inputs(self.module)
        classes = self.module.InferRequestedOutput("late", class_count=2)
        poison = {**ROWS, "hour": np.array([7, 99, 7], np.int64)}
        return {
            "model": await self.refused("infer", "tinny", good),
            "version": await self.refused("infer", "tiny", good, model_version="7"),
            "datatype": await self.refused("infer", "tiny", [good[0], wrong, good[2]]),
            "absent": await self.refused("infer", "tiny", good[:2]),
            "output": await self.refused(
                "infer", "tiny", good, outputs=[self.module.InferRequestedOutput("lat")]
            ),
            "classes": await self.refused("infer", "tiny", good, outputs=[classes]),
            "poison": await self.refused("infer", "tiny", inputs(self.module, poison)),
            "metadata": await self.refused("get_model_metadata", "tinny"),
            "timeout": await self.refused("infer", "tiny", good, timeout=-5),
            "sequence": await self.refused(
                "infer", "tiny", good, sequence_id=7, sequence_start=True
            ),
            "settings": None if self.http else await self.refused("get_trace_settings"),
        }

    async def timeouts(self):
        return {
            "enough": outputs_of(await self.infer(timeout=5_000_000)),
            "generous": None if self.http else outputs_of(await self.infer(client_timeout=5.0)),
        }

    async def statistics(self):
        await self.infer()
        one = await self.ask("get_inference_statistics", "tiny", **self.json)
        every = await self.ask("get_inference_statistics", **self.json)
        return {"one": one["model_stats"], "every": [m["name"] for m in every["model_stats"]]}

    async def repository(self):
        found = {"index": await self.ask("get_model_repository_index", **self.json)}
        found["elsewhere"] = await self.refused("unload_model", "tiny")
        await self.ask("unload_model", "tiny", managing=True)
        found["unloaded"] = await self.ask("get_model_repository_index", **self.json)
        found["ready"] = await self.ask("is_model_ready", "tiny")
        found["refused"] = await self.refused("infer", "tiny", inputs(self.module))
        await self.ask("load_model", "tiny", managing=True)
        found["loaded"] = await self.ask("is_model_ready", "tiny")
        found["infers"] = outputs_of(await self.infer())
        found["unknown"] = await self.refused("load_model", "tinny", managing=True)
        found["config"] = await self.refused("load_model", "tiny", managing=True, config="{}")
        return found

    async def shared_memory(self):
        """Inputs and outputs in system shared memory, and what is left of it."""
        rows = {name: ROWS[name] for name in ("distance", "hour")}
        sizes = {name: values.nbytes for name, values in rows.items()}
        name = f"drivetrain_{self.kind.replace('.', '_')}"
        region = shm.create_shared_memory_region(name, f"/{name}", 256)
        try:
            await self.ask("unregister_system_shared_memory", managing=True)
            await self.ask("unregister_cuda_shared_memory", managing=True)
            await self.ask("register_system_shared_memory", name, f"/{name}", 256, managing=True)
            shm.set_shared_memory_region(region, [rows["distance"], rows["hour"]])
            made, offset = inputs(self.module)[:1], 0
            for column, size in sizes.items():
                tensor = self.module.InferInput(column, [3], TYPES[column])
                tensor.set_shared_memory(name, size, offset=offset)
                made.append(tensor)
                offset += size
            late, slot = (self.module.InferRequestedOutput(n) for n in ("late", "slot"))
            late.set_shared_memory(name, 12, offset=128)
            result = await self.ask("infer", "tiny", made, outputs=[late, slot], managing=True)
            status = await self.ask("get_system_shared_memory_status", managing=True, **self.json)
            found = {
                "late": shm.get_contents_as_numpy(region, np.float32, [3], offset=128).tolist(),
                "slot": outputs_of(result, ("slot",))["slot"],
                "status": status,
                "elsewhere": await self.refused("infer", "tiny", made),
                "cuda": await self.ask("get_cuda_shared_memory_status", managing=True, **self.json),
            }
            late.set_shared_memory(name, 4, offset=128)
            found["small"] = await self.refused(
                "infer", "tiny", made, outputs=[late], managing=True
            )
            await self.ask("unregister_system_shared_memory", name, managing=True)
            found["after"] = await self.ask(
                "get_system_shared_memory_status", managing=True, **self.json
            )
            return found
        finally:
            shm.destroy_shared_memory_region(region)

    async def streaming(self):
        """Five calls over one stream, the third of them wrong."""
        calls = [
            {
                "model_name": "tiny" if number != 2 else "tinny",
                "inputs": inputs(self.module),
                "request_id": str(number),
                "enable_empty_final_response": number == 4,
            }
            for number in range(5)
        ]
        if self.kind == "grpc.aio":

            async def requests():
                for call in calls:
                    yield call

            answers = [answer async for answer in self.client.stream_infer(requests())]
        else:
            got = queue.Queue()
            self.client.start_stream(lambda result, error: got.put((result, error)))
            for call in calls:
                self.client.async_stream_infer(**call)
            self.client.stop_stream()
            answers = [got.get(timeout=10) for _ in calls]
        found = []
        for result, error in answers:
            if error is not None:
                found.append(error.message())
                continue
            response = result.get_response()
            final = response.parameters["triton_final_response"].bool_param
            found.append([response.id, outputs_of(result)["late"], final])
        return found

    async def at_once(self):
        """Many calls under way on one client."""
        if self.kind == "grpc":
            got = queue.Queue()
            for _ in range(64):
                self.client.async_infer(
                    "tiny", inputs(self.module), lambda result, error: got.put((result, error))
                )
            results = [got.get(timeout=10) for _ in range(64)]
            assert all(error is None for _, error in results), results
            return [outputs_of(result)["late"] for result, _ in results]
        if self.kind == "http":
            pending = [self.client.async_infer("tiny", inputs(self.module)) for _ in range(16)]
            return [outputs_of(one.get_result())["late"] for one in pending]
        results = await asyncio.gather(*(self.infer() for _ in range(64)))
        return [outputs_of(result)["late"] for result in results]

    async def close(self):
        await settled(self.client.close())
        await settled(self.managing.close())


async def main(address, managed, kind):
    conversation = Conversation(kind, address, managed)
    steps = ["health", "metadata", "inference", "compressed", "mistakes", "timeouts", "statistics"]
    steps += ["repository", "shared_memory", "at_once"]
    steps += ["json_tensors"] if conversation.http else ["streaming"]
    found = {}
    for step in steps:
        try:
            found[step] = await getattr(conversation, step)()
        except Exception as error:
            found[step] = {"failed": f"{type(error).__name__}: {error}"}
            if isinstance(error, InferenceServerException):
                found[step]["failed"] = f"{error.status()}: {error.message()}"
    await conversation.close()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:4]))))
