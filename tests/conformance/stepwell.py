"""Points the runner of WebAssembly/wasi-testsuite at `stepwell run-component`; docs/conformance.md says how."""

import os
import shlex
import subprocess

STEPWELL = shlex.split(os.getenv("STEPWELL", "stepwell"))


def get_name():
    return "stepwell"


def get_version():
    said = subprocess.run(STEPWELL + ["--version"], encoding="UTF-8", capture_output=True, check=True)
    return said.stdout.split()[-1]


def get_wasi_versions():
    # Core modules of WASI 0.1 are no components.
    return ["wasm32-wasip3"]


def get_wasi_worlds():
    return ["wasi:cli/command", "wasi:http/service"]


def get_timeout_seconds():
    # Each test is compiled first.
    return 60


def compute_argv(test_path, args_env_root, proposals, wasi_world, wasi_version):
    args, env, root = args_env_root
    argv = STEPWELL + ["run-component"]
    if wasi_world == "wasi:http/service":
        argv += ["--addr", "127.0.0.1:0"]
    # Some tests of sockets have no manifest that says so.
    argv += ["--network"]
    for key, value in env.items():
        argv += ["--env", f"{key}={value}"]
    if root:
        argv += ["--dir", f"{root}::/"]
    return argv + [test_path] + (["--"] + args if args else [])
