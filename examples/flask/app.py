"""A chat backend for Flask. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens."""

import base64
import hmac
import os
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from flask import Flask, Response, abort, request

SECRET = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
PUSH_URL = os.environ.get("PUSH_URL", "http://127.0.0.1:8081")

app = Flask(__name__)


def is_signed(headers, body):
    timestamp = headers.get("webhook-timestamp", "")
    content = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    expected = b"v1," + base64.b64encode(hmac.digest(SECRET, content, "sha256"))
    given = headers.get("webhook-signature", "").encode().split(b" ")  # several while secrets are rotated
    return any(hmac.compare_digest(expected, one) for one in given) and abs(time.time() - int(timestamp)) <= 300


def push(connection, text):
    try:
        urlopen(Request(f"{PUSH_URL}/connections/{connection}", text, {"Content-Type": "text/plain"}), timeout=10).close()
    except HTTPError as error:
        if error.code != 410:  # the client has just left
            raise


@app.post("/realtime")
def realtime():
    body = request.get_data()
    if not is_signed(request.headers, body):
        abort(401)
    event = request.headers["ce-type"]
    if event == "wsbridge.connect":
        response = Response("welcome", headers={"Ws-Join": "lobby"}, content_type="text/plain; charset=utf-8")
        if "user" in request.args:  # yours comes from the session: its cookie is here
            response.headers["Ws-User"] = request.args["user"]
        return response
    if event == "wsbridge.message":
        if body.startswith(b"push "):
            push(request.headers["ce-connectionid"], body.removeprefix(b"push "))
            return "", 204
        user = request.headers.get("ce-userid", "somebody")
        return Response(user.encode() + b": " + body, content_type="text/plain; charset=utf-8")
    return "", 204  # disconnect: the body says why, as JSON
