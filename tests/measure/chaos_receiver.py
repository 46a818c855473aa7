"""
A receiver of callbacks as a process of its own: `chaos_receiver.py PORT LOG` appends what it hears and says 204.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    """Listen until killed."""
    log = Path(sys.argv[2])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard = {"id": self.headers["webhook-id"], "job_id": json.loads(body)["data"]["id"]}
            with log.open("a") as lines:
                lines.write(json.dumps(heard) + "\n")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
