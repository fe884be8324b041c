"""The WSGI application APP (module:name): each event is a line of the file RECORD before the application sees it."""

import importlib
import os

module, name = os.environ["APP"].split(":")
app = getattr(importlib.import_module(module), name)
record = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND)


def application(environ, start_response):
    line = " ".join(environ.get(name, "") for name in ("HTTP_CE_TYPE", "HTTP_CE_ID", "HTTP_CE_ATTEMPT"))
    os.write(record, f"{line}\n".encode())
    return app(environ, start_response)
