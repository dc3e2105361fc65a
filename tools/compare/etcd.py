#!/usr/bin/env python3
"""Writes to three replicas of wpaxos and to three of etcd on one machine and one disk, in turn; see etcd.md.

Needs etcd, wrk and h2load (Debian: etcd-server, wrk, nghttp2-client), and a release build of wpaxos and wpaxos-load.
"""

import argparse
import base64
import json
import os
import re
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

VALUE_BYTES = 64
KEYS = 1000
TICKS = os.sysconf("SC_CLK_TCK")

WRK_SCRIPT = """
local requests, turn = {}, 0
init = function(args)
    for key = 0, %(keys)d - 1 do
        wrk.headers["Content-Type"] = "application/json"
        requests[key] = wrk.format("%(method)s", string.format(%(path)s), nil, %(body)s)
    end
end
request = function()
    turn = (turn + 1) %% %(keys)d
    return requests[turn]
end
"""


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def until(what, check, seconds=30):
    end = time.time() + seconds
    while True:
        try:
            found = check()
            if found:
                return found
        except OSError:
            pass
        if time.time() > end:
            sys.exit(f"{what}: not after {seconds} s")
        time.sleep(0.1)


class Cluster:
    """Three processes, and what drives them."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = []

    def spawn(self, name, command):
        log = open(os.path.join(self.directory, f"{name}.log"), "w")
        self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()

    def cpu_s(self):
        """What the servers have used of the processors so far."""
        total = 0
        for process in self.processes:
            with open(f"/proc/{process.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def wrk(self, url, script, in_flight, seconds):
        path = os.path.join(self.directory, f"{type(self).__name__}.lua")
        with open(path, "w") as file:
            file.write(script)
        command = ["wrk", "-t1", f"-c{in_flight}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", path, url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            sys.exit(f"not every write succeeded: {said}")
        count = int(re.search(r"(\d+) requests in", said)[1])
        rate = float(re.search(r"Requests/sec: +([\d.]+)", said)[1])
        times = {}
        for percent in (50, 99):
            number, unit = re.search(rf"\n +{percent}% +([\d.]+)(us|ms|s)\n", said).groups()
            times[percent] = float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
        return count, rate, times[50], times[99]


class Etcd(Cluster):
    def __init__(self, directory):
        super().__init__(directory)
        client, peer = 23790, 23800
        members = ",".join(f"n{node}=http://127.0.0.1:{peer + node}" for node in range(3))
        for node in range(3):
            ours, theirs = f"http://127.0.0.1:{client + node}", f"http://127.0.0.1:{peer + node}"
            command = ["etcd", "--name", f"n{node}", "--data-dir", os.path.join(directory, f"etcd-{node}")]
            command += ["--listen-client-urls", ours, "--advertise-client-urls", ours]
            command += ["--listen-peer-urls", theirs, "--initial-advertise-peer-urls", theirs]
            command += ["--initial-cluster", members, "--initial-cluster-state", "new"]
            self.spawn(f"etcd-{node}", command + ["--logger", "zap", "--log-level", "error"])
        self.nodes = [f"127.0.0.1:{client + node}" for node in range(3)]
        self.leader = until("etcd has a leader", self.find_leader)
        self.body = os.path.join(directory, "put.grpc")
        key, value = b"key-0", b"v" * VALUE_BYTES
        message = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
        with open(self.body, "wb") as file:
            file.write(b"\0" + struct.pack(">I", len(message)) + message)

    def find_leader(self):
        for node in self.nodes:
            status = post(f"http://{node}/v3/maintenance/status", {})
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return node
        return None

    def revision(self):
        return int(post(f"http://{self.leader}/v3/maintenance/status", {})["header"]["revision"])

    def http(self, in_flight, seconds):
        value = base64.b64encode(b"v" * VALUE_BYTES).decode()
        keys = [base64.b64encode(f"key-{key}".encode()).decode() for key in range(KEYS)]
        table = "local keys = {" + ",".join(f'"{key}"' for key in keys) + "}\n"
        body = f"""'{{"key": "' .. keys[key + 1] .. '", "value": "{value}"}}'"""
        script = table + WRK_SCRIPT % {"keys": KEYS, "method": "POST", "path": '"/v3/kv/put"', "body": body}
        return self.wrk(f"http://{self.leader}", script, in_flight, seconds)

    def native(self, in_flight, seconds):
        """gRPC: one connection for every 32 streams, and one at least."""
        connections = max(1, in_flight // 32)
        log = os.path.join(self.directory, "h2load.log")
        if os.path.exists(log):
            os.remove(log)
        command = ["h2load", "-t1", f"-c{connections}", f"-m{in_flight // connections}", f"-D{seconds}", "-d", self.body]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file", log]
        before, began = self.revision(), time.time()
        subprocess.run(command + [f"http://{self.leader}/etcdserverpb.KV/Put"], capture_output=True, check=True)
        took, count = time.time() - began, self.revision() - before
        with open(log) as lines:
            times = sorted(int(line.split()[2]) / 1000 for line in lines)
        # What etcd has counted: h2load takes every HTTP answer for a success.
        return count, count / min(took, seconds), times[len(times) // 2], times[len(times) * 99 // 100]


class Wpaxos(Cluster):
    def __init__(self, directory, binaries):
        super().__init__(directory)
        self.load = os.path.join(binaries, "wpaxos-load")
        self.config = os.path.join(directory, "cluster.toml")
        with open(self.config, "w") as file:
            file.write('name = "compare"\n[steal]\npolicy = "none"\n')
            for node in range(1, 4):
                file.write(f'[[node]]\nid = "1.{node}"\n')
                file.write(f'address = "127.0.0.1:{23810 + node}"\nhttp = "127.0.0.1:{23820 + node}"\n')
        for node in range(1, 4):
            command = [os.path.join(binaries, "wpaxos"), "--log", "warn", "server", "--id", f"1.{node}"]
            command += ["--config", self.config, "--data", os.path.join(directory, f"wpaxos-{node}")]
            self.spawn(f"wpaxos-{node}", command + ["--durability", "sync"])
        until("wpaxos serves", self.serves)

    def serves(self):
        request = urllib.request.Request("http://127.0.0.1:23821/key-0", b"first", method="PUT")
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200

    def http(self, in_flight, seconds):
        body = '"' + "v" * VALUE_BYTES + '"'
        script = WRK_SCRIPT % {"keys": KEYS, "method": "PUT", "path": '"/key-%d", key', "body": body}
        return self.wrk("http://127.0.0.1:23821", script, in_flight, seconds)

    def native(self, in_flight, seconds):
        report = os.path.join(self.directory, "report.json")
        command = [self.load, "run", "--config", self.config, "--concurrency", str(in_flight), "--write-ratio", "1"]
        command += ["--value-bytes", str(VALUE_BYTES), "--keys", str(KEYS), "--threads", "1", "--warmup", "0s"]
        command += ["--duration", f"{seconds}s", "--json", report]
        subprocess.run(command, capture_output=True, check=True)
        with open(report) as file:
            found = json.load(file)
        if not found["valid"]:
            sys.exit(f"not a valid run: {found['invalid_because']}")
        times = found["response_us"]
        return times["count"], found["throughput_ops_per_s"], times["p50"] / 1000, times["p99"] / 1000


def sync_ms(directory):
    """How long the disk takes for one synced write of 4 KiB, in the median."""
    file = os.open(os.path.join(directory, "probe"), os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    times = []
    for turn in range(300):
        began = time.perf_counter()
        os.pwrite(file, b"x" * 4096, turn * 4096)
        times.append((time.perf_counter() - began) * 1000)
    os.close(file)
    return statistics.median(times)


def used_by_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binaries", default="target/release", help="where wpaxos and wpaxos-load are")
    parser.add_argument("--directory", default=".", help="a directory on the disk that is to be written to")
    parser.add_argument("--in-flight", default="1,64,256,512")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    args = parser.parse_args()
    for tool in ("etcd", "wrk", "h2load"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed: see etcd.md")
    directory = tempfile.mkdtemp(prefix="compare-", dir=args.directory)
    clusters = []
    try:
        clusters = [Etcd(directory), Wpaxos(directory, args.binaries)]
        print(f"a synced write of 4 KiB takes {sync_ms(directory):.2f} ms; {os.cpu_count()} processors; load {os.getloadavg()}")
        print("| over | in flight | | writes/s | p50 ms | p99 ms | server CPU µs/write | generator CPU µs/write |")
        print("|---|---|---|---|---|---|---|---|")
        for way in ("http", "native"):
            for in_flight in map(int, args.in_flight.split(",")):
                compare(clusters, way, in_flight, args)
        print(f"load at the end {os.getloadavg()}")
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(directory)


def compare(clusters, way, in_flight, args):
    found = {cluster: [] for cluster in clusters}
    for turn in range(args.runs):
        # Each goes first every other time.
        for cluster in clusters if turn % 2 == 0 else reversed(clusters):
            servers, generator = cluster.cpu_s(), used_by_children()
            count, rate, p50, p99 = getattr(cluster, way)(in_flight, args.seconds)
            servers, generator = cluster.cpu_s() - servers, used_by_children() - generator
            found[cluster].append((rate, p50, p99, servers * 1e6 / count, generator * 1e6 / count))
    for cluster, runs in found.items():
        rate, p50, p99, servers, generator = (statistics.median(column) for column in zip(*runs))
        spread = f"{min(run[0] for run in runs):,.0f} to {max(run[0] for run in runs):,.0f}"
        name = type(cluster).__name__.lower()
        print(f"| {way} | {in_flight} | {name} | {rate:,.0f} ({spread}) | {p50:.2f} | {p99:.2f} | {servers:.0f} | {generator:.0f} |",
              flush=True)


if __name__ == "__main__":
    main()
