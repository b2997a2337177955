# GhostServe. `make run` starts the server, `make test` runs all tests; both first fetch and build what is missing.

CARGO   ?= cargo
PYTHON  ?= python3
# Execution provider: cpu (ONNX Runtime itself) or openvino, which is a different library. PRECISION is f32 or bf16.
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
# Flags only for values that are set here: otherwise GHOSTSERVE_PROVIDER and GHOSTSERVE_PRECISION apply.
BACKEND := $(if $(filter-out cpu,$(EP)),--provider $(EP)) $(if $(PRECISION),--precision $(PRECISION))

# The revision on /metrics; `unknown` without git.
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
test: runtime ## Run all tests.
	$(CARGO) test --quiet $(ARGS)

.PHONY: runtime
runtime: ## Fetch ONNX Runtime into .runtime and check its hash, if it is missing (EP=openvino: with OpenVINO).
ifeq ($(OWN_RUNTIME),)
	@$(PYTHON) deploy/onnxruntime/fetch.py $(RUNTIME) --distribution $(DISTRIBUTION)
endif

.PHONY: lint
lint: ## Check formatting, clippy and documentation; warnings are errors.
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --quiet --no-deps --document-private-items

.PHONY: deny
deny: ## Check licences, sources and duplicates of the dependencies (needs cargo-deny; ARGS="advisories" needs network).
	$(CARGO) deny check $(or $(ARGS),bans licenses sources)

# The virtual environment of the client tests; TORCH=1 includes PyTorch. The node packages are those of the TypeScript client.
CLIENTS := .runtime/clients
NODE_MODULES := .runtime/typescript/node_modules
.PHONY: clients
clients: clients-python clients-typescript ## Install what the client tests need (TORCH=1: with PyTorch).

.PHONY: clients-python
clients-python:
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check \
		-r tests/clients/requirements$(if $(TORCH),-torch).txt -r tests/clients/requirements-generated.txt

.PHONY: clients-typescript
clients-typescript:
	@if command -v npm >/dev/null; then \
		mkdir -p .runtime/typescript && cp tests/clients/typescript/package*.json .runtime/typescript/ && \
		npm --prefix .runtime/typescript ci --silent --no-audit --no-fund; \
	else echo "no npm: the test of the TypeScript client will be skipped (Debian: apt-get install nodejs npm)" >&2; fi

.PHONY: test-clients
test-clients: runtime clients ## Run the manual's snippets and generated clients (TORCH=1: also fine-tuning and a detection head).
	GHOSTSERVE_CLIENTS_PYTHON=$(abspath $(CLIENTS)/bin/python) \
		$(CARGO) test --quiet --test integration -- clients fine_tuning --nocapture

.PHONY: test-python-client
test-python-client: runtime clients-python ## Test the Python package: against a server, its types, its style (SERVER=URL: a running one).
ifneq ($(filter http%,$(SERVER)),)
	cd clients/python && PYTHONPATH=src GHOSTSERVE_URL=$(SERVER) $(abspath $(CLIENTS)/bin/python) -m pytest -q
else
	GHOSTSERVE_CLIENTS_PYTHON=$(abspath $(CLIENTS)/bin/python) $(CARGO) test --quiet --test integration python_client -- --nocapture
endif

.PHONY: test-readme
test-readme: ## Run the README's commands in a fresh clone (ARGS="--binary FILE --image NAME --runtime FOLDER --port 0").
	$(PYTHON) tests/readme/first_hour.py $(ARGS)

# The Python tools that check deploy/. The programs buildah, haproxy, prometheus and node (Debian) and kubectl must be installed.
DEPLOY_PYTHON := .runtime/deploy/venv/bin/python
$(DEPLOY_PYTHON): tests/deploy/requirements.txt
	@$(PYTHON) -m venv .runtime/deploy/venv
	@$(DEPLOY_PYTHON) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: deploy-tools
deploy-tools: $(DEPLOY_PYTHON)

# The server binary of the tests below.
SERVER ?= target/release/ghostserve
target/release/ghostserve: build

.PHONY: image
image: ## Build the container image with buildah (EP=openvino: with OpenVINO; PLATFORM=linux/arm64).
	buildah bud --layers --format docker --build-arg EP=$(EP) --build-arg REVISION=$(GHOSTSERVE_BUILD_REVISION) \
		$(if $(PLATFORM),--platform $(PLATFORM)) --tag ghostserve $(ARGS) .

.PHONY: dist
dist: runtime $(SERVER) ## Make the archive and the Debian package of a release in target/dist (SERVER=binary packs that one).
	$(PYTHON) deploy/dist/build.py $(SERVER) --runtime $(GHOSTSERVE_ONNXRUNTIME) $(ARGS)

