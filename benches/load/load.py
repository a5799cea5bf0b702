"""Drives the load comparison; started by run.sh, which builds the programs.

Everything runs on 127.0.0.1 and is ended by this script, whatever happens. Measured for every
target in turn, round after round, so that a disturbance of the machine hits all alike:

  req/s      as wrk counts them (event streams: streams/s)
  CPU us/req user and system time of the proxy process over the round, until its usage records are
             in the database, divided by the requests of the round
  p50, p99   latency of whole requests, as the load client measures it; with --matrix also what
             that is above direct, and for event streams the same of the first delta
  RSS        of the proxy process, idle before the first round and after the last; KiB/stream is
             what its peak in a round was above that, divided by the streams at once

Medians over the rounds; "spread" is (highest - lowest) / median of the CPU time per request.
"others" is the CPU time that processes other than the load, the proxy and the fake provider used
meanwhile: with more than a few percent there, believe ratios of CPU time or --instructions only.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
KEY = "tg-load-0123456789abcdef"
# Its group has two accounts; the one that is always chosen first, the provider answers with an error.
FAILING_KEY = "tg-fail-0123456789abcdef"
TICK = os.sysconf("SC_CLK_TCK")
PATH = "/v1/responses"
BASE = "bare"


def size(text):
    """1024, 1K, 64K+1, 1M in bytes."""
    match = re.fullmatch(r"(\d+)([KM]?)(?:\+(\d+))?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 1024, 64K+1 and 1M are")
    scale = {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2]]
    return int(match[1]) * scale + int(match[3] or 0)


def arguments():
    parser = argparse.ArgumentParser(
        prog="benches/load/run.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="rounds, each with every target (default 5)")
    add("--seconds", type=int, default=5, help="length of a round per target (default 5)")
    add("--connections", type=int, default=64, help="wrk's connections (default 64)")
    add("--body-size", type=size, default=1024, help="bytes of the request body: 1024, 1K, 64K+1, 1M (default 1K)")
    add("--stream", type=int, default=0, metavar="N", help="ask for event streams of N deltas")
    add("--threads", type=int, default=os.cpu_count(), help="worker threads of each proxy (default: all cores)")
    add("--accounts", type=int, default=5, help="accounts of Tollgate's group (default 5)")
    add("--log-level", default="info", help="Tollgate's log level; its log goes to /dev/null (default info)")
    add("--targets", default="direct,bare,tollgate", help="which, in order")
    add("--other", action="append", default=[], metavar="NAME=URL[,HEADER: VALUE]",
        help="measure a server that is already running, too; its CPU time is not known")
    add("--matrix", action="store_true",
        help="everything in turn: event streams, three sizes of bodies at 1, 16 and 64 connections, failover on half of the requests")
    add("--quick", action="store_true", help="with --matrix: small and short, to see that all of it works")
    add("--instructions", type=int, default=0, metavar="N",
        help="instead of rounds: user-space instructions per request over N requests, counted by callgrind (free of noise; kernel work is not in it)")
    add("--keep", metavar="DIR", help="with --instructions: keep callgrind's output there")
    add("--json", metavar="FILE", help="write everything measured there, too")
    add("--programs", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1
    return options


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, condition, seconds=60, pause=0.002):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"benches/load: waited in vain for {what}")
        time.sleep(pause)
    return result


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.read().decode() or "empty"
    except OSError:
        return None


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Process:
    """A program under measurement, and what /proc says of it."""

    def __init__(self, command, env=None, out=subprocess.DEVNULL):
        self.child = subprocess.Popen(
            [str(part) for part in command], env=env, stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.DEVNULL, text=True,
        )
        self.pid = self.child.pid

    def cpu(self):
        """Seconds of user and system time so far, all threads."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self, name="VmRSS"):
        """MiB."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024

    def forget_peak(self):
        """From now on VmHWM is the peak since now."""
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(60)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


class Cell:
    """One kind of load, the same for every target."""

    def __init__(self, name, connections, body_size, deltas=0, streams=False, failing=False):
        self.name, self.connections, self.body_size = name, connections, body_size
        # `streams`: with our own client, which sees deltas; else wrk. `failing`: every other request
        # is with the key whose first account fails.
        self.deltas, self.streams, self.failing = deltas, streams, failing
        self.model = f"fake-deltas-{deltas}" if deltas else "gpt-5-mini"

    def body(self):
        head = {"model": self.model, "input": ""}
        if self.deltas:
            head["stream"] = True
        padding = self.body_size - len(json.dumps(head))
        if padding < 0:
            sys.exit(f"benches/load: a body has at least {len(json.dumps(head))} bytes")
        # Words, as in a prompt: neither spaces only nor one endless string without escapes.
        head["input"] = ("word " * (padding // 5 + 1))[:padding]
        return json.dumps(head)


def matrix(quick):
    """Streams first: what they leave in memory is theirs."""
    many = 50 if quick else 500
    cells = [Cell(f"{many} streams of 64 deltas", many, 1024, deltas=64, streams=True)]
    sizes = {"1 KiB": 1 << 10, "64 KiB + 1": (64 << 10) + 1, "400 KiB": 400 << 10}
    for name, body in sizes.items():
        for connections in [16] if quick else [1, 16, 64]:
            cells.append(Cell(f"{name} bodies, {connections} connections", connections, body))
    cells.append(Cell("1 KiB bodies, 16 connections, every other request fails over", 16, 1024, failing=True))
    return cells


class Target:
    """Something that answers POST /v1/responses."""

    def __init__(self, name, url, process=None, header="", admin=None, ready_ms=None):
        self.name, self.url, self.process, self.header = name, url, process, header
        self.admin, self.ready_ms = admin, ready_ms
        self.idle = process.memory() if process else None
        self.rounds = []

    def settle(self):
        """Until no record waits to be written: that work belongs to the requests, too."""
        if self.admin:
            # Seldom: writing out the metrics is work of the process under measurement.
            time.sleep(0.05)
            until("the writer", lambda: self.metric("writer_queue_records") == 0, pause=0.25)

    def metric(self, name):
        text = answers(f"{self.admin}/metrics") or ""
        found = re.search(rf"^tollgate_{name} (\S+)$", text, re.M)
        return float(found[1]) if found else None

    def failovers(self):
        """Changes of account so far, whatever their reason."""
        text = answers(f"{self.admin}/metrics") or "" if self.admin else ""
        return sum(float(n) for n in re.findall(r"^tollgate_failovers_total\{.*\} (\S+)$", text, re.M))


def start_upstream(options):
    process = Process([options.programs / "fake-upstream", "--threads", "1"], out=subprocess.PIPE)
    return process, process.child.stdout.readline().strip()


def start_bare(options, upstream, wrap=()):
    port = free_port()
    address = urllib.parse.urlparse(upstream).netloc
    process = Process([*wrap, options.programs / "examples/bare_proxy", f"127.0.0.1:{port}", address, options.threads])
    until("the bare proxy", lambda: accepts(port))
    return Target(BASE, f"http://127.0.0.1:{port}", process)


def start_tollgate(options, upstream, data, models, wrap=()):
    port, admin = free_port(), free_port()
    env = {
        "PATH": os.environ.get("PATH", ""),
        "TOLLGATE_DATA_DIR": str(data),
        "TOLLGATE_SERVER__LISTEN": json.dumps([f"127.0.0.1:{port}"]),
        "TOLLGATE_SERVER__THREADS": str(options.threads),
        "TOLLGATE_ADMIN__LISTEN": f"127.0.0.1:{admin}",
        "TOLLGATE_LOGGING__LEVEL": options.log_level,
        "TOLLGATE_SECURITY__SECRET": "the secret of the load comparison",
    }
    def account(name, group, key, priority=50):
        return {
            "name": name, "platform": "openai", "groups": [group], "concurrency": 1000, "priority": priority,
            "credentials": {"api_key": key, "base_url": upstream},
        }

    resources = {
        "groups": [{"name": "main", "platform": "openai"}, {"name": "failing", "platform": "openai"}],
        "accounts": [
            *(account(f"a{n}", "main", f"sk-load-{n}") for n in range(options.accounts)),
            account("good", "failing", "sk-load-good"),
            # The fake provider answers this one with 500, for which no account cools down.
            account("bad", "failing", "sk-fake-500", priority=1),
        ],
        "users": [{"name": "load", "balance": "1000000.00", "concurrency": 0}],
        "api_keys": [
            {"name": "load-key", "key": KEY, "user": "load", "group": "main"},
            {"name": "failing-key", "key": FAILING_KEY, "user": "load", "group": "failing"},
        ],
        "prices": {m: {"input_cost_per_token": 0.00000025, "output_cost_per_token": 0.000002} for m in models},
    }
    program = options.programs / "tollgate"
    subprocess.run([program, "apply", "-f", "-"], input=json.dumps(resources), text=True, env=env,
                   check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    process = Process([*wrap, program, "serve"], env=env)
    url = f"http://127.0.0.1:{admin}"
    until("Tollgate", lambda: answers(f"{url}/readyz"))
    ready_ms = (time.monotonic() - began) * 1000
    until("its listener", lambda: accepts(port))
    return Target("tollgate", f"http://127.0.0.1:{port}", process, admin=url, ready_ms=ready_ms)


def machine():
    """Busy and all CPU seconds of the machine."""
    fields = [int(f) for f in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICK, sum(fields) / TICK


def children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_load(target, options, cell, body, seconds):
    env = dict(os.environ, LOAD_BODY=str(body), LOAD_KEY=KEY, LOAD_HEADER=target.header,
               LOAD_OTHER_KEY=FAILING_KEY if cell.failing else "")
    if cell.streams:
        address = urllib.parse.urlparse(target.url).netloc
        command = [options.programs / "examples/stream_load", address, PATH, cell.connections, seconds, cell.deltas]
    else:
        command = ["wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--timeout", "30s", "--latency",
                   "-s", HERE / "post.lua", target.url + PATH]
    out = subprocess.run([str(c) for c in command], env=env, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^LOAD (.*)$", out, re.M)
    if not found:
        sys.exit(f"benches/load: the load client said\n{out}")
    return json.loads(found[1])


def measure(target, options, cell, body, upstream):
    busy, total = machine()
    process = target.process
    own = children() + upstream.cpu() + (process.cpu() if process else 0)
    cpu, failovers = process.cpu() if process else 0, target.failovers()
    if process:
        process.forget_peak()
    before = process.memory() if process else 0
    result = run_load(target, options, cell, body, options.seconds)
    target.settle()
    if result["bad_status"] or result["errors"] or not result["requests"]:
        sys.exit(f"benches/load: {target.name}: requests failed: {result}")
    if process:
        result["cpu_us"] = (process.cpu() - cpu) * 1e6 / result["requests"]
        result["rss_mib"] = process.memory()
        result["peak_mib"] = process.memory("VmHWM")
        if cell.streams:
            result["before_mib"] = before
        if cell.failing and target.admin:
            result["failovers"] = (target.failovers() - failovers) / result["requests"]
    own = children() + upstream.cpu() + (process.cpu() if process else 0) - own
    busy_now, total_now = machine()
    result["others"] = max(0.0, (busy_now - busy - own) / (total_now - total))
    result["rps"] = result["requests"] * 1e6 / result["duration_us"]
    target.rounds.append(result)
    print(f"  {target.name:<10} {result['rps']:>9.0f} req/s  {result.get('cpu_us', 0):>7.1f} us/req  "
          f"others {result['others']:.0%}", file=sys.stderr, flush=True)


def summary(target, cell, base, direct):
    def median(field):
        values = [r[field] for r in target.rounds if field in r]
        return statistics.median(values) if values else None

    # A disturbance hits neighbours in a round alike: they are compared round by round.
    def against(other, field, compare):
        if other is None:
            return None
        pairs = [(r[field], b[field]) for r, b in zip(target.rounds, other.rounds) if field in r and field in b]
        return statistics.median(compare(r, b) for r, b in pairs) if pairs else None

    def ratio(field):
        return against(base, field, lambda mine, theirs: mine / theirs)

    def added(field):
        return against(direct, field, lambda mine, theirs: mine - theirs)

    cpu = [r["cpu_us"] for r in target.rounds if "cpu_us" in r]
    per_stream = [(r["peak_mib"] - target.idle) * 1024 / cell.connections for r in target.rounds if "before_mib" in r]
    return {
        "target": target.name,
        "rps": median("rps"), "rps_ratio": ratio("rps"),
        "cpu_us": median("cpu_us"), "cpu_ratio": ratio("cpu_us"),
        "cpu_spread": (max(cpu) - min(cpu)) / statistics.median(cpu) if cpu else None,
        "cpu_us_per_delta": median("cpu_us") / cell.deltas if cpu and cell.deltas else None,
        "p50_us": median("p50_us"), "p99_us": median("p99_us"),
        "added_p50_us": added("p50_us"), "added_p99_us": added("p99_us"),
        "added_first_p50_us": added("first_p50_us"), "added_first_p99_us": added("first_p99_us"),
        "rss_idle_mib": target.idle,
        "rss_after_mib": target.process.memory() if target.process else None,
        "kib_per_stream": max(per_stream) if per_stream else None,
        "failovers_per_request": median("failovers"),
        "ready_ms": target.ready_ms,
        "others": median("others"),
        "rounds": target.rounds,
    }


COLUMNS = [  # title, field, format
    ("req/s", "rps", ".0f"), ("ratio", "rps_ratio", ".2f"),
    ("CPU us/req", "cpu_us", ".1f"), ("ratio", "cpu_ratio", ".2f"), ("spread", "cpu_spread", ".0%"),
    ("us/delta", "cpu_us_per_delta", ".2f"),
    ("p50 us", "p50_us", ".0f"), ("p99 us", "p99_us", ".0f"),
    ("+p50", "added_p50_us", "+.0f"), ("+p99", "added_p99_us", "+.0f"),
    ("+first p50", "added_first_p50_us", "+.0f"), ("+first p99", "added_first_p99_us", "+.0f"),
    ("idle MiB", "rss_idle_mib", ".1f"), ("after MiB", "rss_after_mib", ".1f"),
    ("KiB/stream", "kib_per_stream", ".0f"), ("failovers/req", "failovers_per_request", ".2f"),
    ("others", "others", ".0%"),
]


def table(rows):
    """Columns that say something."""
    columns = [c for c in COLUMNS if any(r[c[1]] is not None for r in rows)]
    print(f"{'':<10}" + "".join(f" {title:>{max(len(title), 7)}}" for title, _, _ in columns))
    for r in rows:
        cells = (("-" if r[f] is None else format(r[f], form)).rjust(max(len(title), 7)) for title, f, form in columns)
        print(f"{r['target']:<10} " + " ".join(cells), flush=True)


def rounds(options, targets, cell, scratch, upstream):
    body = scratch / "body"
    body.write_text(cell.body())
    for target in targets:  # warm: connections, caches, branch predictors
        target.rounds = []
        run_load(target, options, cell, body, 1)
        target.settle()
    for number in range(options.rounds):
        print(f"{cell.name}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        shift = number % len(targets)
        for target in targets[shift:] + targets[:shift]:
            measure(target, options, cell, body, upstream)
    named = {t.name: t for t in targets}
    return [summary(target, cell, named.get(BASE), named.get("direct")) for target in targets]


# ---- instructions


class Client:
    """Sends requests one after the other on a few connections; only for counting, not for speed."""

    def __init__(self, target, body, connections):
        netloc = urllib.parse.urlparse(target.url).netloc
        host, port = netloc.split(":")
        self.request = (
            f"POST {PATH} HTTP/1.1\r\nHost: {netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self.sockets = [socket.create_connection((host, int(port)), 60) for _ in range(connections)]

    def send(self, count):
        for begin in range(0, count, len(self.sockets)):
            now = self.sockets[: count - begin]
            for s in now:
                s.sendall(self.request)
            for s in now:
                self.read(s)

    def read(self, s):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.more(s)
        head, rest = data.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"benches/load: {head.decode(errors='replace')}")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while len(rest) < int(length[1]) if length else not rest.endswith(b"0\r\n\r\n"):
            rest += self.more(s)

    def more(self, s):
        data = s.recv(1 << 16)
        if not data:
            sys.exit("benches/load: connection closed")
        return data


def instructions(options, start, body, scratch):
    """Instructions per request: the counters are zeroed after a warm-up and read after N requests."""
    out = scratch / "callgrind.out"
    # A thread of the runtime that waits for its turn must not starve the others.
    wrap = ["valgrind", "--tool=callgrind", "--fair-sched=yes", f"--callgrind-out-file={out}"]
    target = start(wrap)
    try:
        client = Client(target, body, min(options.connections, 16))
        client.send(200)
        target.settle()
        control(target, "-z")
        client.send(options.instructions)
        target.settle()
        control(target, "-d")
        dump = until("callgrind", lambda: next(iter(sorted(scratch.glob("callgrind.out.*"))), None))
        total = until("callgrind", lambda: re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.M))
        if options.keep:
            pathlib.Path(options.keep).mkdir(parents=True, exist_ok=True)
            shutil.copy(dump, pathlib.Path(options.keep) / f"callgrind.{target.name}")
    finally:
        target.process.stop()
        for file in scratch.glob("callgrind.out*"):
            file.unlink()
    return {"target": target.name, "instructions": int(total[1]) / options.instructions}


def control(target, command):
    subprocess.run(["callgrind_control", command, str(target.process.pid)], check=True, capture_output=True)


def main():
    options = arguments()
    single = Cell("", options.connections, options.body_size, deltas=options.stream)
    single.name = f"{single.body_size} B bodies, {single.connections} connections" + (
        f", streams of {single.deltas} deltas" if single.deltas else "")
    cells = matrix(options.quick) if options.matrix else [single]
    names = options.targets.split(",")
    started = []
    # SIGTERM ends everything, as ^C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benches/load: ended"))
    with tempfile.TemporaryDirectory(prefix="tollgate-load-") as scratch:
        scratch = pathlib.Path(scratch)
        try:
            upstream, url = start_upstream(options)
            started.append(upstream)
            starters = {
                "direct": lambda wrap=(): Target("direct", url),
                BASE: lambda wrap=(): start_bare(options, url, wrap),
                "tollgate": lambda wrap=(): start_tollgate(
                    options, url, scratch / "data", {cell.model for cell in cells}, wrap),
            }
            if options.instructions:
                rows = [instructions(options, starters[n], single.body(), scratch) for n in names if n != "direct"]
                base = next((r["instructions"] for r in rows if r["target"] == BASE), None)
                print(f"{single.body_size} B bodies, {options.instructions} requests under callgrind")
                for r in rows:
                    ratio = f"{r['instructions'] / base:.2f}" if base else "-"
                    print(f"{r['target']:<10} {r['instructions']:>11,.0f} instructions/req  ratio {ratio}")
            else:
                targets = [starters[name]() for name in names]
                started += [t.process for t in targets if t.process]
                for other in options.other:
                    name, rest = other.split("=", 1)
                    address, _, header = rest.partition(",")
                    targets.append(Target(name, address.rstrip("/"), header=header))
                time.sleep(0.5)  # idle memory is what is there when the start is over
                for target in targets:
                    target.idle = target.process and target.process.memory()
                print(f"{options.rounds} rounds of {options.seconds} s, {options.threads} threads, "
                      f"{os.cpu_count()} cores shared by load, proxy and provider; ratios to {BASE}")
                rows = []
                for cell in cells:
                    found = rounds(options, targets, cell, scratch, upstream)
                    print(f"\n{cell.name}")
                    table(found)
                    rows += [{"cell": cell.name, **row} for row in found]
                for target in targets:
                    if target.ready_ms:
                        print(f"\n{target.name} ready {target.ready_ms:.0f} ms after its start")
            if options.json:
                keys = vars(options) | {"programs": str(options.programs)}
                pathlib.Path(options.json).write_text(json.dumps({"options": keys, "results": rows}, indent=1) + "\n")
        finally:
            for process in started:
                process.stop()


if __name__ == "__main__":
    main()
