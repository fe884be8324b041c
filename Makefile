# How long each fuzz target runs.
FUZZTIME ?= 2m

# What the tests run the program with: a command or a path, and the Debian package that has it. Python is Debian's own, whichever comes
# first in the PATH.
TOOLS = gcc:build-essential curl:curl nginx:nginx-light php:php-cli /usr/sbin/php-fpm*:php-fpm /usr/bin/python3:python3 \
	chromium:chromium /lib/systemd/systemd:systemd systemd-nspawn:systemd-container nsenter:util-linux ss:iproute2 \
	gunicorn:gunicorn /usr/lib/python3/dist-packages/django:python3-django /usr/lib/python3/dist-packages/flask:python3-flask \
	node:nodejs npm:npm puma:puma /usr/share/rubygems-integration/*/specifications/rack-[0-9]*.gemspec:ruby-rack starman:starman \
	/usr/share/tomcat10/bin/catalina.sh:tomcat10-common javac:default-jdk-headless promtool:prometheus make:make openssl:openssl

.PHONY: help
help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: tools ## vet, check the format and run all tests with the race detector
	GOOS=darwin go vet ./...
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "gofmt is due: $$unformatted"; exit 1; }
	go vet ./... && go vet -tags soak ./...
	go test -race -timeout 10m ./...
	WSBRIDGE_TEST_KEEPER=on go test -timeout 10m ./bridge

.PHONY: soak
soak: tools ## run the tests that take longer: the servers with their own idle limits, ten minutes of kills and reloads (WSBRIDGE_SOAK=1h for more), and all without a holder
	go test -tags soak -timeout 60m -run Soak ./...
	WSBRIDGE_TEST_HOLDER=off go test -count=1 -timeout 20m -skip 'Killed|Reloaded|Systemd' ./e2e

.PHONY: bench
bench: ## run the benchmarks, of the parts and of the whole beside nchan (libnginx-mod-nchan) and a bare gorilla server
	WSBRIDGE_BENCH_DOCS=$(CURDIR)/docs/performance.md go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./...

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
		case $${tool%:*} in */*) ls $${tool%:*} ;; *) command -v $${tool%:*} ;; esac >/dev/null 2>&1 && continue; \
		commands="$$commands $${tool%:*}"; packages="$$packages $${tool#*:}"; \
	done; \
	test -n "$$packages" || exit 0; \
	echo "missing:$$commands"; \
	test "$$(id -u)" = 0 || { echo "run: sudo apt-get install$$packages"; exit 1; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages
	@cd e2e/testdata/standardwebhooks-js && { test node_modules/.package-lock.json -nt package-lock.json || npm ci --silent; }

# The Debian package's architecture and version: a tag, or the commit it is made from.
DEB_ARCH ?= $(shell go env GOARCH)
DEB_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/' | grep . || git log -1 --date=format:%Y%m%d%H%M%S --format='0~%cd.%h')
NFPM = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

.PHONY: deb
deb: ## make the Debian package, dist/wsbridge_*.deb, for DEB_ARCH (amd64, arm64)
	mkdir -p dist
	CGO_ENABLED=0 GOOS=linux GOARCH=$(DEB_ARCH) go build -trimpath -ldflags '-s -w' -o dist/wsbridge ./cmd/wsbridge
	for unit in wsbridge.service wsbridge@.service; do sed 's|/usr/local/bin/|/usr/bin/|; /^# wsbridge as a service/,/^#     systemctl/d' systemd/$$unit >dist/$$unit; done
	gzip -9n <packaging/wsbridge.1 >dist/wsbridge.1.gz
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) DEB_ARCH=$(DEB_ARCH) DEB_VERSION=$(DEB_VERSION) GOFLAGS=-mod=mod go run $(NFPM) package --config packaging/nfpm.yaml --packager deb --target dist/
