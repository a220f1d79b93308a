"""Scripts that run in several processes of this machine at once."""

import subprocess
import sys

#: After this line of a script its process waits for all others; what it imports before costs no time of the race.
TOGETHER = "me = int(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"


def run_together(prepare: str, body: str, count: int = 2) -> list[list[str]]:
    """Run a script in several processes that start together.

    Args:
        prepare: What each process does before all start, such as imports.
        body: What they do together; ``me`` is the number of the process, from 0.
        count: Of processes.

    Returns:
        The words that each of them printed.
    """
    source = f"import sys\n{prepare}\n{TOGETHER}{body}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", source, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    finished = [process.communicate(timeout=120) for process in running]
    for process, (_, errors) in zip(running, finished, strict=True):
        assert process.returncode == 0, errors
    return [out.split() for out, _ in finished]
