"""A small OpenAI-compatible endpoint that answers as told, well or badly, in a thread of the test."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Of a request: the prompt, and how often it was asked before.
Behave = Callable[["Request", str, int], None]


@dataclass
class Endpoint:
    """What a test sees of its server.

    Attributes:
        url: for reasoning.base_url.
        behave: answers a request; a test may change it.
        bodies, headers: of every request.
        most: requests that were under way at one time.
    """

    url: str
    behave: Behave
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    endpoint: Endpoint
    closing: threading.Event

    def do_POST(self) -> None:
        endpoint = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with endpoint.lock:
            before = endpoint.asked[prompt]
            endpoint.asked[prompt] += 1
            endpoint.bodies.append(body | {"path": self.path})
            endpoint.headers.append(dict(self.headers))
            endpoint.now += 1
            endpoint.most = max(endpoint.most, endpoint.now)
        try:
            endpoint.behave(self, prompt, before)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away, as it should from a server that hangs
        finally:
            with endpoint.lock:
                endpoint.now -= 1

    def say(self, text: Any) -> None:
        """A chat completion with this content."""
        self.send(200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})

    def send(self, status: int, value: Any, **headers: str) -> None:
        """A response: bytes as they are, anything else as JSON."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def greet(self) -> None:
        """Say what is no HTTP."""
        self.wfile.write(b"hello\r\n\r\n")

    def drop(self) -> None:
        """Promise a response, and close the connection before its end."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def hang(self) -> None:
        """Say nothing, until the client has gone or the test is over."""
        self.closing.wait(30)
        self.close_connection = True

    def trickle(self) -> None:
        """Send a byte now and then, without end."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.closing.is_set():
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.02)

    def go_down(self) -> None:
        """Let nobody listen from now on."""
        assert isinstance(self.server, ThreadingHTTPServer)
        self.server.socket.close()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on stderr."""


@contextmanager
def serve(behave: Behave) -> Iterator[Endpoint]:
    """A server on a free port, as long as the block lasts."""
    closing = threading.Event()
    endpoint = Endpoint("", behave)
    handler = type("Handler", (Request,), {"endpoint": endpoint, "closing": closing})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            closing.set()
            server.shutdown()
            thread.join()
