"""The command: ``python -m tests.fuzz [options]``, which ``make fuzz`` runs. Exits with 1 if anything was found."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zlib
from pathlib import Path

from tests.fuzz.targets import DICTIONARIES, TARGETS, found_cases, load

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
# A case takes milliseconds; one that takes so many seconds hangs.
HANGS = 20
# Between two lines about how it goes, in seconds.
REPORT_SECONDS = 10

# A line of libFuzzer, such as "#2048 NEW cov: 812 ft: 2301 corp: 190/21Kb lim: 4096 exec/s: 341 rss: 90Mb".
_STATUS = re.compile(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)\S* .*exec/s: (\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def main() -> int:
    arguments = _arguments()
    if arguments.replay:
        return _replay(arguments.replay, arguments.target)
    targets = arguments.target or list(TARGETS)
    seconds = max(1, arguments.seconds // len(targets))
    return max([_fuzz(target, seconds, arguments) for target in targets])


def _fuzz(target: str, seconds: int, arguments: argparse.Namespace) -> int:
    """Fuzz one target; return 1 if anything was found."""
    module = load(target)
    findings, corpus = arguments.findings / target, arguments.corpus / target
    findings.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in [*module.seeds(), *(it.read_bytes() for it in found_cases(target))]:
        (corpus / f"{zlib.crc32(seed):08x}").write_bytes(seed)
    before = set(findings.iterdir())
    dictionary = DICTIONARIES / f"{target}.txt"
    command = [
        sys.executable, "-m", "tests.fuzz.target", target, str(findings), str(corpus),
        f"-max_total_time={seconds}", f"-max_len={module.SIZE_MAX}", f"-timeout={HANGS}", f"-dict={dictionary}",
        f"-report_slow_units={HANGS}", f"-artifact_prefix={findings}/hang-", f"-seed={arguments.seed}",
        "-print_final_stats=1", "-rss_limit_mb=0",
    ]  # fmt: skip
    fuzzer = _Run(target)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr
        for line in process.stderr:
            fuzzer.hear(line)
    # What hangs, or ends the process, libFuzzer keeps by itself.
    found = {findings / kind for kind in fuzzer.kinds} | (set(findings.iterdir()) - before)
    print(
        f"{target}: {fuzzer.executions} executions in {seconds} s, coverage {fuzzer.coverage} edges and"
        f" {fuzzer.features} features, {fuzzer.corpus} cases kept, {len(found)} findings"
    )
    for path in sorted(found):
        print(f"  {path} ({path.stat().st_size} bytes)")
    if process.returncode and not found:
        print(f"{target}: the fuzzer failed with exit status {process.returncode}:\n{''.join(fuzzer.tail)}")
    return int(bool(found) or process.returncode != 0)


class _Run:
    """What libFuzzer says of a run."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.executions = self.coverage = self.features = self.corpus = 0
        self.kinds: set[str] = set()
        self.tail: list[str] = []
        self._told = 0

    def hear(self, line: str) -> None:
        self.tail = [*self.tail[-30:], line]
        if line.startswith("finding: "):
            self.kinds.add(line.removeprefix("finding: ").strip())
            print(f"{self._target}: {line}", end="", flush=True)
        elif status := _STATUS.match(line):
            executions, _, coverage, features, corpus, pace = status.groups()
            self.executions, self.coverage = int(executions), int(coverage)
            self.features, self.corpus = int(features), int(corpus)
            # By the pace, which is 0 at first, rather than by a clock: about once in REPORT_SECONDS.
            if int(pace) and self.executions - self._told >= REPORT_SECONDS * int(pace):
                self._told = self.executions
                words = f"{executions} executions, {pace} a second, coverage {coverage}, {corpus} cases kept"
                print(f"{self._target}: {words}", flush=True)
        elif final := _EXECUTIONS.match(line):
            self.executions = int(final[1])


def _replay(paths: list[Path], targets: list[str] | None) -> int:
    """Play cases once and say what is wrong with each. The folder of a case is its target, unless one is given."""
    failed = 0
    for path in paths:
        target = targets[0] if targets else path.absolute().parent.name
        if target not in TARGETS:
            print(f"{path}: its folder is no target; say --target, with one of {', '.join(TARGETS)}")
            return 2
        found = load(target).player()(path.read_bytes())
        failed += bool(found)
        print(f"{path}: {path.read_bytes()!r}")
        print("".join(f"  {it}\n" for it in found or ["nothing wrong"]), end="")
    return int(bool(failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=1800, help="how long, all targets together (default: 30 minutes)"
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="what to fuzz (default: all, one after the other)")
    parser.add_argument("--seed", type=int, default=0, help="of libFuzzer's randomness; 0 takes another each time")
    parser.add_argument("--findings", type=Path, default=CACHE / "findings", help="where cases go that went wrong")
    parser.add_argument("--corpus", type=Path, default=CACHE / "corpus", help="where cases are that reach more code")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="play these cases, and fuzz nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
