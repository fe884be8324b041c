"""A chat backend as one file of Django. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens."""

import base64
import hmac
import os
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

SECRET = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
PUSH_URL = os.environ.get("PUSH_URL", "http://127.0.0.1:8081")


def is_signed(request):
    timestamp = request.headers.get("webhook-timestamp", "")
    content = f"{request.headers.get('webhook-id', '')}.{timestamp}.".encode() + request.body
    expected = b"v1," + base64.b64encode(hmac.digest(SECRET, content, "sha256"))
    given = request.headers.get("webhook-signature", "").encode().split(b" ")  # several while secrets are rotated
    return any(hmac.compare_digest(expected, one) for one in given) and abs(time.time() - int(timestamp)) <= 300


def push(connection, text):
    try:
        urlopen(Request(f"{PUSH_URL}/connections/{connection}", text, {"Content-Type": "text/plain"}), timeout=10).close()
    except HTTPError as error:
        if error.code != 410:  # the client has just left
            raise


@csrf_exempt  # the event comes from wsbridge: it has a signature in place of a CSRF token
@require_POST
def realtime(request):
    if not is_signed(request):
        return HttpResponse(status=401)
    event = request.headers["ce-type"]
    if event == "wsbridge.connect":
        response = HttpResponse("welcome", content_type="text/plain; charset=utf-8", headers={"Ws-Join": "lobby"})
        if "user" in request.GET:  # yours is request.user: the session's cookie is here
            response.headers["Ws-User"] = request.GET["user"]
        return response
    if event == "wsbridge.message":
        if request.body.startswith(b"push "):
            push(request.headers["ce-connectionid"], request.body.removeprefix(b"push "))
            return HttpResponse(status=204)
        user = request.headers.get("ce-userid", "somebody")
        return HttpResponse(user.encode() + b": " + request.body, content_type="text/plain; charset=utf-8")
    return HttpResponse(status=204)  # disconnect: the body says why, as JSON


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],  # the Host is the client's: yours names the site
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
)
urlpatterns = [path("realtime", realtime)]
application = get_wsgi_application()
