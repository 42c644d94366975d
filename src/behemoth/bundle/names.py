"""What the files of a decision are called: the same in a run (gate/) and in a bundle (release/).

    policy.toml  evidence/  verdict.json  verdict.dsse.json  verdict.html  approvals/*.json  log.jsonl

Whoever decides, draws, packs and verifies needs these names, on several floors; so they stand on the lowest.
"""

from __future__ import annotations

LOG, POLICY, EVIDENCE, APPROVALS = "log.jsonl", "policy.toml", "evidence", "approvals"
VERDICT, SIGNED, PAGE = "verdict.json", "verdict.dsse.json", "verdict.html"
