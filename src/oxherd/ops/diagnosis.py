"""Why a deployment is not up, from its status and its logs: one of a few causes, each with its fix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

SHOWN = 12  # lines that end with the one that says why
AFTER = 3  # lines behind it that may belong to it
STARTS = ("Starting Container",)  # what Railway writes before each start of the process


class Cause(StrEnum):
    """What kind of thing is wrong. Each has an exit code of its own."""

    BUILD = "build error"
    VARIABLE = "missing variable"
    IMPORT = "import error"
    HEALTHCHECK = "port or healthcheck"
    MEMORY = "out of memory"
    CRASH = "crash loop"
    REDIS = "no connection to Redis"
    POSTGRES = "no connection to Postgres"
    VERIFICATION = "verification failed"
    NOT_RUN = "was not run, or not to its end"


EXIT_CODES = {
    Cause.BUILD: 10,
    Cause.VARIABLE: 11,
    Cause.IMPORT: 12,
    Cause.HEALTHCHECK: 13,
    Cause.MEMORY: 14,
    Cause.CRASH: 15,
    Cause.REDIS: 16,
    Cause.POSTGRES: 16,
    Cause.VERIFICATION: 17,
    Cause.NOT_RUN: 18,
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong, and what to do.

    Attributes:
        cause: its kind.
        summary: what is wrong here, in one sentence.
        fix: what to do.
        log: `build` or `deploy`, where the lines are from; empty where there are none.
        lines: the last ones up to the one that says why.
    """

    cause: Cause
    summary: str
    fix: str
    log: str = ""
    lines: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What a command returns that found this."""
        return EXIT_CODES[self.cause]

    @property
    def text(self) -> str:
        """It for people."""
        shown = [
            f"Cause: {self.cause} (exit code {self.exit_code}): {self.summary}",
            f"Fix:   {self.fix}",
            *self.quoted,
        ]
        return "\n".join(shown)

    @property
    def quoted(self) -> tuple[str, ...]:
        """The lines for people, with where they are from."""
        if not self.lines:
            return ()
        whose = "the build's log" if self.log == "build" else "what the process said"
        return (f"The last lines of {whose}:", *(f"  | {line}" for line in self.lines))


@dataclass(frozen=True, slots=True)
class Rule:
    """A line that says why.

    Attributes:
        cause: what it means.
        pattern: what to look for; its groups fill the braces of the other two.
        summary, fix: of the diagnosis.
    """

    cause: Cause
    pattern: str
    summary: str
    fix: str


MEMORY = Rule(
    Cause.MEMORY,
    r"OOMKilled|[Oo]ut of memory|oom-kill|signal: killed|(?:code|status):? 137\b|^Killed$|^MemoryError\b",
    "the kernel or the platform ended the process: it used more memory than it may",
    "give the service more memory, or lower JOB_CONCURRENCY; where it grows for hours, look for what handlers keep",
)

# The first that fits a line of the build is why. What is special comes before what is general.
BUILD_RULES = (
    Rule(
        Cause.MEMORY,
        MEMORY.pattern,
        "the build used more memory than it may",
        "build less at once, or use a prebuilt image",
    ),
    Rule(
        Cause.BUILD,
        r"unable to generate a build plan|could not determine how to build|No start command (?:could be|was) found",
        "the builder found nothing it knows how to build or start",
        "add a Dockerfile, or set the service's root directory to the folder with pyproject.toml",
    ),
    Rule(
        Cause.BUILD,
        r"No matching distribution found for (?P<what>\S+)",
        "pip found no version of {what} that fits",
        "check its name, version and the image's Python in requirements.txt or pyproject.toml",
    ),
    Rule(
        Cause.BUILD,
        r"No solution found when resolving dependencies",
        "the dependencies contradict one another",
        "run `uv lock` where you develop, and commit uv.lock",
    ),
    Rule(
        Cause.BUILD,
        r"lockfile .*needs to be updated|lock ?file .*(?:not up.to.date|out of date|out of sync)",
        "the lock file does not fit the project any more",
        "run `uv lock` (or your package manager's), and commit the lock file",
    ),
    Rule(
        Cause.BUILD,
        r"failed to (?:calculate checksum|compute cache key).*?\"?(?P<what>/[^\s\":]+)\"?: not found|"
        r"COPY failed: .*?(?P<what2>\S+): no such file",
        "the Dockerfile copies a file that is not in the repository: {what}",
        "commit it, check .dockerignore, and the service's root directory",
    ),
    Rule(
        Cause.BUILD,
        r"Dockerfile.*(?:does not exist|no such file|not found)",
        "there is no Dockerfile at the place that the service names",
        "check the service's root directory and Dockerfile path",
    ),
    Rule(
        Cause.BUILD,
        r"failed to (?:resolve source metadata for|load metadata for) (?P<what>\S+?):? ",
        "the base image can't be fetched: {what}",
        "check its name and tag, and whether its registry is up and lets Railway in",
    ),
    Rule(
        Cause.BUILD,
        r"process \"(?P<what>.+?)\" did not complete successfully: exit code: \d+",
        "a command of the build failed: {what}",
        "run `docker build .` where you develop; its own message is in the lines below",
    ),
    Rule(
        Cause.BUILD,
        r"^(?:\S+ )?(?:ERROR|error|✖|npm ERR!).+|[Bb]uild failed",
        "the build failed",
        "run the build where you develop; its own message is in the lines below",
    ),
)

NAMES = r"[A-Z][A-Z0-9_]{2,}"

# The same for what the process says.
START_RULES = (
    Rule(
        Cause.VARIABLE,
        rf"^- (?P<what>{NAMES}) (?:\(or [^)]+\) )?(?:is missing|must|can't)",
        "a variable is missing or malformed: {what}",
        "`oxherd env check` lists them all; set it with `oxherd env push`",
    ),
    Rule(
        Cause.VARIABLE,
        rf"^KeyError: '(?P<what>{NAMES})'$|"
        rf"(?:[Ee]nvironment variable|[Vv]ariable) [`'\"]?(?P<what2>{NAMES})[`'\"]? "
        r"(?:is )?(?:not set|missing|required)",
        "your code reads a variable that is not set: {what}",
        "set it with `oxherd env push`",
    ),
    Rule(
        Cause.IMPORT,
        r"ModuleNotFoundError: No module named '(?P<what>[^']+)'|imports '(?P<what2>[^']+)', which is not installed|"
        r"Cannot find module '(?P<what3>[^']+)'",
        "a module is not in the image: {what}",
        "add the package to the dependencies, or the folder to the image, and commit the lock file",
    ),
    Rule(
        Cause.IMPORT,
        r"ImportError: (?P<what>.+)",
        "an import failed: {what}",
        "check that the versions in the lock file fit together",
    ),
    Rule(
        Cause.IMPORT,
        r"^Error: (?P<what>--app .+)",
        "your app could not be loaded: {what}",
        "name it as module:herd, and run the worker in the folder that has the module",
    ),
    Rule(
        Cause.IMPORT,
        r"executable [`'\"]?(?P<what>\S+?)[`'\"]? (?:could not be found|not found)|"
        r"exec:? \"(?P<what2>[^\"]+)\": (?:executable file not found|stat .*no such file)|: (?P<what3>\S+): not found$",
        "the start command names a program that is not in the image: {what}",
        "check the service's start command; leave it empty to use the Dockerfile's",
    ),
    MEMORY,
    Rule(
        Cause.HEALTHCHECK,
        r"[Aa]ddress already in use|EADDRINUSE|permission denied.*bind|bind.*[Pp]ermission denied",
        "the port can't be bound",
        "listen on PORT as Railway sets it, once per container",
    ),
    Rule(
        Cause.POSTGRES,
        r"(?:^|\W)Postgres at |asyncpg\.|psycopg|password authentication failed for user|SASL authentication failed|"
        r"remaining connection slots|Supabase at |: Supabase ",
        "the worker can't use its database",
        "`oxherd env check --probe` tries it; Railway has no IPv6 to the outside unless you allow it, so use "
        "Supabase's pooler, not its direct host",
    ),
    Rule(
        Cause.REDIS,
        r"Redis at |Redis (?:went away|closed|did not answer|does not answer)|redis\.exceptions\.|redis\.lost|"
        r"\b(?:NOAUTH|WRONGPASS|MISCONF|LOADING)\b|connecting to \S+:6379|to Redis broke",
        "the worker can't use Redis",
        "`oxherd env check --probe` tries it; is the Redis service up, and does REDIS_URL name its private host?",
    ),
)

UNHEALTHY = r"never became healthy|[Hh]ealthcheck fail|[Hh]ealth check fail|failed with service unavailable"


def diagnose(
    status: str,
    *,
    failed_step: str = "",
    build: Sequence[str] = (),
    started: Sequence[str] = (),
    instances: Sequence[str] = (),
) -> Diagnosis:
    """Say why.

    Parameters:
        status: the deployment's, as Railway names it.
        failed_step: the stage that Railway says went wrong, such as BUILD_IMAGE or HEALTHCHECK, or empty.
        build: the build's log, oldest line first. What Railway says of the healthcheck is in it.
        started: what the process said, oldest line first.
        instances: the statuses of the replicas.
    """
    build, started = _lines(build), _last_start(_lines(started))
    if status in NOT_RUN:
        return Diagnosis(Cause.NOT_RUN, *NOT_RUN[status])
    unhealthy = failed_step == "HEALTHCHECK" or _find(UNHEALTHY, build) is not None
    if not unhealthy and (failed_step in {"SNAPSHOT_CODE", "BUILD_IMAGE", "PUBLISH_IMAGE"} or not started):
        return _by_rules(BUILD_RULES, build, "build") or Diagnosis(
            Cause.BUILD, "the build failed", "its log is `oxherd deploy logs --build`", "build", _end(build)
        )
    found = _by_rules(START_RULES, started, "deploy")
    if found is not None:
        return found
    if unhealthy:
        in_build = _find(UNHEALTHY, build) is not None
        shown = ("build", _end(build)) if in_build else ("deploy", _end(started))
        return Diagnosis(
            Cause.HEALTHCHECK,
            "the process is up, but its healthcheck did not answer 200 in time",
            "listen on 0.0.0.0 and PORT, let the service's healthcheck path be /health, and its timeout be longer "
            "than a start takes; /health says which check is not ok",
            *shown,
        )
    pre = "the pre-deploy command failed" if failed_step == "PRE_DEPLOY_COMMAND" else ""
    if status == "SUCCESS":
        pre = "the process ended by itself, without an error"
    again = any(each in {"RESTARTING", "CRASHED"} for each in instances) or status == "CRASHED"
    return Diagnosis(
        Cause.CRASH,
        pre or ("the process ends again and again" if again else "the process ended"),
        "the lines below are its last words; run the same image with the same variables where you develop",
        "deploy",
        _end(started),
    )


NOT_RUN = {
    "SKIPPED": (
        "Railway skipped it: nothing that the service watches has changed",
        "change the service's watch paths, or deploy it all the same: `oxherd deploy redeploy`",
    ),
    "NEEDS_APPROVAL": (
        "it waits for somebody's approval",
        "approve it in Railway's dashboard, then `oxherd deploy watch`",
    ),
    "REMOVED": ("it was removed, or a newer one has replaced it", "`oxherd deploy status` shows what runs now"),
    "REMOVING": ("it is being removed", "`oxherd deploy status` shows what runs now"),
    "SLEEPING": (
        "it was put to sleep, and a sleeping worker takes no jobs",
        "switch app sleeping off in the service's settings",
    ),
}  # fmt: skip


def _lines(log: Sequence[str]) -> list[str]:
    """The log's lines, as they would stand in a terminal: colours and empty lines away."""
    return [
        plain
        for message in log
        for line in message.splitlines()
        if (plain := re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip())
    ]


