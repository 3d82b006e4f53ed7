"""Load tests of a cluster, as any client sees it: OpenAI-compatible HTTP or Baton's gRPC.

The life of a run:

1. `scenario.Scenario` says what to send; it alone, with its seed, determines every request (`plan.Plan`).
2. `run.run` starts generator processes (`generator`), each with its share of the plan.
3. In each, `pacer.Pacer` keeps the planned times whatever the server does, and a target
   (`targets/`) sends the request and notes each token in a `record.Record`.
4. `measures.measure` turns records into figures, `verify` checks the answers, `leftovers` the blocks,
   and `report/` draws the page.
"""
