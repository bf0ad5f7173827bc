"""A git history with 28 secrets in the places where people leave them, and what only looks like one. All random."""

import base64
import gzip
import io
import json
import os
import secrets
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ENV = {
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.com", "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip
ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def alnum(size, letters=ALNUM):
    return "".join(secrets.choice(letters) for _ in range(size))


def openrouter():
    return "sk-or-v1-" + secrets.token_hex(32)


def jwt(role):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"iss": "supabase", "ref": alnum(20, "abcdefghijklmnopqrstuvwxyz"), "role": role, "iat": 1, "exp": 2 << 30}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.{secrets.token_urlsafe(32)}"


def pem():
    body = base64.encodebytes(secrets.token_bytes(1190)).decode()
    kind = "RSA PRIVATE KEY"
    return f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n"


def uuid():
    raw = secrets.token_hex(16)
    return "-".join((raw[:8], raw[8:12], "4" + raw[13:16], "a" + raw[17:20], raw[20:]))


@dataclass
class History:
    """A repository, what was planted in it (name and secret), and what must not be found."""

    folder: Path
    planted: dict[str, str]
    harmless: dict[str, str]


class Repository:
    def __init__(self, folder):
        self.folder = folder
        self.at = 1_780_000_000
        folder.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments, check=True):
        self.at += 60
        env = {**os.environ, **ENV, "GIT_AUTHOR_DATE": f"{self.at} +0000", "GIT_COMMITTER_DATE": f"{self.at} +0000"}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, env=env, check=check, capture_output=True, text=True).stdout

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, name, content, message=None):
        self.write(name, content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message or f"Add {name}")

    def delete(self, name):
        self.git("rm", "-q", name)
        self.git("commit", "-q", "-m", f"Remove {name}")


def plant(folder, *, filler=20):
    """Make the history.

    Parameters:
        folder: a new one.
        filler: how many commits that hold nothing.
    """
    repo, planted = Repository(folder), {}

    def new(name, value):
        planted[name] = value
        return value

    repo.commit("README.md", "# A shop\n")
    for number in range(filler):
        repo.commit(f"src/part_{number % 7}.py", f"def price_{number}(order):\n    return order.total * {number}\n")
    _keys_of_models(repo, new)
    _keys_of_services(repo, new)
    _other_files(repo, new)
    _off_the_path(repo, new)
    return History(folder, planted, _harmless(repo))


