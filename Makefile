# Targets for people and for .ci/run; `make help` lists them. Nothing here needs more than Go, git and make, except
# that the race detector wants a C compiler and the PostgreSQL tests want SKEP_TEST_POSTGRES.

GO ?= go
LINT = $(GO) tool -modfile=tools/go.mod golangci-lint

# What is shipped: one static file each. skep-bot is stripped, as every task starts it again.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath
BOT = -ldflags "-s -w"
PLATFORMS = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

# The race detector needs cgo, and that a C compiler.
# The code of SQLite, translated from C, and its C library are not ours to check, and take twice as long when they are.
RACE := $(if $(shell command -v $$($(GO) env CC)),-race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc=-race=false)

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

# How many packages are tested at once: most of a test of real processes is waiting.
PACKAGES = $(shell n=$$(nproc 2>/dev/null || echo 3); echo $$((n > 3 ? n : 3)))

.PHONY: test
test: ## run all tests, with the race detector where there is a C compiler
	@$(if $(RACE),true,echo "make test: NO RACE DETECTOR: there is no C compiler ($$($(GO) env CC)) on this machine")
	@$(if $(SKEP_TEST_POSTGRES),true,echo "make test: NO POSTGRESQL: its tests are skipped; SKEP_TEST_POSTGRES=postgres://… names one to use")
	$(if $(RACE),CGO_ENABLED=1 GORACE=atexit_sleep_ms=0) $(GO) test $(RACE) -p $(PACKAGES) -timeout 20m -shuffle=on ./...

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
	@set -e; [ "$$(id -u)" != 0 ] || for c in pool cleanroom refill; do bin/skep bench $$c; done # containers

# The demonstrations of each issue. They print their figures and fail when a bound is missed; SKEP_SHOW=short is brief.
.PHONY: show-1.1 show-1.2 show-1.3 show-1.4 show-1.5 show-2.1 show-2.2 show-2.3 show-2.4 show-2.5 show-3.1 show-3.2 show-3.3 show-3.4 show-3.5 show-3.6 show-3.7 show-4.1 show-4.2 show-4.3 show-4.4 show-4.5 show-5.1 show-5.2 show-5.3 show-5.4 show-5.5
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
show-2.1: build ## real trees as inputs of tasks, byte for byte, cold and warm; two bots with one cache
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
show-3.4: build ## tasks cannot get at the bot's credential; a bot under systemd, by the script and by bootstrap-vm
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
	CGO_ENABLED=0 $(GO) run ./internal/show cleanroom # it runs in rooms itself
show-4.4: ## limits of a bot's cgroup limit, and nothing of a fork bomb survives
	$(GO) run ./internal/show cage
show-4.5: build ## nonsense, strangers, dead sockets, no engine, no disk, images that do not start: reasons, pauses, no hot loop
	$(GO) run ./internal/show trouble
	$(GO) run ./internal/show fuzz -only '^Fuzz(Receive|Request|ParseDrone)$$' ./internal/jsonfd ./host/warm ./config
show-5.1: build ## pools of machines on a laptop, processes, containers and boards: resized, replaced, killed, removed, under load
	$(GO) run ./internal/show machines laptop
	$(GO) run ./internal/show machines lab
show-5.2: build ## pools of machines on a cloud that fails one time in five, under kill -9; its machines become bots, killed at any byte
	$(GO) run ./internal/show machines cloud
	$(GO) run ./internal/show machines guest
show-5.3: build ## ten thousand machines at rest and replaced, a hundred thousand looked at, one failing pool beside 49
	$(GO) run ./internal/show machines scale
show-5.4: ## weekly windows agree with clocks that are watched minute by minute, in every zone; the cloud takes what the validator takes
	$(GO) run ./internal/show weeks
	$(GO) run ./internal/show configs
show-5.5: ## two providers on one PostgreSQL are killed and stopped
	$(GO) run ./internal/show machines two

# What is promised with counts beyond those of make test and the demonstrations: docs/promises.md says which.
LONG = $(GO) test -count=1 -timeout 24h -v
.PHONY: show-long
show-long: build ## what docs/promises.md promises of hosts and machines, with the counts that it names; takes hours
	$(LONG) ./host/launch -run '^TestFindBotIsNeverWrong$$|^TestPlanKeepsItsWord$$' -rapid.checks=10000
	$(LONG) ./host/launch -run '^TestKilledAnywhere$$' -rapid.checks=500
	$(LONG) ./host/warm -run '^TestNoBadRoomIsHandedOut$$' -gets=2000
	$(LONG) ./host/warm -run '^TestPlanKeepsItsBounds$$' -rapid.checks=100000
	$(LONG) ./provider/machine -run '^TestPoolChangeProperties$$|^TestShareProperties$$|^TestParkProperties$$' -rapid.checks=100000
	$(LONG) ./provider/machine -run '^TestConverges$$|^TestRestSurvivesKills$$|^TestQueueProperties$$' -rapid.checks=500
	$(LONG) ./provider/machine -run '^TestStatusIsARecount$$' -rapid.checks=100
	$(LONG) ./provider/machine -run '^TestNoDeviceIsLost$$' -pairs=1000000
	$(LONG) ./server -run '^TestMachineMetricsAreBounded$$' -replacements=10000
	$(GO) test -run '^$$' -bench '^BenchmarkFilteredList$$' ./store
	SKEP_SHOW=promises $(GO) run ./internal/show pool crun
	$(GO) test -run '^$$' -fuzz '^FuzzReceive$$' -fuzztime 10000000x ./internal/jsonfd
	$(GO) test -run '^$$' -fuzz '^FuzzRequest$$' -fuzztime 10000000x ./host/warm
	$(LONG) ./internal/debris -run '^TestRemoveAny$$' -rapid.checks=2000
	$(LONG) ./reconcile -run '^TestJournalAgreesWithAMap$$' -rapid.checks=2000
	$(LONG) ./reconcile -run '^TestOneHolderAtATime$$|^TestNothingIsForgotten$$' -rapid.checks=100000
	$(LONG) ./host/drone -run '^TestManagerMoves$$' -rapid.checks=10000
	$(LONG) ./host/drone -run '^TestNeverTwoBotsForADevice$$' -schedules=100000
	$(LONG) ./host/bot -run '^TestDiskIsBounded$$' -restarts=100000
	$(LONG) ./queen -run '^TestPlan$$' -rapid.checks=100000
	$(GO) test -run '^$$' -bench '^BenchmarkReport$$' -benchtime 3000x ./queen
