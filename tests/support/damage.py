"""Seeded damage to files, and checks of how commands refuse it."""

import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner, Result

from iusp.cli.main import main
from tests.support.local_servers import environment

LONGEST = 5000  # characters that an error message may have
HANG = 400  # seconds after which a command counts as hanging


def called(*arguments: object) -> Result:
    """Run a command in this process; an exception that it does not handle is in the result."""
    return CliRunner().invoke(main, [str(one) for one in arguments])


def apart(folder: Path, *arguments: object, memory: int) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own whose address space is limited to `memory` bytes."""
    return subprocess.run(
        [sys.executable, "-m", "iusp", *map(str, arguments)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )


def is_one_line(text: str) -> bool:
    """Return whether the text is one short, printable error line of `iusp`."""
    return text.endswith("\n") and text[:-1].isprintable() and text.startswith("iusp: ") and len(text) < LONGEST


def refusal(done: Result | subprocess.CompletedProcess[str]) -> str:
    """Return the error line of a command; assert that it is the only one, with exit status 2."""
    if isinstance(done, Result):
        assert isinstance(done.exception, SystemExit), repr(done.exception)
        status = done.exit_code
    else:
        status = done.returncode
    assert status == 2, done.stdout + done.stderr
    assert is_one_line(done.stderr), done.stderr[:LONGEST]
    return done.stderr


def mutated(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies: bytes replaced, bits flipped, parts removed, doubled, zeroed or inserted."""
    chance = random.Random(seed)
    for number in range(count):
        start = chance.randrange(len(content))
        end = min(len(content), start + chance.choice([1, 2, 4, 16, 100]))
        part, noise = content[start:end], chance.randbytes(end - start)
        flipped = bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
        yield (
            content[:start]
            + [noise, flipped, b"", part + part, bytes(len(part)), part + noise][number % 6]
            + content[end:]
        )
