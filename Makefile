# Targets for people and for .ci/run; `make help` lists them. Nothing here needs more than Go, git and make, except
# that the race detector wants a C compiler and the PostgreSQL tests want SKEP_TEST_POSTGRES.

GO ?= go
LINT = $(GO) tool -modfile=tools/go.mod golangci-lint

# What is shipped: one static file each. skep-bot is stripped, as every task starts it again.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath
BOT = -ldflags "-s -w"
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# The race detector needs cgo, and that a C compiler.
RACE := $(if $(shell command -v $$($(GO) env CC)),-race)

# What `make dist` packs: hosts of the channel canary get the newest build, those of stable a pinned one. As Debian
# writes versions.
CHANNEL = stable
VERSION = 0.0.$(shell git rev-list --count HEAD 2>/dev/null || echo 0)

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS='	' read -r t d; do printf '%-10s %s\n' "$$t" "$$d"; done

.PHONY: up
up: build ## build and run a whole fleet on this machine; flags in UP="--bots 2"
	bin/skep up $(UP)

.PHONY: build
build: ## build bin/skep and bin/skep-bot
	@mkdir -p bin
	$(BUILD) -o bin/skep ./cmd/skep
	$(BUILD) $(BOT) -o bin/skep-bot ./cmd/skep-bot

.PHONY: bots
bots: ## build skep-bot for every platform into bin/
	@mkdir -p bin
	@set -e; for p in $(PLATFORMS); do os=$${p%/*} arch=$${p#*/}; ext=; [ $$os != windows ] || ext=.exe; \
		echo "skep-bot-$$os-$$arch$$ext"; \
		GOOS=$$os GOARCH=$$arch $(BUILD) $(BOT) -o bin/skep-bot-$$os-$$arch$$ext ./cmd/skep-bot; done

.PHONY: dist
dist: ## build what a release holds, for every platform, into dist/ with checksums and packages (CHANNEL=stable|canary)
	@rm -rf dist && mkdir -p dist
	@set -e; for p in $(PLATFORMS); do os=$${p%/*} arch=$${p#*/}; ext=; [ $$os != windows ] || ext=.exe; \
		for c in skep skep-bot; do echo "$$c-$$os-$$arch$$ext"; \
			GOOS=$$os GOARCH=$$arch $(BUILD) $(BOT) -o dist/$$c-$$os-$$arch$$ext ./cmd/$$c; done; done
	@set -e; for arch in amd64 arm64; do $(GO) run ./internal/pack -channel $(CHANNEL) -version $(VERSION) -arch $$arch \
		-epoch $$(git log -1 --format=%ct 2>/dev/null || echo 0) -skep dist/skep-linux-$$arch -out dist; done
	@cp LICENSE CHANGELOG.md dist/ && cd dist && sha256sum * > SHA256SUMS

.PHONY: bot-image
bot-image: build ## build the image of a bot's container and load it into the engine at DOCKER_HOST
	deploy/bot-image/build.sh bin/skep-bot $(IMAGE)

.PHONY: test
test: ## run all tests, with the race detector where there is a C compiler
	@$(if $(RACE),true,echo "make test: NO RACE DETECTOR: there is no C compiler ($$($(GO) env CC)) on this machine")
	@$(if $(SKEP_TEST_POSTGRES),true,echo "make test: NO POSTGRESQL: its tests are skipped; SKEP_TEST_POSTGRES=postgres://… names one to use")
	$(if $(RACE),CGO_ENABLED=1) $(GO) test $(RACE) -shuffle=on ./...

.PHONY: lint
lint: vet lint-go lint-generated cross ## everything that is checked without running it

.PHONY: vet
vet:
	@unformatted=$$(git ls-files '*.go' | xargs -r gofmt -l); [ -z "$$unformatted" ] || { echo "gofmt would change:" $$unformatted; exit 1; }
	$(GO) vet ./...

.PHONY: lint-go
lint-go:
	$(LINT) run ./...

