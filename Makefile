# GhostServe. `make run` starts the server, `make test` runs every test; both fetch and build what is missing first.

CARGO   ?= cargo
PYTHON  ?= python3
# What computes: cpu (ONNX Runtime itself) or openvino, which is another library; and in what type, f32 or bf16.
EP      ?= cpu
ifeq ($(EP),cpu)
DISTRIBUTION := onnxruntime
else ifeq ($(EP),openvino)
DISTRIBUTION := onnxruntime-openvino
else
$(error EP is cpu or openvino, found `$(EP)`)
endif
PRECISION ?=
RUNTIME := .runtime/$(DISTRIBUTION)
ARGS    ?=
# Only what was asked for, so that GHOSTSERVE_PROVIDER and GHOSTSERVE_PRECISION count otherwise.
BACKEND := $(if $(filter-out cpu,$(EP)),--provider $(EP)) $(if $(PRECISION),--precision $(PRECISION))

# Shown on /metrics; a checkout without git has none.
export GHOSTSERVE_BUILD_REVISION ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
OWN_RUNTIME := $(GHOSTSERVE_ONNXRUNTIME)
export GHOSTSERVE_ONNXRUNTIME ?= $(abspath $(RUNTIME))

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: runtime ## Build and start the server on port 8080 (ARGS="--listen 127.0.0.1:9000"; EP=openvino PRECISION=bf16).
	@$(CARGO) build --release --quiet
	@./target/release/ghostserve serve $(BACKEND) $(ARGS)

.PHONY: build
build: ## Build the release binary, target/release/ghostserve.
	$(CARGO) build --release

.PHONY: test
test: runtime ## Run every test.
	$(CARGO) test --quiet $(ARGS)

.PHONY: runtime
runtime: ## Fetch ONNX Runtime (hash-checked) into .runtime, if it is not there; EP=openvino the one with OpenVINO.
ifeq ($(OWN_RUNTIME),)
	@$(PYTHON) deploy/onnxruntime/fetch.py $(RUNTIME) --distribution $(DISTRIBUTION)
endif

.PHONY: lint
lint: ## Formatting, clippy, documentation: warnings are errors.
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --quiet --no-deps --document-private-items

.PHONY: deny
deny: ## Licences, sources and duplicates of the dependencies (needs cargo-deny; ARGS="advisories" with network).
	$(CARGO) deny check $(or $(ARGS),bans licenses sources)

# The virtual environment of the client tests; TORCH=1 has PyTorch in it, too.
CLIENTS := .runtime/clients
.PHONY: clients
clients: ## Make the Python environment of the client tests (TORCH=1: with PyTorch).
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check \
		-r tests/clients/requirements$(if $(TORCH),-torch).txt

.PHONY: test-clients
test-clients: runtime clients ## Run the snippets of docs/clients.md, and with TORCH=1 a detection head against timm's.
	GHOSTSERVE_CLIENTS_PYTHON=$(abspath $(CLIENTS)/bin/python) $(CARGO) test --quiet --test integration clients -- --nocapture

# The tools that look at deploy/; what Debian has (buildah, haproxy, prometheus, node), and kubectl, must be there.
DEPLOY_PYTHON := .runtime/deploy/venv/bin/python
$(DEPLOY_PYTHON): tests/deploy/requirements.txt
	@$(PYTHON) -m venv .runtime/deploy/venv
	@$(DEPLOY_PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The server that is restarted and watched.
SERVER ?= target/release/ghostserve
target/release/ghostserve: build

.PHONY: image
image: ## Build the container image with buildah (EP=openvino: the other flavour; PLATFORM=linux/arm64).
	buildah bud --layers --format docker --build-arg EP=$(EP) --build-arg REVISION=$(GHOSTSERVE_BUILD_REVISION) \
		$(if $(PLATFORM),--platform $(PLATFORM)) --tag ghostserve $(ARGS) .

.PHONY: test-image
test-image: $(DEPLOY_PYTHON) ## Build the image, run it as a container engine would, and weigh it (needs root, buildah).
	$(DEPLOY_PYTHON) tests/deploy/image.py --build-arg EP=$(EP) $(ARGS)

.PHONY: test-balance
test-balance: runtime $(SERVER) $(DEPLOY_PYTHON) ## Restart and kill servers behind HAProxy, under load (ARGS="--seconds 120").
	$(DEPLOY_PYTHON) tests/deploy/balance.py $(SERVER) $(ARGS)

.PHONY: test-observe
test-observe: runtime $(SERVER) $(DEPLOY_PYTHON) ## Have Prometheus watch a live server: every expression, and an overload's alert.
	$(DEPLOY_PYTHON) tests/deploy/observe.py $(SERVER)

.PHONY: test-hostile
test-hostile: runtime $(SERVER) ## Attack the server over loopback and print what another client sees (ARGS="--only NAME", "--list").
	$(PYTHON) tests/hostile/run.py $(SERVER) $(ARGS)

.PHONY: test-deploy
test-deploy: $(DEPLOY_PYTHON) ## Check everything in deploy/: linters, schemas, rules; the image; its server under balance and observe.
	$(DEPLOY_PYTHON) tests/deploy/static.py
	@$(MAKE) --no-print-directory test-image ARGS="--binary .runtime/deploy/ghostserve"
	@$(MAKE) --no-print-directory test-balance test-observe SERVER=.runtime/deploy/ghostserve

.PHONY: goldens
goldens: ## Make the reference numbers and images again (needs Python with tests/goldens/requirements.txt).
	$(PYTHON) tests/goldens/make_network.py
	$(PYTHON) tests/goldens/make_images.py

.PHONY: test-training
test-training: ## Smoke-test the training recipe (needs Python with models/training/requirements.txt).
	cd models/training && $(PYTHON) -m unittest test_recipe

.PHONY: bench
bench: runtime ## Time the network, the parts of a request and the server under load (PHOTOS=folder; docs/benchmarking.md).
	@$(PYTHON) benches/export.py --name ghostnetv2_100 --out target/bench || \
		echo "no export to compare with: pip install -r benches/requirements.txt (PYTHON=... names another Python)" >&2
	$(CARGO) bench --bench network
	$(CARGO) bench --bench stages
	$(CARGO) bench --bench end_to_end

.PHONY: bench-peers
bench-peers: runtime build ## Load-test against Mosec with ONNX Runtime and OpenVINO (PHOTOS=folder; EP=openvino: bf16 too).
	@test -f target/bench/ghostnetv2_100.onnx || { echo "run make bench first: it exports the network" >&2; exit 1; }
	@$(PYTHON) deploy/onnxruntime/fetch.py .runtime/onnxruntime --distribution onnxruntime
	GHOSTSERVE_ONNXRUNTIME=$(abspath .runtime/onnxruntime) $(PYTHON) benches/peers/compare.py --images $(PHOTOS) \
		$(if $(filter openvino,$(EP)),--openvino-runtime $(abspath $(RUNTIME))) $(ARGS)

.PHONY: clean
clean: ## Remove everything that was built or fetched.
	$(CARGO) clean
	rm -rf .runtime
