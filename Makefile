# How long each fuzz target runs.
FUZZTIME ?= 2m

# What the tests run the program with: a command or a path, and the Debian package that has it. Python is Debian's own, whichever comes
# first in the PATH.
TOOLS = gcc:build-essential curl:curl nginx:nginx-light php:php-cli /usr/sbin/php-fpm*:php-fpm /usr/bin/python3:python3 \
	chromium:chromium /lib/systemd/systemd:systemd systemd-nspawn:systemd-container nsenter:util-linux ss:iproute2 \
	gunicorn:gunicorn /usr/lib/python3/dist-packages/django:python3-django /usr/lib/python3/dist-packages/flask:python3-flask \
	node:nodejs npm:npm puma:puma /usr/share/rubygems-integration/*/specifications/rack-[0-9]*.gemspec:ruby-rack starman:starman \
	/usr/share/tomcat10/bin/catalina.sh:tomcat10-common javac:default-jdk-headless

.PHONY: help
help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: tools ## vet, check the format and run all tests with the race detector
	GOOS=darwin go vet ./...
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "gofmt is due: $$unformatted"; exit 1; }
	go vet ./... && go vet -tags soak ./...
	go test -race -timeout 10m ./...

.PHONY: soak
soak: tools ## run the tests that take half an hour: the servers with their own idle limits
	go test -tags soak -timeout 60m -run Soak ./...

.PHONY: bench
bench: ## run the benchmarks: how the backend is asked again behind an outage
	go test -run '^$$' -bench . -benchtime 1x ./...

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (2m)
	@grep -rE --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*:func | |' | { \
		failed=; \
		while read -r package target; do \
			echo "$$target in $$package"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null || failed="$$failed $$target"; \
		done; \
		test -z "$$failed" || { echo "failed:$$failed"; exit 1; }; \
	}

.PHONY: build
build: ## build the program: one static file
	CGO_ENABLED=0 go build -trimpath -o wsbridge ./cmd/wsbridge

.PHONY: clean
clean: ## remove what was built
	rm -f wsbridge

.PHONY: tools
tools: ## install what the tests need (as root; otherwise say what is missing)
	@PATH=$$PATH:/usr/sbin; commands=; packages=; \
	for tool in $(TOOLS); do \
		{ command -v $${tool%:*} || ls $${tool%:*}; } >/dev/null 2>&1 && continue; \
		commands="$$commands $${tool%:*}"; packages="$$packages $${tool#*:}"; \
	done; \
	test -n "$$packages" || exit 0; \
	echo "missing:$$commands"; \
	test "$$(id -u)" = 0 || { echo "run: sudo apt-get install$$packages"; exit 1; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages
	@cd e2e/testdata/standardwebhooks-js && { test node_modules/.package-lock.json -nt package-lock.json || npm ci --silent; }
