"""Questions to a language model behind any endpoint with OpenAI's protocol, on this machine or elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require


class ChatEndpoint:
    """``POST {url}/chat/completions``, one question at a time, no conversation. Nothing is asked unless called.

    Args:
        url: such as ``http://localhost:8000/v1``.
        model: as the endpoint names it.
        key_variable: environment variable with the key, which is sent as a bearer token if it is set.
        timeout: seconds to wait for an answer.
        temperature: of the sampling; 0 for the likeliest answer.

    Raises:
        ValueError: the URL is none of HTTP.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 300.0,
        temperature: float = 0.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must start with http:// or https://, got {url!r}")
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.timeout, self.temperature = timeout, temperature

    def ask(self, question: str, picture: NDArray[np.uint8] | None = None) -> str:
        """Return the answer to a question, optionally about a picture ``(H, W, 3)`` uint8.

        Raises:
            OSError: the endpoint cannot be reached, refuses, or answers with something else than the protocol says.
        """
        content: Any = question
        if picture is not None:
            address = f"data:image/png;base64,{_png(picture)}"
            content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": address}}]
        body = {
            "model": self.model,
            "temperature": self.temperature,
            "messages": [{"role": "user", "content": content}],
        }
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        address = f"{self.url}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.loads(response.read())
            return str(answer["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            raise OSError(
                f"{address} refused with {error.code}: {error.read()[:300].decode(errors='replace')}"
            ) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise OSError(f"{address} cannot be reached: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise OSError(f"{address} did not answer as the protocol says ({error!r})") from error


class EndpointCaptioner:
    """Captions of pictures from a vision-language model behind a :class:`ChatEndpoint`.

    Args:
        endpoint: where to ask.
        question: what to ask.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        question: str = "Describe the object in this picture in one short phrase, without the background.",
    ) -> None:
        self.endpoint, self.question = endpoint, question

    def __call__(self, picture: NDArray[np.uint8]) -> str:
        """A caption of a picture ``(H, W, 3)`` uint8, one line; empty where the model has nothing to say."""
        return " ".join(self.endpoint.ask(self.question, picture).split())


def _png(picture: NDArray[np.uint8]) -> str:
    image = require("PIL.Image", extra="image", purpose="pictures").fromarray(np.ascontiguousarray(picture))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
