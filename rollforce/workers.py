"""Processes of one thread each that share work, and end with the one that began them, however it ended."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from threading import Thread

import torch


def workers(count: int) -> ProcessPoolExecutor:
    """A pool of `count`. What they call must be importable by name."""
    os.environ["OMP_NUM_THREADS"] = "1"  # they read it as they start
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed says nothing to those it began: they would go on to the end of their work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
