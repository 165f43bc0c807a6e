# Driftline: what a person runs. Each target says what it does, installs what it needs (tests/install-tools), and
# prints what each stage cost. Works from any path, as often as you like. Caches live outside of the checkout.
#
#   make demo      two real nodes, helm install, a running QEMU guest, a BackupRun, a RestoreRun, every byte compared (root)
#   make sandbox   the same nodes, release and guest, left running for your own kubectl, until Ctrl-C (root)
#   make test      every test; what CI runs
#   make bench     the numbers: ratios, latencies, memory
#   make crds      writes crds/, the chart's kinds/ and docs/reference/ anew from the types in src/api
#   make lint      format, clippy, licences, one TLS provider, shell scripts
#   make image     the image with the release binary, as an archive for `ctr -n k8s.io images import`, and its size
#   make torture   chains through ROUNDS (500) of random writes, resizes, kills on each QEMU, from SEED (1); a log of each
#   make soak      the tests that kill things, again and again for SOAK_MINUTES (30)
#
#   DRIFTLINE_CACHE     caches: the control plane's programs, the small guest, images, cargo's target folder
#   CARGO_TARGET_DIR    where cargo builds; default: a folder of the cache, one per compiler
#   KUBEBUILDER_ASSETS  a folder with the programs that tests/controlplane/build names, to use instead
#   IMAGE               what `make image` calls the image; default: what the chart does
#   DRIFTLINE_DEBIAN_MIRROR  where the image's packages come from; default: where this machine's apt has them from

SHELL := /bin/sh
.SHELLFLAGS := -eu -c
.ONESHELL:
.PHONY: help demo sandbox test bench crds lint image soak torture
MAKEFLAGS += --no-print-directory

export PATH := $(PATH):/usr/sbin:/sbin
export DRIFTLINE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/driftline
export CARGO_TARGET_DIR ?= $(DRIFTLINE_CACHE)/target-$(shell rustc -vV 2>/dev/null | sha256sum | cut -c1-8)
IMAGE ?= $(shell sed -n 's/^  repository: //p' charts/driftline/values.yaml):$(shell sed -n 's/^appVersion: //p' charts/driftline/Chart.yaml)
export DRIFTLINE_STAGES := $(DRIFTLINE_CACHE)/stages-$(shell echo $$PPID)

# The first lines of each recipe: costs are summed up however the target ends.
# What is going on is waited for in the background, or a signal to make would be heard only at its end.
begin = mkdir -p "$$DRIFTLINE_CACHE"; stage() { tests/stage "$$@" & current=$$!; wait "$$current"; }; stage --begin; \
	trap 'tests/stage --summary; rm -f "$$DRIFTLINE_STAGES"' EXIT; \
	trap 'kill -TERM "$$current" || :; wait "$$current" || :; exit 130' INT TERM HUP
# Images are built by root alone; the tests of whoever is not do without.
base = [ "$$(id -u)" != 0 ] || stage "base of the image (built once)" tests/image/build --base
# Another QEMU is installed by root alone, too.
other_qemu = [ "$$(id -u)" != 0 ] || stage "QEMU 10.0 beside the installed one (once)" tests/qemu-versions
on_other_qemu = env PATH="$$(tests/qemu-versions):$$PATH"
on_8_2 = env PATH="$$(tests/qemu-versions 8.2):$$PATH" QEMU_MODULE_DIR="$$(tests/qemu-versions 8.2)/modules"
nodes = [ "$$(id -u)" = 0 ] || { echo "make $@ starts real nodes, which needs the rights of root: run it as root" >&2; exit 1; }
build = stage "tools" tests/install-tools $@; stage "control plane and nodes (built once)" tests/controlplane/build; $(base)
cargo_test = cargo test --locked --features fake
# With real parts, most of a test is waiting for them; with nodes, nearly all of it.
more_threads = env RUST_TEST_THREADS=$$((2 * $$(nproc)))
many_threads = env RUST_TEST_THREADS=$$((4 * $$(nproc)))
linting = stage "format" cargo fmt --check; \
	stage "clippy" cargo clippy --locked --features fake --all-targets -- -D warnings; \
	stage "clippy of the sandbox, no test of its own" cargo clippy --locked --features fake --test sandbox -- -D warnings; \
	stage "dependencies" tests/check-dependencies; \
	stage "shell scripts" tests/check-scripts

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

