"""Makes the proofs of work that onion services ask for, in a thread."""

import logging
import os

import trio

from torkit.hs.descriptor import Descriptor
from torkit.hs.pow import NONCE_LEN, Proof, Search, choose_effort, max_effort
from torkit.net.shortage import run_in_thread

logger = logging.getLogger(__name__)


class Worker:
    """Makes one proof at a time for one client, so that it keeps one processor busy at most."""

    def __init__(self, max_effort: int | None = None) -> None:
        """`max_effort` is the greatest effort that is made, by default what suits this machine (hs.pow)."""
        self._max_effort = max_effort
        self._has_warned = False
        self._turns = trio.CapacityLimiter(1)

    def search_for(self, descriptor: Descriptor, failures: int) -> Search | None:
        """Returns the search for `run`; None where the service asks for no work, or the user allows none.

        `failures` counts introductions that the service has not answered: each raises the effort.
        """
        params = descriptor.proof_of_work
        if params is None:
            return None
        limit = max_effort() if self._max_effort is None else self._max_effort
        effort = choose_effort(params.effort, failures=failures, maximum=limit)
        if params.effort > limit and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "an onion service asks for a proof of work of effort %d, and at most %d is made"
                " (--pow-max-effort): with less it may not answer while it is under attack",
                params.effort,
                limit,
            )
        if effort == 0:
            return None
        search = Search(params, blinded=descriptor.blinded, effort=effort, nonce=os.urandom(NONCE_LEN))
        how = "" if search.is_compiled else ", by an interpreter: nothing can be compiled here"
        logger.info("making a proof of work of effort %d for the onion service%s", effort, how)
        return search

    async def run(self, search: Search) -> Proof | None:
        """Returns the proof, however long the search takes. A cancelled search ends within milliseconds."""
        began = trio.current_time()
        try:
            return await run_in_thread(search.run, abandon_on_cancel=True, limiter=self._turns)
        finally:
            search.cancel()
            logger.info("the proof of work took %.1f s", trio.current_time() - began)
