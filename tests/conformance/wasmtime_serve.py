"""Asks the test programs of wasmtime's own `serve` tests what those tests ask them; docs/conformance.md says how to build them.

usage: wasmtime_serve.py FOLDER [HOST...]

FOLDER has the programs; HOST is `stepwell run-component` or `wasmtime serve`, with what each program needs.
"""

import base64
import hashlib
import http.client
import pathlib
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = pathlib.Path(sys.argv[1])
HOST = sys.argv[2:] or ["stepwell", "run-component"]
WASMTIME = HOST[-1] == "serve"
PATIENCE = 60


class Host:
    """A host that serves one component, and what it wrote when it has ended."""

    def __init__(self, program, options):
        if WASMTIME:
            options = options + ["-Scli", "-Shttp", "-Sinherit-network"] + (["-Sp3", "-Wcomponent-model-async"] if program.startswith("p3") else [])
        else:
            options = options + ["--network"]
        command = HOST + ["--addr", "127.0.0.1:0"] + options + [str(FOLDER / f"{program}.wasm")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.written = b""
        self.found = threading.Event()
        self.address = None
        self.readers = [threading.Thread(target=self.read, args=(stream,)) for stream in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()
        assert self.found.wait(PATIENCE) and self.address, f"it does not serve:\n{self.written.decode()}"

    def read(self, stream):
        for line in stream:
            self.written += line
            if line.startswith(b"Serving HTTP on"):
                self.address = line.decode().split("http://")[1].split("/")[0]
                self.found.set()
        self.found.set()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        for reader in self.readers:
            reader.join()
        return self.written.decode()

    def ask(self, path="/", method="GET", headers=(), body=None, host="localhost"):
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        return self.ask_on(connection, path, method, headers, body, host)

    def ask_on(self, connection, path="/", method="GET", headers=(), body=None, host="localhost"):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in [("host", host), *headers]:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@contextmanager
def serving(program, *options):
    host = Host(program, list(options))
    try:
        yield host
    finally:
        if host.process.poll() is None:
            host.stop()


class Origin(BaseHTTPRequestHandler):
    """What the programs send requests to."""

    BODIES = {"/a": "’Twas brillig, and the slithy toves", "/b": "Did gyre and gimble in the wabe:"}
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(self.BODIES[self.path].encode())

    def do_POST(self):
        """The body as it comes: who sends it may read the reply before it goes on."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while size := int(self.rfile.readline(), 16):
            self.wfile.write(b"%x\r\n%s\r\n" % (size, self.rfile.read(size)))
            self.rfile.readline()
        self.rfile.readline()
        self.wfile.write(b"0\r\n\r\n")

    def reply(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def origin():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def many(host, check):
    """A hundred requests on each of twenty connections at once."""
    failures = []

    def caller():
        connection = http.client.HTTPConnection(host.address, timeout=PATIENCE)
        try:
            for _ in range(100):
                check(host.ask_on(connection))
        except Exception as error:  # whatever it is, it is a failure
            failures.append(repr(error))

    callers = [threading.Thread(target=caller) for _ in range(20)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not failures, failures[:3]


def hello(program):
    def check(reply):
        assert (reply[0], reply[2]) == (200, b"Hello, WASI!"), reply

    with serving(program) as host:
        check(host.ask())
        many(host, check)


def p2_cli_serve_hello_world():
    hello("p2_cli_serve_hello_world")


def p3_cli_serve_hello_world():
    hello("p3_cli_serve_hello_world")


def p2_cli_serve_echo_env():
    with serving("p2_cli_serve_echo_env", "--env", "FOO=bar") as host:
        status, headers, body = host.ask(headers=[("env", "FOO")])
        assert (status, headers.get("env"), body) == (200, "bar", b""), (status, headers, body)
        status, headers, body = host.ask(headers=[("env", "BAR")])
        assert (status, headers.get("env"), body) == (200, None, b""), (status, headers, body)


def p2_cli_serve_with_print():
    with serving("p2_cli_serve_with_print", *(["--no-logging-prefix"] if WASMTIME else [])) as host:
        for _ in range(2):
            assert host.ask()[0] == 200
        written = host.stop()
    for line in ("half a print to stdout", "half a print to stderr", "start a print 1234"):
        assert written.count(line) == 2, written
    assert written.count("after empty") == 4, written


def p2_cli_serve_authority_and_scheme():
    with serving("p2_cli_serve_authority_and_scheme") as host:
        assert host.ask()[0] == 200
        # The absolute form, as a proxy is asked.
        assert host.ask("http://localhost/")[0] == 200


def never_set(program, said):
    with serving(program) as host:
        for _ in range(2):
            assert host.ask()[0] == 500
        written = host.stop()
    assert "panicked" not in written, written
    # In the hosts' own words.
    assert ("guest never invoked `response-outparam::set` method" if WASMTIME else said) in written, written


def p2_cli_serve_return_before_set():
    never_set("p2_cli_serve_return_before_set", "returned without setting a response")


def p2_cli_serve_trap_before_set():
    never_set("p2_cli_serve_trap_before_set", "the guest trapped")


def sleep(program):
    def check(reply):
        assert reply[0] >= 500, reply

    with serving(program, *(["-Wtimeout=1ms"] if WASMTIME else ["--wall", "1ms"])) as host:
        check(host.ask())
        many(host, check)
        written = host.stop()
    assert ("guest timed out" if WASMTIME else "timeout") in written, written[-500:]


def p2_cli_serve_sleep():
    sleep("p2_cli_serve_sleep")


def p3_cli_serve_sleep():
    sleep("p3_cli_serve_sleep")


def p3_cli_serve_post_return():
    with serving("p3_cli_serve_post_return") as host:
        status, _, body = host.ask()
        assert (status, body) == (200, b"")
        written = host.stop()
    assert "please see me" in written, written


def p2_cli_serve_config():
    options = ["-Sconfig", "-Sconfig-var=hello=world"] if WASMTIME else ["--env", "hello=world"]
    with serving("p2_cli_serve_config", *options) as host:
        status, _, body = host.ask()
        assert (status, body) == (200, b"world"), (status, body)


def p2_api_proxy():
    with serving("p2_api_proxy") as host:
        for path in ("/early_drop", "/new_fields/50", "/modify_fields/50"):
            status, _, body = host.ask(path)
            assert status == 200 or path == "/early_drop", (path, status, body)
        assert host.ask("/new_fields/50")[0] == 200, "after a response that was dropped early"


def p2_api_proxy_streaming_hash_all():
    with serving("p2_api_proxy_streaming") as host, origin() as at:
        status, _, body = host.ask("/hash-all", headers=[("url", at + path) for path in Origin.BODIES])
        assert status == 200, body
        said = dict(line.split(": ") for line in body.decode().splitlines())
        for path, text in Origin.BODIES.items():
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            assert said[at + path] == digest, said


# A sorta-random-ish megabyte, as there.
MEGABYTE = bytes((251 * number) % 256 for number in range(1, 1024 * 1024 + 1))


def echoed(path, headers=()):
    with serving("p2_api_proxy_streaming") as host:
        headers = [("content-type", "application/octet-stream"), *headers]
        status, got, body = host.ask(path, "POST", headers, MEGABYTE)
        assert (status, got["content-type"], body == MEGABYTE) == (200, "application/octet-stream", True), (status, len(body))


def p2_api_proxy_streaming_echo():
    echoed("/echo")


def p2_api_proxy_streaming_double_echo():
    with origin() as at:
        echoed("/double-echo", [("url", at + "/echo")])


def p2_api_proxy_forward_request():
    with serving("p2_api_proxy_forward_request") as host, origin() as at:
        status, _, body = host.ask("/a", host=at.removeprefix("http://"))
        assert status == 200, (status, body)


def p3_http_echo():
    with serving("p3_http_echo") as host:
        for extra in ([], [("x-host-to-host", "true")]):
            status, headers, body = host.ask(method="POST", headers=[("foo", "bar"), *extra], body=MEGABYTE)
            assert (status, headers.get("foo"), body == MEGABYTE) == (200, "bar", True), (status, headers, len(body))


def p3_http_proxy():
    with serving("p3_http_proxy") as host, origin() as at:
        status, _, body = host.ask(headers=[("url", at + "/a")])
        assert (status, body.decode()) == (200, Origin.BODIES["/a"]), (status, body)


TESTS = [value for name, value in list(globals().items()) if name.startswith(("p2_", "p3_"))]

failed = 0
for test in TESTS:
    try:
        test()
        print(f"{test.__name__}: pass")
    except Exception as error:
        failed += 1
        print(f"{test.__name__}: FAIL: {type(error).__name__}: {str(error)[:600]}")
print(f"{len(TESTS) - failed} of {len(TESTS)} pass")
sys.exit(failed > 0)
