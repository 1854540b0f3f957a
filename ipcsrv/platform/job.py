"""What the processes of one generation are started with: made by the master, read by template and workers."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.handlers import HandlerSource
from ..config.settings import Settings
from .server import QueueReader, SharedMemory


@dataclass(frozen=True)
class Job:
    """What the processes of one generation are started with."""

    generation: int
    settings: Settings
    source: HandlerSource
    queue: QueueReader
    memory: SharedMemory
    slots: int
    inherited: frozenset[int]  # descriptors that the caller of the library had open, which its handler may use
    path: str  # where the server listens
    stacks: SharedMemory | None = None  # where the template writes its stacks if its import takes too long
