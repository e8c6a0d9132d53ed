"""A web server of one folder that serves parts of files, as object stores do; it counts the bytes that it gave."""

import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        file = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        found = (
            re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.parts else None
        )
        low, high = (int(found[1]), int(found[2] or size - 1)) if found else (0, size - 1)
        high = min(high, size - 1)
        self.send_response(206 if found else 200)
        if self.server.parts:
            self.send_header("Accept-Ranges", "bytes")
        if found:
            self.send_header("Content-Range", f"bytes {low}-{high}/{size}")
        end, hole = high + 1, self.server.hole
        if hole and low <= hole[1] and high >= hole[0]:
            end = max(low, hole[0])
        if self.server.sizes:
            self.send_header("Content-Length", str(end - low if body else high - low + 1))
        else:
            self.close_connection = True
        self.end_headers()
        if body:
            with file.open("rb") as handle:
                handle.seek(low)
                left = handle.read(end - low)
            self.server.given[file.name] = self.server.given.get(file.name, 0) + len(left)
            self.wfile.write(left)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """`url` is where `folder` is served; `given` counts bytes by file name; without `parts`, whole files only.

    Without `sizes` it does not say how long a file is. `hole`: first and last byte that it never gives.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Readers that have what they want close the connection; that is no error."""

    def __init__(self, folder, *, parts=True, sizes=True, hole=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.parts, self.sizes, self.hole, self.given = folder, parts, sizes, hole, {}
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def served(folder, **how):
    server = Server(folder, **how)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    # `python tests/range_server.py FOLDER` serves until it is killed; its first line of output is the URL.
    alone = Server(Path(sys.argv[1]))
    print(alone.url, flush=True)
    alone.serve_forever()