# What is generated must be what the generators make now. The state before is compared, so that it works in a
# tree with changes of its own.
.PHONY: lint-generated
lint-generated:
	@before=$$(git status --porcelain; git diff HEAD) && $(MAKE) generate && after=$$(git status --porcelain; git diff HEAD) && \
		if [ "$$before" != "$$after" ]; then git status --short; echo "make generate changed files; commit what it made"; exit 1; fi

.PHONY: cross
cross: ## check that everything, tests too, compiles for every platform
	$(GO) run ./internal/crosscheck $(PLATFORMS)

.PHONY: fmt
fmt: ## format all Go files
	$(LINT) fmt ./...

.PHONY: generate
generate: ## remake generated code and drawings
	$(GO) generate ./...

.PHONY: bench
bench: build ## run every benchmark and print the figures of this machine
	@set -e; for c in dispatch lifecycle overhead idle cas; do bin/skep bench $$c; done

# The demonstrations of each issue. They print their figures and fail when a bound is missed; SKEP_SHOW=short is brief.
.PHONY: show-1.1 show-1.2 show-1.3 show-1.4 show-1.5 show-2.1 show-2.2 show-2.3 show-2.4 show-2.5 show-3.1 show-3.2 show-3.3 show-3.4 show-3.5 show-3.6 show-3.7 show-4.1 show-4.2 show-4.3 show-4.4
show-1.1: ## a fresh clone is ready in 2 s and runs a first task
	$(GO) run ./internal/show fresh
show-1.2: build ## the tests of Go's standard library as tasks on 4 bots
	$(GO) run ./internal/show gostd
show-1.3: build ## 1,000 tasks while servers, bots and databases are killed
	$(GO) run ./internal/show chaos
show-1.4: build ## speed and size reach their floors
	$(GO) run ./internal/show floors
show-1.5: ## every fuzz target for a while (SKEP_FUZZTIME)
	$(GO) run ./internal/show fuzz
show-2.1: build ## real trees as inputs of tasks, byte for byte, cold and warm
	$(GO) run ./internal/show trees
show-2.2: build ## archive and download reach their bounds beside cp -r, SHA-256 and the disk
	$(GO) run ./internal/show speed
show-2.3: build ## server and bots are killed during uploads and downloads
	$(GO) run ./internal/show kills
show-2.4: build ## bad content is refused, with a cause, and full disks are survived
	$(GO) run ./internal/show hostile
show-2.5: build ## 8 bots with more inputs than their caches hold, for 20 minutes
	$(GO) run ./internal/show soak
show-3.1: build ## a bot is born by curl | sh and survives kills while it replaces its own code
	$(GO) run ./internal/show birth
show-3.2: build ## 208 bots under load take a changed hook; a build that crashes reaches the canaries at most
	$(GO) run ./internal/show change
show-3.3: build ## hooks that loop, allocate, raise and lie are contained, reported and quarantined
	$(GO) run ./internal/show hooks
show-3.4: build ## tasks cannot get at the bot's credential; a bot under systemd
	$(GO) run ./internal/show secrets
	$(GO) run ./internal/show systemd
show-3.5: build ## a bot for Windows runs tasks under Wine; what is for macOS compiles
	$(GO) run ./internal/show foreign
show-3.6: build ## bot code that is not what was promised is never run; fuzzing of what strangers send
	$(GO) run ./internal/show lies
	$(GO) run ./internal/show fuzz -only '^Fuzz(Inspect|ParseConfig|Token|Session|Handshake|CodeQuery)$$' ./bot/code ./server
show-3.7: build ## a task of the previous commit's server is finished by this one
	$(GO) run ./internal/show upgrade
show-4.1: build ## skep host keeps 10 containers while containers, engine, launcher and bots are killed
	$(GO) run ./internal/show launcher
show-4.2: build ## warm containers: hand-out in a millisecond; clients and the pool die, and nothing is left
	$(GO) run ./internal/show pool
show-4.3: build ## a task in a clean room costs little more and leaves nothing
	$(GO) run ./internal/show cleanroom
show-4.4: ## limits of a bot's cgroup limit, and nothing of a fork bomb survives
	$(GO) run ./internal/show cage
