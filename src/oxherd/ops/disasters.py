"""The disasters that Oxherd is prepared for: how each shows, and the runbook's commands in order. Data only.

docs/disaster-recovery.md is made from this, drills run these commands, and `oxherd drill plan` shows them with the
figures that were last measured: so what is written down is what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Do:
    """A step of a runbook.

    Attributes:
        words: what is done and why, for a person.
        commands: shell commands; values that differ from place to place are variables.
        codes: exit codes with which they may end.
        elsewhere: whether it is done at the platform, so that a drill on one machine can't.
    """

    words: str
    commands: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Disaster:
    """Something that goes wrong as a whole.

    Attributes:
        name: of the drill, and of the section in the documentation.
        component: what it strikes, as the recovery plan's inventory has it.
        title: in words.
        shows: how it is noticed.
        lost: what is gone, in words.
        steps: of the runbook, in order.
        production: whether its drill breaks nothing and may run where it counts.
    """

    name: str
    component: str
    title: str
    shows: str
    lost: str
    steps: tuple[Do, ...]
    production: bool = False

    @property
    def commands(self) -> tuple[str, ...]:
        """All commands, in order."""
        return tuple(command for step in self.steps for command in step.commands)


NEW_JOB = 'oxherd enqueue oxherd.echo \'{"from": "the runbook"}\' --wait'
PROVEN = Do("A real job proves that work is done again.", (NEW_JOB,))

DISASTERS: tuple[Disaster, ...] = (
    Disaster(
        "prove-worker",
        "workers",
        "Nobody knows whether jobs are run",
        "A deploy has just ended, or it has been quiet for long.",
        "Nothing: this only looks, with a job that is removed again.",
        (Do("Health, version, a real job, the queue's age and its failures.", ("oxherd verify ${WORKER_URL:-}",)),),
        production=True,
    ),
    Disaster(
        "prove-backup",
        "backups",
        "Nobody knows whether the backup restores",
        "The alert backup-unproven, or the last proof is older than a week.",
        "Nothing: it is restored into a scratch database that is thrown away.",
        (Do("Restore it, compare it, take the time.", ("oxherd backup verify latest",)),),
        production=True,
    ),
    Disaster(
        "worker-down",
        "workers",
        "A worker died",
        "The alerts silent-worker, queue-age or no-progress; the platform shows a crash or an exit code.",
        "Nothing. Its jobs go on elsewhere once their leases have run out, after 30 s at most, from their last step.",
        (
            Do(
                "Look who is there. `seen` says how long ago a worker gave its last sign of life.",
                ("oxherd alerts list",),
            ),
            Do(
                "Start another where none is left, or let the platform do it.",
                ("oxherd deploy redeploy",),
                elsewhere=True,
            ),
            Do("What it ran is taken over without being asked.", ("oxherd jobs list --state active",)),
            PROVEN,
        ),
    ),
    Disaster(
        "bad-deploy",
        "workers",
        "A deploy does not work",
        "`oxherd deploy watch` ends with another code than 0; `/health` is 503 or answers nobody.",
        "Nothing: jobs wait, and what the old version ran was handed back.",
        (
            Do("See why. The diagnosis names the cause and its fix.", ("oxherd deploy watch",), elsewhere=True),
            Do(
                "Deploy the commit before it. A rollback brings back the old variables, too, also a secret that was "
                "revoked since: across a rotation deploy the old commit instead.",
                ("oxherd deploy rollback",),
                elsewhere=True,
            ),
            Do("Nothing is lost while no worker runs: jobs wait.", ("oxherd jobs list --state wait",)),
            PROVEN,
        ),
    ),
    Disaster(
        "redis-down",
        "queue",
        "Redis is away, its data is not lost",
        "`/health` is 503, workers log `redis.lost`.",
        "Nothing, where Redis writes an append-only file; with `appendfsync everysec`, what came in the last second.",
        (
            Do(
                "Bring it back. Workers connect by themselves, and what they have finished meanwhile is told then.",
                elsewhere=True,
            ),
            Do("The queue is as it was.", ("oxherd jobs list --state wait", "oxherd gate status")),
            PROVEN,
        ),
    ),
    Disaster(
        "database-down",
        "database",
        "Postgres is away, its data is not lost",
        "The alert store-away; `/health` says `store`.",
        "Nothing. Steps and results wait in the workers' memory; no job counts as finished before its result is kept.",
        (
            Do("Bring it back: what waited is written at once.", elsewhere=True),
            Do("The tables are there.", ("oxherd db status",)),
            PROVEN,
        ),
    ),
    Disaster(
        "provider-down",
        "model service",
        "The model service is away",
        "The alerts failure-spike and slo-burn-fast; errors of the kind ModelUnreachable.",
        "Nothing. Jobs try again by their backoff, and those whose attempts are used up are dead letters.",
        (
            Do(
                "While it lasts, stop taking jobs, so that no attempts are spent.",
                ("oxherd gate close --reason 'the model service is away'",),
            ),
            Do("When it is back, go on.", ("oxherd gate open",)),
            Do(
                "Put what failed meanwhile back on the queue, and have what waits for another try tried now.",
                ("oxherd jobs replay --all --yes", "oxherd jobs promote --begun --yes"),
            ),
            PROVEN,
        ),
    ),
    Disaster(
        "runaway-spend",
        "model service",
        "Money runs away",
        "The alerts spend-spike or intake-stopped; BUDGET_DAILY_USD closes the gate by itself.",
        "Nothing: jobs wait.",
        (
            Do("Stop. Jobs that run end, no new one begins.", ("oxherd gate close --reason 'money runs away'",)),
            Do("See who spends it.", ("oxherd spend report --by agent", "oxherd spend report --by tenant")),
            Do("Give caps, or higher ones, and restart the workers with them.", ("oxherd env push",), elsewhere=True),
            Do("Go on, and put back what the cap ended.", ("oxherd gate open", "oxherd jobs replay --all --yes")),
            PROVEN,
        ),
    ),
    Disaster(
        "redis-lost",
        "queue",
        "Redis has lost its data",
        "`oxherd jobs list` is empty, producers' jobs never end; workers are idle and healthy.",
        "Jobs that were added after the last backup. Steps are in Postgres: what was paid for is not paid again.",
        (
            Do(
                "Keep workers from taking jobs while the queue is put back.",
                ("oxherd gate close --reason 'the queue is being restored'",),
            ),
            Do(
                "Put the queue back. Jobs that ended since are not run again.",
                ('oxherd backup restore latest --queue --confirm "$QUEUE"',),
            ),
            Do("Go on.", ("oxherd gate open",)),
            PROVEN,
        ),
    ),
    Disaster(
        "database-lost",
        "database",
        "Postgres has lost its data",
        "The alert store-away; `oxherd db status` says that tables are missing.",
        "Runs and steps since the last backup: jobs that are under way pay for those steps again.",
        (
            Do(
                "Keep workers from taking jobs. What they run waits for the database.",
                ("oxherd gate close --reason 'the database is being restored'",),
            ),
            Do(
                "Fill the empty or missing database from the newest backup.",
                ('oxherd backup restore latest --confirm "$DATABASE"',),
            ),
            Do("Bring its tables to this version, then go on.", ("oxherd db migrate", "oxherd gate open")),
            PROVEN,
        ),
    ),
    Disaster(
        "bad-migration",
        "database",
        "A migration has destroyed data",
        "Errors of the database in every run; the alert store-away.",
        "Runs and steps since the backup. The broken database is kept under another name.",
        (
            Do("Keep workers from taking jobs.", ("oxherd gate close --reason 'the database is being restored'",)),
            Do(
                "Restore beside the live database and let the backup take its name; what was live stays under another.",
                ('oxherd backup restore latest --confirm "$DATABASE"',),
            ),
            Do("Bring its tables to this version, then go on.", ("oxherd db migrate", "oxherd gate open")),
            PROVEN,
        ),
    ),
    Disaster(
        "backup-damaged",
        "backups",
        "A backup can't be restored",
        "The alert backup-unproven; `oxherd backup verify` ends with 1.",
        "Nothing yet: the backups before it are there.",
        (
            Do("See what is wrong with the newest.", ("oxherd backup verify latest",), codes=(1,)),
            Do("Prove an older one.", ("oxherd backup list", 'oxherd backup verify "$OLDER"')),
            Do("Take a new one, and prove that.", ("oxherd backup create", "oxherd backup verify latest")),
            PROVEN,
        ),
    ),
    Disaster(
        "key-leaked",
        "keys",
        "A key has leaked",
        "`oxherd audit secrets` finds it, or somebody tells you.",
        "Nothing; what was done with it meanwhile is in the service's own log.",
        (
            Do(
                "See what leaked, and where. The report has fingerprints, no values.",
                ('oxherd audit secrets "${REPOSITORY:-.}" --json > leaked.json',),
                codes=(1,),
            ),
            Do(
                "Replace all of it, worst first. Services on Railway are switched by it. For what runs elsewhere it "
                "stops and names the file that has the new value.",
                ("oxherd rotate --leaked leaked.json --yes",),
                codes=(0, 1),
            ),
            Do(
                "Where it stopped: set what the file has, restart what uses it, and go on. Again until all of it is "
                "replaced, and each old value is proven dead.",
                ("oxherd rotate --leaked leaked.json --resume --done --yes",),
                codes=(0, 1),
            ),
            Do(
                "Look for what you did not do yourself; incident/leaked-secret.md says what else there is to look at.",
                ("oxherd runs list", "oxherd spend report"),
            ),
            PROVEN,
        ),
    ),
    Disaster(
        "key-revoked",
        "keys",
        "The model service no longer takes the key",
        "The alerts failure-spike and slo-burn-fast; jobs fail with `the model service refused the key`.",
        "Nothing. Jobs that call a model fail at once, whatever attempts they have left, and are dead letters.",
        (
            Do("Stop taking jobs: each would fail.", ("oxherd gate close --reason 'the key is revoked'",)),
            Do(
                "Make another key with the limits of the old one, and switch to it. Where the service has deleted the "
                "old one, make the new one there by hand, and `oxherd env push` it. No test job: the gate is closed.",
                ("oxherd rotate OPENROUTER_API_KEY --no-test-job --yes",),
                codes=(0, 1),
            ),
            Do(
                "Where it stopped because workers run elsewhere than on Railway: set what the file has, restart them, "
                "and go on.",
                ("oxherd rotate OPENROUTER_API_KEY --resume --done --no-test-job --yes",),
            ),
            Do("Go on, and put back what failed meanwhile.", ("oxherd gate open", "oxherd jobs replay --all --yes")),
            PROVEN,
        ),
    ),
    Disaster(
        "region-lost",
        "everything",
        "Everything is gone but the backups",
        "Neither Redis nor Postgres nor a worker answers.",
        "What came after the last backup.",
        (
            Do(
                "Set up Redis, Postgres and the variables elsewhere: REDIS_URL, DATABASE_URL are new, ENCRYPTION_KEY "
                "and the keys of the backups are the old ones.",
                elsewhere=True,
            ),
            Do(
                "Fill the database, and bring its tables to this version.",
                ('oxherd backup restore latest --confirm "$DATABASE"', "oxherd db migrate"),
            ),
            Do("Put the queue back.", ('oxherd backup restore latest --queue --confirm "$QUEUE"',)),
            Do(
                "Deploy workers there and point the producers to the new Redis.",
                ("oxherd deploy watch",),
                elsewhere=True,
            ),
            PROVEN,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A step on the way to the right runbook.

    Attributes:
        words: the question, with the command that answers it.
        answers: each in words, and the disaster it means; any other leads to the next question.
    """

    words: str
    answers: tuple[tuple[str, str], ...]


