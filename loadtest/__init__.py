"""Load tests: open-loop traffic, clients, records and honest figures. The server is a black box.

From Python::

    client = HttpClassifyClient("http://127.0.0.1:8000")
    await client.start()
    records = await run_open_loop(client, payloads, poisson(50.0, seed=1), duration_s=60.0, warm_up_s=5.0)
    summary = summarise(records, deadline_s=0.1)
    await client.close()

From a shell: ``vireo loadtest SCENARIO.yaml``. Definitions and limits: docs/loadtest.md.
"""

from loadtest.clients.base import Budget, Client, Payload, Prepared, Reply, TargetError
from loadtest.records import Outcome, Record, ServerReport, read_jsonl, write_jsonl
from loadtest.runner import Planned, RunControl, RunLimits, run_closed_loop, run_open_loop, run_plan
from loadtest.summary import Summary, group_by, summarise

__all__ = [
    "Budget",
    "Client",
    "Outcome",
    "Payload",
    "Planned",
    "Prepared",
    "Record",
    "Reply",
    "RunControl",
    "RunLimits",
    "ServerReport",
    "Summary",
    "TargetError",
    "group_by",
    "read_jsonl",
    "run_closed_loop",
    "run_open_loop",
    "run_plan",
    "summarise",
    "write_jsonl",
]
