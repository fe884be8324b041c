"""An application without a framework: app.py PORT, or app.py /path/of.sock. It prints every event as a line of JSON."""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        event = self.headers["ce-type"]
        print(json.dumps({
            "type": event, "path": self.path, "sequence": self.headers["ce-sequence"], "user": self.headers["ce-userid"],
            "cookie": self.headers["Cookie"], "content_type": self.headers["Content-Type"], "body": body.decode("latin-1"),
        }), flush=True)
        if event == "wsbridge.connect":
            name = parse_qs(urlsplit(self.path).query).get("name")
            if not name:
                return self.answer(401, b"Who are you?\n", {"WWW-Authenticate": 'Name realm="app"'})
            return self.answer(204, b"", {"Set-Cookie": "visit=1; HttpOnly", "Ws-User": name[0]})
        if event == "wsbridge.message":
            if self.headers["Content-Type"] == "application/octet-stream":
                return self.answer(200, body[::-1], {"Content-Type": "application/octet-stream"})
            words = body.decode().split(" ", 2)
            if words[0] == "push":
                pushed = urlopen(Request(os.environ["PUSH"] + "/connections/" + words[1], words[2].encode(), {"Content-Type": "text/plain"}))
                return self.answer(200, str(pushed.status).encode())
            return self.answer(200, body.upper())
        self.answer(204, b"")

    def answer(self, status, body, headers={}):
        self.send_response(status)
        for name, value in ({"Content-Type": "text/plain"} | headers).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class OverUnixSocket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


where = sys.argv[1]
if where.startswith("/"):
    server = OverUnixSocket(where, App)
    print("listening on", "unix:" + where + ":", flush=True)
else:
    server = ThreadingHTTPServer(("127.0.0.1", int(where)), App)
    print("listening on", "127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
