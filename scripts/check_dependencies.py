#!/usr/bin/env python3
"""Checks the Rust dependencies against deny.toml: licences, bans, sources.

It reads the same file as cargo-deny and answers the same three questions from `cargo metadata`, with the standard
library alone, so that a machine without cargo-deny (which takes minutes to compile) checks them too. What cargo-deny
does beyond it: it reads the licence *texts* of the crates; here the declared SPDX expression is believed.

Exit code: 0 clean, 1 something is refused, 2 the check could not run.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib
from collections import defaultdict

ROOT = pathlib.Path(__file__).resolve().parent.parent


def permitted(expression: str, allowed: set[str]) -> bool:
    """Whether a licence expression can be met with the allowed licences alone.

    >>> permitted("MIT OR Apache-2.0", {"MIT"})
    True
    >>> permitted("MIT AND BSD-3-Clause", {"MIT"})
    False
    >>> permitted("(MIT OR GPL-3.0-only) AND Unicode-3.0", {"MIT", "Unicode-3.0"})
    True
    >>> permitted("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"})
    False
    >>> permitted("Apache-2.0/MIT", {"MIT"})
    True
    >>> permitted("MIT OR (GPL-3.0-only", {"MIT"})
    Traceback (most recent call last):
    ValueError: an open parenthesis in 'MIT OR (GPL-3.0-only'
    """
    # Before SPDX expressions, crates wrote `/` for OR.
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek() -> str | None:
        return tokens[position] if position < len(tokens) else None

    def take() -> str:
        nonlocal position
        if position >= len(tokens):
            raise ValueError(f"{expression!r} ends too early")
        position += 1
        return tokens[position - 1]

    def alternatives() -> bool:
        met = conjunction()
        while peek() == "OR":
            take()
            met = conjunction() or met
        return met

    def conjunction() -> bool:
        met = term()
        while peek() == "AND":
            take()
            met = term() and met
        return met

    def term() -> bool:
        token = take()
        if token == "(":
            met = alternatives()
            if peek() != ")":
                raise ValueError(f"an open parenthesis in {expression!r}")
            take()
            return met
        if peek() == "WITH":
            take()
            token = f"{token} WITH {take()}"
        return token in allowed

    met = alternatives()
    if peek() is not None:
        raise ValueError(f"{peek()!r} was not expected in {expression!r}")
    return met


def packages(target: str) -> list[dict]:
    """Every package that a build for `target` uses, build and test dependencies included."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"check_dependencies: {' '.join(command)} failed:\n{answer.stderr.strip()}")
    metadata = json.loads(answer.stdout)
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    return [package for package in metadata["packages"] if package["id"] in used]


def faults(package: dict, rules: dict) -> list[str]:
    """What deny.toml refuses in one package, each in words."""
    found = []
    banned = {entry["crate"]: entry.get("reason", "") for entry in rules["bans"]["deny"]}
    if package["name"] in banned:
        found.append(f"is banned: {banned[package['name']]}")
    source = package["source"]
    if source is not None and not source.startswith("registry+"):
        found.append(f"comes from {source}; only the public registry is allowed")
    try:
        if not permitted(package["license"] or "", set(rules["licenses"]["allow"])):
            found.append(f"has the licence {package['license']!r}, which deny.toml does not allow")
    except ValueError as error:
        found.append(f"has a licence that cannot be read: {error}")
    if source is None:
        for dependency in package["dependencies"]:
            if dependency["req"] == "*" and "path" not in dependency:
                found.append(f"takes any version of {dependency['name']}; name one")
    return found


def main() -> int:
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    seen: dict[str, dict] = {}
    for target in rules["graph"]["targets"]:
        seen |= {package["id"]: package for package in packages(target)}
    registries = {package["source"] for package in seen.values() if package["source"]}
    refused = [
        f"{package['name']} {package['version']} {fault}"
        for package in seen.values()
        for fault in faults(package, rules)
    ]
    if len(registries) > 1:
        refused.append(f"the crates come from several places: {', '.join(sorted(registries))}")
    versions = defaultdict(set)
    for package in seen.values():
        versions[package["name"]].add(package["version"])
    twice = sorted(name for name, held in versions.items() if len(held) > 1)
    for line in refused:
        print(f"check_dependencies: {line}", file=sys.stderr)
    print(f"check_dependencies: {len(seen)} crates, {len(refused)} refused; in more than one version: {', '.join(twice) or 'none'}")
    return 1 if refused else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        print(f"check_dependencies: could not run: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