.PHONY: release-notes
release-notes: ## Print what CHANGELOG.md says about this version (TAG=v0.2.0: fail unless it is of this tag and dated).
	@$(PYTHON) deploy/dist/version.py notes $(TAG)

.PHONY: test-dist
test-dist: runtime $(SERVER) $(DEPLOY_PYTHON) ## Install the packages of `make dist` in a bare Debian (needs root, buildah, strace).
	$(DEPLOY_PYTHON) tests/deploy/dist.py $(SERVER) --runtime $(GHOSTSERVE_ONNXRUNTIME)

.PHONY: test-image
test-image: $(DEPLOY_PYTHON) ## Build the image, run it as a container engine would, and check its size (needs root, buildah).
	$(DEPLOY_PYTHON) tests/deploy/image.py --build-arg EP=$(EP) $(ARGS)

.PHONY: test-balance
test-balance: runtime $(SERVER) $(DEPLOY_PYTHON) ## Restart and kill servers behind HAProxy under load (ARGS="--seconds 120").
	$(DEPLOY_PYTHON) tests/deploy/balance.py $(SERVER) $(ARGS)

.PHONY: test-observe
test-observe: runtime $(SERVER) $(DEPLOY_PYTHON) ## Test every Prometheus expression on a live server, and the alerts of an overload.
	$(DEPLOY_PYTHON) tests/deploy/observe.py $(SERVER)

.PHONY: test-hostile
test-hostile: runtime $(SERVER) ## Attack the server over loopback and measure what other clients notice (ARGS="--only NAME" or "--list").
	$(PYTHON) tests/hostile/run.py $(SERVER) $(ARGS)

.PHONY: test-wire
test-wire: runtime clients ## Compare what clients see of two builds, byte for byte (OLD=binary NEW=binary; ARGS="--show").
	@test -n "$(OLD)" -a -n "$(NEW)" || { echo "OLD and NEW must name two binaries" >&2; exit 1; }
	$(CLIENTS)/bin/python tests/wire/compare.py $(OLD) $(NEW) $(ARGS)

.PHONY: test-deploy
test-deploy: $(DEPLOY_PYTHON) ## Run all checks of deploy/: linters, test-image, test-dist, test-balance, test-observe (KEEP=1: the image).
	$(DEPLOY_PYTHON) tests/deploy/static.py
	@$(MAKE) --no-print-directory test-image ARGS="--binary .runtime/deploy/ghostserve $(if $(KEEP),--keep)"
	@$(MAKE) --no-print-directory test-dist test-balance test-observe SERVER=.runtime/deploy/ghostserve

.PHONY: goldens
goldens: ## Regenerate the reference values and images of the tests (needs Python with tests/goldens/requirements.txt).
	$(PYTHON) tests/goldens/make_network.py
	$(PYTHON) tests/goldens/make_images.py
	$(PYTHON) tests/goldens/make_scaled.py
	$(PYTHON) tests/goldens/make_resizes.py

.PHONY: test-training
test-training: ## Smoke-test the training recipe (needs Python with models/training/requirements.txt).
	cd models/training && $(PYTHON) -m unittest test_recipe

.PHONY: bench
bench: runtime ## Benchmark the network, the stages of a request and the server under load (PHOTOS=folder; docs/benchmarking.md).
	@$(PYTHON) benches/export.py --name ghostnetv2_100 --out target/bench || \
		echo "no export to compare with: pip install -r benches/requirements.txt (PYTHON=... names another Python)" >&2
	$(CARGO) bench --bench network
	$(CARGO) bench --bench stages
	$(CARGO) bench --bench end_to_end

.PHONY: bench-peers
bench-peers: runtime build ## Compare with Mosec on ONNX Runtime and OpenVINO under load (PHOTOS=folder; EP=openvino: also bf16).
	@test -f target/bench/ghostnetv2_100.onnx || { echo "run make bench first: it exports the network" >&2; exit 1; }
	@$(PYTHON) deploy/onnxruntime/fetch.py .runtime/onnxruntime --distribution onnxruntime
	GHOSTSERVE_ONNXRUNTIME=$(abspath .runtime/onnxruntime) $(PYTHON) benches/peers/compare.py --images $(PHOTOS) \
		$(if $(filter openvino,$(EP)),--openvino-runtime $(abspath $(RUNTIME))) $(ARGS)

.PHONY: clean
clean: ## Remove all built and fetched files.
	$(CARGO) clean
	rm -rf .runtime
