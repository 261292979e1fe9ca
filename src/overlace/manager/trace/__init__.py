"""`overlace trace`: what one packet experiences between two places of the swarm, hop by hop.

Owns the answer. `explain_trace` computes it (pure) from what each host is told: the store's view -> that host's network
view -> its HNS documents -> the VFP simulator, so that a Windows host answers like any other. `trace_hosts` holds that
against what the hosts say of themselves, where a host that lags behind what it was told is seen.
"""

from overlace.manager.trace.answer import Broken, Hop, Question, Trace
from overlace.manager.trace.live import trace_hosts
from overlace.manager.trace.trace import explain_trace

__all__ = ["Broken", "Hop", "Question", "Trace", "explain_trace", "trace_hosts"]
