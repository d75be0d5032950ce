"""An S3 server whose answers a test decides: throttled, forbidden, cut off, or those of the session's server."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]
App = Callable[[Environ, Start], Iterable[bytes]]
Fault = Callable[[Environ], App | None]
"""Another application that is to answer a request; null: the server itself."""


def says(status: str, code: str, message: str) -> App:
    """An application that answers with an S3 error."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()

    def answer(environ: Environ, start: Start) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


SLOW_DOWN = says("503 Slow Down", "SlowDown", "Please reduce your request rate.")
ACCESS_DENIED = says("403 Forbidden", "AccessDenied", "Access Denied")


def cut_off(app: App) -> App:
    """The application's answer without its second half, and the connection closed."""

    def answer(environ: Environ, start: Start) -> Iterable[bytes]:
        body = b"".join(app(environ, start))
        return [body[: len(body) // 2]]

    return answer


@dataclass
class FaultyServer:
    """A second door to the objects of the session's server."""

    url: str
    app: App
    requests: list[Environ] = field(default_factory=list)
    fault: Fault = lambda environ: None

    def asked(self, method: str) -> int:
        """How many requests of a method came."""
        return sum(environ["REQUEST_METHOD"] == method for environ in self.requests)


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Serve what the session's server holds on a port of its own; the bucket has to be there."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = DomainDispatcherApplication(create_backend_app)

    def serve(environ: Environ, start: Start) -> Iterable[bytes]:
        found.requests.append(environ)
        return (found.fault(environ) or app)(environ, start)

    server = make_server("127.0.0.1", 0, serve, threaded=True)
    found = FaultyServer(f"http://127.0.0.1:{server.server_port}", app)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
