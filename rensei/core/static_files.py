"""Static files by WhiteNoise, sent by an asynchronous server without a warning."""

from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc] # It comes without types.
    """
    Reads a file whole and sends it.

    WhiteNoise streams it by a synchronous iterator, which Django under ASGI collects anyway, with a warning:
    https://docs.djangoproject.com/en/5.2/ref/request-response/#streaminghttpresponse-objects
    """

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponse:
        found = static_file.get_response(request.method, request.META)
        content = b""
        if found.file is not None:
            with found.file as file:
                content = file.read()
        response = HttpResponse(content, status=int(found.status))
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response
