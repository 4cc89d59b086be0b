# make up    installs what is missing, builds, starts polydev with the demo identity provider, prints one URL
# make test  everything that continuous integration runs
# make help  this text

.PHONY: help up test
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

up test: toolchain
	@cargo xtask $@

# xtask does the rest, but something has to build it.
.PHONY: toolchain
toolchain:
	@command -v cargo >/dev/null || { echo "cargo is missing: install the Rust toolchain first" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "installing a C compiler, which Rust links with" >&2; \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  { $$sudo apt-get update --quiet && $$sudo apt-get install --yes --quiet --no-install-recommends gcc libc6-dev; } >&2; }
