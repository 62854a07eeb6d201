"""The thread on which a probe is done, beside the calls. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from service.client.exchange import Probe

logger = logging.getLogger(__name__)


def begin_probe(work: Callable[[], None], probe: Probe) -> threading.Thread | None:
    """Do what a probe takes on a thread, which nobody waits for; None where none can be had."""

    def do() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a probe that never ends would be the last one
            logger.warning("the service is not probed: %s", error)
            probe.give_up()

    thread = threading.Thread(target=do, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no threads left, or the interpreter is ending
        logger.warning("the service is not probed: %s", error)
        probe.give_up()
        return None
    return thread
