# make demo   the main job, on this machine        make test   everything that must hold
# make bench  numbers, next to the peers           make lint   formatting, clippy, docs, dependency gate
# make bench-mirror  mirrors at a real API server
# make fuzz   every parser of bytes for a minute (nightly)
CARGO ?= cargo
CACHE := bench/.cache
ENVOY := $(CACHE)/envoy/_bin/envoy

# Every test of whole fabrics and of foreign programs.
E2E := $(sort $(basename $(notdir $(wildcard e2e/tests/*.rs))))

.PHONY: demo test bench bench-mirror lint advisories fmt test-tools bench-peers fuzz

demo:
	$(CARGO) build --release --locked -p hawser-cli
	target/release/hawser demo examples/two-clusters

test: test-tools
	$(CARGO) build --locked -p hawser-cli
	$(CARGO) test --locked --workspace --exclude hawser-e2e --no-fail-fast
	# Whole fabrics one after the other: each is a dozen processes, and some tests hold bounds in time.
	$(CARGO) test --locked --workspace --no-fail-fast $(addprefix --test ,$(E2E)) -- --test-threads=1

test-tools:
	@e2e/install-tools

bench: bench-peers
	$(CARGO) build --release --locked -p hawser-cli -p hawser-bench
	$(CARGO) build --release --locked -p hawser-tunnel --features testing --example verify_speed
	$(CARGO) build --release --locked -p hawser-trust-anchor --example issue_rate
	target/release/hawser-bench run --out bench --hawser target/release/hawser --envoy $(ENVOY) \
		--examples target/release/examples --step-ca $(CACHE)/step-ca

# Ten thousand services at a real API server: half an hour, and on a machine that does nothing else.
bench-mirror: test-tools
	$(CARGO) build --release --locked -p hawser-cli -p hawser-bench
	$(CARGO) build --release --locked -p hawser-e2e --example mirror_rate
	target/release/hawser-bench mirror --out bench --hawser target/release/hawser --examples target/release/examples

bench-peers:
	@bench/install-peers $(CACHE)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: cargo install cargo-deny"; fi

# Needs the network for the advisory database, so it is no part of lint.
advisories:
	cargo deny check advisories

fmt:
	$(CARGO) fmt --all

# Each parser of bytes for a while: make fuzz SECONDS=600 TARGETS='record chain'. See fuzz/README.md.
SECONDS ?= 60
TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

fuzz:
	@set -e; for target in $(TARGETS); do \
	  mkdir -p fuzz/found/$$target; \
	  $(CARGO) +nightly fuzz run --sanitizer none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$(SECONDS) -timeout=10 -verbosity=0 -print_final_stats=1; \
	done