demo:
	@$(nodes); $(begin); $(build)
	stage "build Driftline" $(cargo_test) --test sandbox --no-run
	stage "demo" $(cargo_test) --quiet --test sandbox -- demo

sandbox:
	@$(nodes); $(begin); $(build)
	stage "build Driftline" $(cargo_test) --test sandbox --no-run
	stage "sandbox" $(cargo_test) --quiet --test sandbox -- sandbox

test:
	@$(begin); $(build); $(other_qemu)
	stage "build Driftline and its tests" $(cargo_test) --no-run
	$(linting)
	stage "unit tests" $(cargo_test) --quiet --lib --bins
	stage "tests without QEMU" $(cargo_test) --quiet --test it
	stage "tests with QEMU" $(more_threads) $(cargo_test) --test qemu
	[ "$$(id -u)" != 0 ] || stage "the engine's tests with QEMU 10.0" $(on_other_qemu) $(more_threads) $(cargo_test) --test qemu -- engine:: torture:: qmp::fleece --skip never_comes
	stage "tests with Kubernetes and QEMU" $(many_threads) $(cargo_test) --test cluster
	[ "$$(id -u)" != 0 ] || stage "make sandbox, and what it says to type" tests/sandbox/check

bench:
	@$(begin); $(build); $(other_qemu)
	stage "build the benches" cargo bench --locked --features fake --bench promises --no-run
	stage "benches" cargo bench --locked --features fake --bench promises
	[ "$$(id -u)" != 0 ] || stage "what depends on QEMU's version, with 10.0" $(on_other_qemu) cargo bench --locked --features fake --bench promises -- ways guest-writes

crds:
	@$(begin)
	stage "write crds/, the chart's kinds/ and docs/reference/" env DRIFTLINE_WRITE_GENERATED=1 $(cargo_test) --quiet --test it the_committed

lint:
	@$(begin)
	$(linting)

image:
	@$(begin)
	stage "tools" tests/install-tools
	stage "base of the image (built once)" tests/image/build --base
	stage "build Driftline" cargo build --locked --release --bin driftline
	stage "image" tests/image/build "$$CARGO_TARGET_DIR/release/driftline" "$(IMAGE)"

soak:
	@$(begin); $(build)
	stage "build Driftline and its tests" $(cargo_test) --no-run
	export DRIFTLINE_SOAK=1
	until=$$(( $$(date +%s) + 60 * $${SOAK_MINUTES:-30} ))
	stage "stopped at every single step" $(cargo_test) --quiet --test it engine::
	if [ "$$(id -u)" = 0 ]; then
		stage "QEMU 8.2 beside the installed one (once)" tests/qemu-versions 8.2
		stage "the engine's tests with QEMU 8.2" $(on_8_2) $(more_threads) $(cargo_test) --test qemu -- engine:: torture:: qmp::fleece
	fi
	round=0
	while [ "$$(date +%s)" -lt "$$until" ]; do
		round=$$((round + 1))
		stage "round $$round with QEMU" $(more_threads) $(cargo_test) --quiet --test qemu
		stage "round $$round with Kubernetes and QEMU" $(many_threads) $(cargo_test) --quiet --test cluster
	done

# Goes on where the log ends. Another seed, or the log elsewhere: make torture SEED=7 TORTURE_LOGS=/var/tmp/torture
torture:
	@$(begin); $(build); $(other_qemu)
	stage "build Driftline and its tests" $(cargo_test) --test qemu --no-run
	logs=$${TORTURE_LOGS:-$$DRIFTLINE_CACHE/torture}
	mkdir -p "$$logs"
	export DRIFTLINE_TORTURE_ROUNDS=$${ROUNDS:-500} DRIFTLINE_TORTURE_SEED=$${SEED:-1}
	DRIFTLINE_TORTURE_LOG="$$logs/installed-$$DRIFTLINE_TORTURE_SEED.log" \
		stage "torture with the installed QEMU" env -- $(cargo_test) --test qemu torture
	[ "$$(id -u)" != 0 ] || DRIFTLINE_TORTURE_LOG="$$logs/10.0-$$DRIFTLINE_TORTURE_SEED.log" \
		stage "torture with QEMU 10.0" $(on_other_qemu) $(cargo_test) --test qemu torture
	echo "a line for each round: $$logs"
