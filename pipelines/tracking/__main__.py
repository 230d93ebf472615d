"""Sends to MLflow: `upload` (`vapi upload`) what was kept while the server was away, `follow` what a stage reports."""

import argparse
import sys

from pipelines.messages import one_message
from pipelines.tracking.following import serve
from pipelines.tracking.journal import JOURNALS, all_journals
from pipelines.tracking.runs import upload


@one_message
def send_kept() -> None:
    """Sends what is not sent yet. Exit code 1 where some of it could not be sent."""
    journals, damaged = all_journals(JOURNALS)
    result = upload([journal for journal in journals if not journal.state()["uploaded"]])
    problems = damaged + result.problems
    for problem in problems:
        print(f"error: not sent: {problem}", file=sys.stderr)
    if result.away is not None:
        sys.exit(f"error: {result.away.replace('server is', 'server is still', 1)}")
    if problems:
        sys.exit(1)


@one_message
def main() -> int:
    parser = argparse.ArgumentParser(description="Sends metrics that were kept while the tracking server was away.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="upload")
    commands.add_parser("upload", help="sends what is not sent yet")
    commands.add_parser("follow")  # for stages: sends while they work
    if parser.parse_args().command == "follow":
        serve()
        return 0
    return send_kept()


if __name__ == "__main__":
    sys.exit(main())