def _last_start(lines: list[str]) -> list[str]:
    """What was said since the process was last started, if it said anything."""
    for place in range(len(lines) - 1, -1, -1):
        if lines[place].startswith(STARTS) and lines[place + 1 :]:
            return lines[place + 1 :]
    return lines


def _by_rules(rules: Sequence[Rule], lines: Sequence[str], log: str) -> Diagnosis | None:
    for rule in rules:
        place = _find(rule.pattern, lines)
        if place is not None:
            what = ", ".join(_named(rule, lines) if rule.cause is Cause.VARIABLE else _named(rule, [lines[place]]))
            return Diagnosis(
                rule.cause, rule.summary.replace("{what}", what), rule.fix, log, _end(lines[: place + 1 + AFTER])
            )
    return None


def _named(rule: Rule, lines: Sequence[str]) -> list[str]:
    """What the lines name, each once."""
    found = (re.search(rule.pattern, line.strip()) for line in lines)
    return list(dict.fromkeys(value for each in found if each for value in each.groupdict().values() if value))


def _find(pattern: str, lines: Sequence[str]) -> int | None:
    """The place of the last line that fits."""
    compiled = re.compile(pattern)
    return next((n for n in range(len(lines) - 1, -1, -1) if compiled.search(lines[n].strip())), None)


def _end(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(lines[-SHOWN:])