# From what keeps everything from working to what keeps something from it: the first answer that fits is the cause.
QUESTIONS: tuple[Question, ...] = (
    Question(
        "Does anything answer: `oxherd alerts list`, `oxherd db status`, the workers' `/health`?",
        (("nothing, and the platform says that it is not back soon", "region-lost"),),
    ),
    Question("Is a key in the wrong hands?", (("yes, or it may be", "key-leaked"),)),
    Question("Is money running away (`oxherd spend report`)?", (("yes", "runaway-spend"),)),
    Question(
        "Does Redis answer (`oxherd jobs list`)?",
        (
            ("no, and its data is safe", "redis-down"),
            ("no, and it comes back empty; or it has no jobs, while producers wait for theirs", "redis-lost"),
        ),
    ),
    Question(
        "Does Postgres answer (`oxherd db status`)?",
        (
            ("no, and its data is safe", "database-down"),
            ("no, and its data is gone; or it says that tables are missing", "database-lost"),
            ("yes, and every run has errors of the database, or rows are wrong", "bad-migration"),
        ),
    ),
    Question(
        "Does a worker answer (`oxherd alerts list`)?",
        (("none since a deploy", "bad-deploy"), ("none, or one less", "worker-down")),
    ),
    Question(
        "Why do jobs fail (`oxherd jobs dead`)?",
        (("`the model service refused the key`", "key-revoked"), ("the model service is away", "provider-down")),
    ),
    Question("Does the newest backup restore (`oxherd backup verify`)?", (("no", "backup-damaged"),)),
)
