"""Fuzzes a server of its own with Schemathesis, over the server's own OpenAPI document: `./scripts/fuzz --help`.

The server is a real process with real engines and a fake upstream. Two users, `ada` and `bob`, must not see each other's objects, and
are given both's; what they are refused, `warden` does, an administrator. Once more everything is done as `warden`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.e2e.cluster import cluster
from tests.e2e.test_serve import ROOT
from tests.fuzz.house import Fuzzed, furnish, unharmed

CONFIG = """\
checks.object_level_authorization.enabled = true
checks.positive_data_acceptance.enabled = false  # a schema cannot say everything: that an agent exists, or a text has no NUL
checks.negative_data_rejection.enabled = false  # OpenAI's protocol takes more than its document says
checks.missing_required_header.enabled = false  # no header is required but the credential, which `ignored_auth` looks at
checks.use_after_free.enabled = true

[auth.wfc]
path = "users.json"
peers = ["ada", "bob"]
"""
SCENARIOS = 30
"""How many the stateful phase is expected to try at once. It ends, without a word, when an answer is not what it was at the first try,
as happens with a server that remembers; so it is begun again, with other seeds, until there may have been as many as were asked for."""


def arguments(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own, and what goes to Schemathesis as it is."""
    parser = argparse.ArgumentParser(prog="./scripts/fuzz", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--max-examples", type=int, default=300, help="cases per operation and phase (%(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of an earlier run, to repeat it")
    parser.add_argument("--deterministic", action="store_true", help="the same cases each time, whatever the seed")
    parser.add_argument("--as", dest="who", choices=["users", "warden", "both"], default="both")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--stay", action="store_true", help="keep the server until Enter, to try the printed commands")
    parser.epilog = (
        "Everything else goes to Schemathesis, such as --include-path /SendMessage; see `schemathesis run --help`."
    )
    return parser.parse_known_args(given)


async def fuzz(given: Sequence[str], folder: Path) -> int:
    """The number of passes that failed."""
    options, rest = arguments(given)
    failed = 0
    async with cluster(folder, 1, WORKERS="1") as found:
        server = found.servers[0]
        fuzzed = await furnish(found, server)
        prepare(folder, fuzzed)
        for who in ("users", "warden") if options.who == "both" else (options.who,):
            for phases, seed in passes(options):
                status = await run(folder, server.url, who, phases, seed, options, rest)
                failed += status != 0
        if failed and options.stay:
            await asyncio.to_thread(input, f"The server is at {server.url} until you press Enter.")
        await unharmed(found, server, fuzzed)
    return failed


def passes(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """The phases that one process goes through, and its seed."""
    phases = options.phases.split(",")
    if others := [phase for phase in phases if phase != "stateful"]:
        yield ",".join(others), options.seed
    if "stateful" in phases:
        times = 1 if options.deterministic else -(-options.max_examples // SCENARIOS)
        yield from (("stateful", options.seed + number) for number in range(times))


def prepare(folder: Path, fuzzed: Fuzzed) -> None:
    """Write what Schemathesis and the hooks read."""
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}
        for name, key in fuzzed.keys.items()
    ]
    (folder / "users.json").write_bytes(msgspec.json.encode({"auth": users}))
    (folder / "fuzzed.json").write_bytes(msgspec.json.encode(fuzzed))
    for who, user in (("users", ""), ("warden", 'user = "warden"\n')):
        (folder / f"{who}.toml").write_text(CONFIG + user)


async def run(
    folder: Path, url: str, who: str, phases: str, seed: int, options: argparse.Namespace, rest: Sequence[str]
) -> int:
    """Schemathesis' exit status; what it found is printed, and how to repeat it."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", f"{who}.toml", "run", f"{url}/openapi.json"]
    chosen = ["--seed", str(seed), "--max-examples", str(options.max_examples), "--phases", phases]
    fixed = "--workers 1 --no-color --generation-allow-x00 true --output-sanitize false"
    always = "--generation-deterministic" if options.deterministic else "--generation-database=none"
    environ = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command,
        *fixed.split(),
        always,
        "--request-timeout",
        "30",
        "--continue-on-failure",
        *chosen,
        *rest,
        cwd=folder,
        env=environ,
    )
    status = await process.wait()
    if status:
        repeat = [*chosen, *(["--deterministic"] if options.deterministic else []), *rest]
        sys.stdout.write(f"\nTo repeat it: ./scripts/fuzz --as {who} {shlex.join(repeat)}\n")
    return status


def main() -> int:
    """The number of failed passes."""
    with tempfile.TemporaryDirectory(prefix="chattable-fuzz-", ignore_cleanup_errors=True) as folder:
        return asyncio.run(fuzz(sys.argv[1:], Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
