"""A real ComfyUI server on the CPU with this repository as its only pack, in a folder of its own."""

import asyncio
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PACK = "ComfyUI-RMD"
START_SECONDS = 180
RUN_SECONDS = 180


class Refused(Exception):
    """POST /prompt answered with an error; `reply` is what it said."""

    def __init__(self, reply):
        super().__init__(json.dumps(reply))
        self.reply = reply

    @property
    def node_errors(self):
        """Node id to the list of its error records."""
        return {node: entry["errors"] for node, entry in self.reply["node_errors"].items()}


TEXT_EVENT = 3
"""ComfyUI's number of a binary message that holds text for a node; the node's id comes first, after its length."""


@dataclass
class Run:
    """What came over the websocket for one prompt.

    (type, data) of each event, the previews as PIL images, and (node id, text) of each text shown on a node.
    """

    prompt_id: str
    events: list = field(default_factory=list)
    previews: list = field(default_factory=list)
    texts: list = field(default_factory=list)

    def of(self, kind):
        """The data of every event of a kind, in order."""
        return [data for name, data in self.events if name == kind]

    @property
    def outputs(self):
        """What each output node shows, by node id."""
        return {data["node"]: data["output"] for data in self.of("executed")}

    @property
    def cached(self):
        """The ids of the nodes whose results were still there from an earlier prompt."""
        return {node for data in self.of("execution_cached") for node in data["nodes"]}

    @property
    def errors(self):
        """The messages of the nodes that failed while running."""
        return [data["exception_message"].strip() for data in self.of("execution_error")]


class ComfyServer:
    """`with ComfyServer(comfyui, folder) as server:` starts `main.py --cpu` and stops it again.

    ``folder`` becomes its base directory: models, input, output and user data lie there, and the folder ``pack`` is
    linked into its custom_nodes. ``log`` is the path of everything the process printed.
    """

    def __init__(self, comfyui, folder, *, pack=ROOT):
        self.comfyui, self.folder, self.pack = Path(comfyui), Path(folder), Path(pack)
        self.log = self.folder / "server.log"
        self.url = self._process = None

    def __enter__(self):
        (self.folder / "custom_nodes").mkdir(parents=True)
        (self.folder / "custom_nodes" / PACK).symlink_to(self.pack, target_is_directory=True)
        (self.folder / "input").mkdir()
        shutil.copy(self.comfyui / "input" / "example.png", self.folder / "input")  # as every ComfyUI has it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "main.py", *self._flags(port)],
                cwd=self.comfyui,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self):
        """The number of the server's process."""
        return self._process.pid

    def printed(self):
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path):
        """The bytes of a GET; urllib's HTTPError for a status other than 200."""
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return reply.read()

    def json(self, path):
        """The JSON value of a GET."""
        return json.loads(self.get(path))

    def object_info(self):
        """The description of every registered node, by id."""
        return self.json("/object_info")

    def view(self, image):
        """A PIL image from an entry of an output's `images`."""
        return Image.open(io.BytesIO(self.get("/view?" + urllib.parse.urlencode(image))))

    def post(self, prompt, client="nobody"):
        """The reply to POST /prompt of an API-format prompt; Refused where any node of it has an error."""
        body = json.dumps({"prompt": prompt, "client_id": client}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                reply = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(json.loads(error.read())) from None
        if reply["node_errors"]:  # the valid part of the prompt runs all the same
            raise Refused(reply)
        return reply

    def run(self, prompt):
        """Run an API-format prompt to its end and return the Run; Refused as in `post`."""
        return asyncio.run(asyncio.wait_for(self._run(prompt), RUN_SECONDS))

    async def _run(self, prompt):
        import aiohttp  # ComfyUI needs it, so it is here where a server can run

        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session:
            address = f"{self.url}/ws?clientId={client}"
            async with session.ws_connect(address, max_msg_size=0) as socket_:
                reply = await asyncio.to_thread(self.post, prompt, client)
                run = Run(reply["prompt_id"])
                async for message in socket_:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        kind, length = (int.from_bytes(message.data[at : at + 4], "big") for at in (0, 4))
                        if kind == TEXT_EVENT:
                            shown = message.data[8:].decode()
                            run.texts.append((shown[:length], shown[length:]))
                        else:
                            run.previews.append(Image.open(io.BytesIO(message.data[8:])))
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        data = event["data"]
                        if data.get("prompt_id", run.prompt_id) != run.prompt_id:
                            continue
                        run.events.append((event["type"], data))
                        if event["type"] == "executing" and data["node"] is None:
                            return run
        raise AssertionError(f"the server closed the websocket; its log ends with\n{self.printed()[-3000:]}")

    def _flags(self, port):
        return [
            "--cpu",
            *("--listen", "127.0.0.1"),
            *("--port", str(port)),
            "--disable-auto-launch",
            *("--base-directory", str(self.folder)),
            "--disable-all-custom-nodes",
            *("--whitelist-custom-nodes", PACK),
            "--disable-api-nodes",
            *("--database-url", "sqlite:///:memory:"),
            *("--front-end-root", str(self._web_page())),
            *("--preview-method", "latent2rgb"),
        ]

    def _web_page(self):
        """The installed frontend, else an empty folder: no test here needs the page itself."""
        found = importlib.util.find_spec("comfyui_frontend_package")
        if found is not None:
            return Path(found.origin).parent / "static"
        empty = self.folder / "page"
        empty.mkdir()
        return empty

    def _wait(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self._process.returncode}:\n{self.printed()[-5000:]}")
            try:
                self.json("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI was not up after {START_SECONDS} s:\n{self.printed()[-5000:]}")