def _keys_of_models(repo, new):
    repo.commit(".env", f"OPENROUTER_API_KEY={new('openrouter: .env, deleted', openrouter())}\n")
    repo.delete(".env")
    repo.commit("deploy.yaml", f"value: {new('openrouter: bare YAML, replaced', openrouter())}\n")
    repo.commit("deploy.yaml", "value: from the vault\n")
    line = f"POST /chat 200 Authorization: Bearer {new('openrouter: log line', openrouter())}"
    repo.commit("logs/worker.log", f"12:00:01 {line}\n")
    cell = {"cell_type": "code", "source": [f'client = Client("{new("openrouter: notebook", openrouter())}")\n']}
    repo.commit("research.ipynb", json.dumps({"cells": [cell], "nbformat": 4}))
    held = f"OPENROUTER_API_KEY={new('openrouter: base64 in a k8s Secret', openrouter())}"
    packed = base64.b64encode(held.encode()).decode()
    repo.commit("k8s/secret.yaml", f"kind: Secret\ndata:\n  env: {packed}\n")
    repo.commit("notes.txt", f"the key is {new('openrouter: UTF-16', openrouter())}\n".encode("utf-16"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("app/.env", f"OPENROUTER_API_KEY={new('openrouter: zip', openrouter())}\n")
    repo.commit("backup.zip", archive.getvalue())
    repo.commit("claude.py", f'KEY = "{new("anthropic", f"sk-ant-api03-{secrets.token_urlsafe(70)[:93]}AA")}"\n')
    whole = f"sk-proj-{alnum(74)}T3BlbkFJ{alnum(74)}"
    repo.commit("gpt.py", f'OPENAI_API_KEY = "{new("openai", whole)}"\n')


def _keys_of_services(repo, new):
    repo.commit("supabase.ts", f'const key = "{new("supabase: service_role JWT", jwt("service_role"))}";\n')
    repo.commit("admin.ts", f'createClient(url, "{new("supabase: secret key", f"sb_secret_{alnum(31)}")}")\n')
    repo.commit("cache.py", f'url = "rediss://default:{new("redis URL", alnum(32))}@eu1-shop.upstash.io:6379"\n')
    repo.commit("db.py", f'url = "postgres://app:{new("postgres URL", alnum(24))}@db.shop.internal:5432/shop"\n')
    raw = base64.b64encode(secrets.token_bytes(32)).decode()
    repo.commit("compose.yaml", f"environment:\n  ENCRYPTION_KEY: {new('ENCRYPTION_KEY', raw)}\n")
    repo.commit("ci.sh", f"export RAILWAY_TOKEN={new('RAILWAY_TOKEN', uuid())}\n")
    repo.commit(
        "app.js",
        f'Sentry.init({{dsn: "https://{new("sentry DSN", secrets.token_hex(16))}@o9.ingest.us.sentry.io/45"}})\n',
    )
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    repo.commit(
        "aws.cfg", f"aws_access_key_id = {new('aws id', 'AKIA' + alnum(16, letters))}\n"
        f"aws_secret_access_key = {new('aws secret', base64.b64encode(secrets.token_bytes(30)).decode())}\n",
    )  # fmt: skip


def _other_files(repo, new):
    body = alnum(30)
    repo.commit("release.sh", f"GH_TOKEN={new('github PAT', _github(body))}\n")
    hook = f"T{alnum(10, ALNUM[26:])}/B{alnum(10, ALNUM[26:])}/{alnum(24)}"
    repo.commit(
        "alerts.py", f'post("https://hooks.slack.com/services/{new("slack webhook", hook.upper()[:24] + hook[24:])}")\n'
    )
    key = pem()
    new("private key", key.splitlines()[1])
    repo.commit("certs/dev.key", key)


def _github(body):
    import zlib

    number, check = zlib.crc32(body.encode()), ""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    while number:
        number, rest = divmod(number, 62)
        check = digits[rest] + check
    return f"ghp_{body}{check.rjust(6, '0')}"


def _off_the_path(repo, new):
    repo.git("checkout", "-q", "-b", "feature")
    repo.commit("feature.env", f"KEY={new('openrouter: unmerged branch', openrouter())}\n")
    repo.git("checkout", "-q", "main")
    repo.git("checkout", "-q", "-b", "gone")
    repo.commit("gone.env", f"KEY={new('openrouter: deleted branch', openrouter())}\n")
    repo.git("checkout", "-q", "main")
    repo.git("branch", "-q", "-D", "gone")
    repo.git("checkout", "-q", "-b", "side")
    repo.commit("side.txt", "side\n")
    repo.git("checkout", "-q", "main")
    repo.commit("main.txt", "main\n")
    repo.git("merge", "-q", "--no-commit", "--no-ff", "side")
    repo.commit("merged.env", f"KEY={new('openrouter: evil merge', openrouter())}\n", "Merge side")
    repo.delete("merged.env")
    repo.write("README.md", f"# A shop\n{new('openrouter: stash', openrouter())}\n")
    repo.git("stash", "-q")
    repo.git("commit", "-q", "--allow-empty", "-m", f"Try {new('openrouter: commit message', openrouter())}")
    repo.git("commit", "-q", "--allow-empty", "-m", "Go on")
    repo.git("tag", "-a", "v1", "-m", f"works with {new('openrouter: tag message', openrouter())}")
    packed = base64.b64encode(base64.b64encode(gzip.compress(openrouter_env(new).encode()))).decode()
    repo.commit("helm.yaml", f"release: {packed}\n")
    mangled = new("openrouter: mojibake from a word processor", openrouter())
    text = f"Dear team \u2013 the key is \u201c{mangled.replace('-', chr(0x2011))}\u201d\n"
    repo.commit("letter.txt", text.encode().decode("cp1252", errors="replace"))


def openrouter_env(new):
    return f"OPENROUTER_API_KEY={new('openrouter: gzip in base64 twice', openrouter())}\n"


def _harmless(repo):
    harmless = {
        "docs.md": "AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE and redis://default:password@localhost:6379",
        ".env.example": "OPENROUTER_API_KEY=sk-or-v1-your-key\nDATABASE_URL=postgresql://user:password@localhost/app",
        "template.py": 'url = f"postgres://{user}:{password}@{host}/db"\nkey = os.environ["ENCRYPTION_KEY"]',
        "lock.json": json.dumps({"integrity": "sha512-" + base64.b64encode(secrets.token_bytes(64)).decode()}),
        "hashes.txt": "\n".join(secrets.token_hex(32) for _ in range(20)),
        "ids.sql": "\n".join(f"insert into orders values ('{uuid()}');" for _ in range(20)),
        "logo.svg": f'<image href="data:image/png;base64,{base64.b64encode(secrets.token_bytes(900)).decode()}"/>',
        "public.pem": "-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(secrets.token_bytes(290)).decode()
        + "-----END PUBLIC KEY-----",
        "web.ts": f'createClient(url, "{jwt("anon")}"); createClient(url, "sb_publishable_{alnum(31)}")',
    }  # fmt: skip
    for name, content in harmless.items():
        repo.commit(name, content + "\n")
    return harmless


if __name__ == "__main__":
    print(json.dumps(plant(Path(sys.argv[1])).planted, indent=1))
