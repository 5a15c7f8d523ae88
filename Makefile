# make demo   the main job, on this machine        make test   everything that must hold
# make bench  numbers, next to the peers           make lint   formatting, clippy, docs, dependency gate
CARGO ?= cargo
CACHE := bench/.cache
ENVOY := $(CACHE)/envoy/_bin/envoy

.PHONY: demo test bench lint fmt test-tools bench-peers fuzz

demo:
	$(CARGO) build --release --locked -p hawser-cli
	target/release/hawser demo examples/two-clusters

test: test-tools
	$(CARGO) build --locked -p hawser-cli
	$(CARGO) test --locked --workspace --no-fail-fast

test-tools:
	@e2e/install-tools

bench: bench-peers
	$(CARGO) build --release --locked -p hawser-cli -p hawser-bench
	target/release/hawser-bench run --out bench --hawser target/release/hawser --envoy $(ENVOY)

bench-peers:
	@bench/install-peers $(CACHE)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "cargo-deny is not installed: cargo install cargo-deny"; fi

fmt:
	$(CARGO) fmt --all
