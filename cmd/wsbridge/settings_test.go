package main

import (
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caarlos0/env/v10"

	"wsbridge/bridge"
)

var update = flag.Bool("update", false, "rewrite the files that are printed from the settings")

// withBackend returns an environment that is complete with the lines given.
func withBackend(lines ...string) []string {
	return append([]string{"WSBRIDGE_BACKEND_URL=http://127.0.0.1:9000"}, lines...)
}

// mustParse returns the settings of an environment without faults.
func mustParse(t *testing.T, environ ...string) settings {
	t.Helper()
	s, faults := parse(environ)
	for _, f := range faults {
		t.Fatalf("parse(%q): %v", environ, f)
	}
	return s
}

// wantFault fails unless the environment has exactly one fault, of the variable, that says all the words.
func wantFault(t *testing.T, environ []string, variable string, words ...string) {
	t.Helper()
	_, faults := parse(environ)
	if len(faults) != 1 || faults[0].Variable != variable {
		t.Fatalf("parse(%q): faults = %v, want one of %s", environ, faults, variable)
	}
	for _, word := range words {
		if !strings.Contains(faults[0].Error(), word) {
			t.Errorf("parse(%q): fault = %q, want it to say %q", environ, faults[0], word)
		}
	}
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTheBackendsURLIsAllThatMustBeSet(t *testing.T) {
	t.Parallel()
	wantFault(t, nil, "WSBRIDGE_BACKEND_URL", "must be set", "POSTed")
	s := mustParse(t, withBackend()...)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name      string
		got, want any
	}{
		{"URL", s.Backend.URL.String(), "http://127.0.0.1:9000"},
		{"Timeout", s.Backend.Timeout, 30 * time.Second},
		{"TextType", s.Backend.TextType, "text/plain; charset=utf-8"},
		{"ForwardHeaders", s.Backend.ForwardHeaders, []string{"Cookie", "Authorization", "Origin", "User-Agent", "Accept-Language"}},
		{"MaxConcurrent", s.Backend.MaxConcurrent, 16},
		{"MaxAnswer", s.Backend.MaxAnswer, int64(1 << 20)},
		{"Listen", s.Process.Listen, "127.0.0.1:8080"},
		{"PushListen", s.Process.PushListen, "127.0.0.1:8081"},
		{"SocketMode", s.Process.SocketMode, os.FileMode(0o660)},
		{"DrainTimeout", s.Process.DrainTimeout, 30 * time.Second},
		{"Node", s.Process.Node, host},
		{"LogLevel", s.Process.LogLevel.String(), "INFO"},
		{"LogFormat", s.Process.LogFormat, "text"},
		{"MaxMessage", s.Bridge.MaxMessage, int64(64 << 10)},
		{"SlowClient", s.Bridge.SlowClient, bridge.SlowClose},
		{"IdleTimeout", s.Bridge.IdleTimeout, time.Duration(0)},
	} {
		if !reflect.DeepEqual(row.got, row.want) {
			t.Errorf("%s = %v, want %v", row.name, row.got, row.want)
		}
	}
}

// Every setting, with a value that is not its default.
func otherValues(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"WSBRIDGE_BACKEND_URL":                 "http://unix:/run/app.sock:/events",
		"WSBRIDGE_BACKEND_HOST":                "app.example.org",
		"WSBRIDGE_BACKEND_SECRET":              "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
		"WSBRIDGE_BACKEND_TEXT_TYPE":           `application/json; note="a $HOME of \\ one"`,
		"WSBRIDGE_BACKEND_FORWARD_HEADERS":     "Cookie,X-Tenant",
		"WSBRIDGE_BACKEND_EVENTS":              "message",
		"WSBRIDGE_BACKEND_TIMEOUT":             "1m30s",
		"WSBRIDGE_BACKEND_MAX_CONCURRENT":      "3",
		"WSBRIDGE_BACKEND_MAX_ANSWER":          "2MiB",
		"WSBRIDGE_BACKEND_CA":                  authorityFile(t),
		"WSBRIDGE_BACKEND_TLS_NAME":            "backend.internal",
		"WSBRIDGE_LISTEN":                      "[::]:80",
		"WSBRIDGE_PUSH_LISTEN":                 "unix:/run/wsbridge/push.sock",
		"WSBRIDGE_SOCKET_MODE":                 "0666",
		"WSBRIDGE_TLS_CERT":                    "/etc/wsbridge/cert.pem",
		"WSBRIDGE_TLS_KEY":                     "/etc/wsbridge/key.pem",
		"WSBRIDGE_DRAIN_TIMEOUT":               "2m",
		"WSBRIDGE_NODE":                        "shop-1.example_org",
		"WSBRIDGE_LOG_LEVEL":                   "debug",
		"WSBRIDGE_LOG_FORMAT":                  "json",
		"WSBRIDGE_HOLDER":                      "off",
		"WSBRIDGE_PATHS":                       "/chat,/ws/*",
		"WSBRIDGE_ALLOWED_ORIGINS":             "https://*.example.org,https://example.com",
		"WSBRIDGE_TRUSTED_PROXIES":             "10.0.0.0/8",
		"WSBRIDGE_MAX_CONNECTIONS":             "3000000000",
		"WSBRIDGE_MAX_CONNECTIONS_PER_ADDRESS": "7",
		"WSBRIDGE_HANDSHAKE_TIMEOUT":           "3s",
		"WSBRIDGE_MAX_MESSAGE":                 "1GiB",
		"WSBRIDGE_COMPRESSION":                 "on",
		"WSBRIDGE_PING_INTERVAL":               "5s",
		"WSBRIDGE_PONG_TIMEOUT":                "6s",
		"WSBRIDGE_IDLE_TIMEOUT":                "7s",
		"WSBRIDGE_MAX_AGE":                     "12h",
		"WSBRIDGE_SEND_BUFFER":                 "4097",
		"WSBRIDGE_SLOW_CLIENT":                 "drop-oldest",
		"WSBRIDGE_WRITE_TIMEOUT":               "8s",
		"WSBRIDGE_BACKEND_RETRY":               "always",
		"WSBRIDGE_BACKEND_RETRY_FOR":           "90s",
		"WSBRIDGE_BACKEND_GOODBYE_FOR":         "2h",
		"WSBRIDGE_BACKEND_GOODBYE_MAX":         "99",
		"WSBRIDGE_BACKEND_GOODBYE_BYTES":       "3MiB",
		"WSBRIDGE_STATE_DIR":                   "/var/lib/elsewhere",
		"WSBRIDGE_PUSH_TOKEN":                  "Tr0ub4dor",
		"WSBRIDGE_PUSH_MAX_BODY":               "9KiB",
		"WSBRIDGE_RATE_MESSAGES":               "0.5",
		"WSBRIDGE_RATE_MESSAGES_BURST":         "11",
		"WSBRIDGE_RATE_BYTES":                  "12KiB",
		"WSBRIDGE_RATE_BYTES_BURST":            "13KiB",
		"WSBRIDGE_RATE_HANDSHAKES":             "14",
		"WSBRIDGE_RATE_HANDSHAKES_BURST":       "15",
		"WSBRIDGE_RATE_POLICY":                 "close",
	}
}

// authorityFile writes the certificate that signs httptest's servers.
func authorityFile(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return writeFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
}

func lines(values map[string]string) []string {
	var environ []string
	for name, value := range values {
		environ = append(environ, name+"="+value)
	}
	return environ
}

func TestTheStateDirectoryIsTheUnitsUnlessItIsSet(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		environ []string
		want    string
	}{
		{nil, ""},
		{[]string{"STATE_DIRECTORY=/var/lib/wsbridge"}, "/var/lib/wsbridge"},
		{[]string{"STATE_DIRECTORY=/var/lib/wsbridge:/var/lib/other"}, "/var/lib/wsbridge"},
		{[]string{"STATE_DIRECTORY=/var/lib/wsbridge", "WSBRIDGE_STATE_DIR=/srv/state"}, "/srv/state"},
	} {
		if got := mustParse(t, withBackend(row.environ...)...).Bridge.StateDir; got != row.want {
			t.Errorf("%q: directory = %q, want %q", row.environ, got, row.want)
		}
	}
}

func TestEverySettingIsReadFromItsVariable(t *testing.T) {
	t.Parallel()
	values := otherValues(t)
	byDefault, set := mustParse(t, withBackend()...), mustParse(t, lines(values)...)
	defaults := groups(&byDefault)
	for i, g := range groups(&set) {
		for j, one := range g.Settings {
			if values[one.Name] == "" {
				t.Errorf("%s is missing from this test", one.Name)
			}
			if reflect.DeepEqual(one.Value.Interface(), defaults[i].Settings[j].Value.Interface()) {
				t.Errorf("%s=%s: value = %v, which is the default", one.Name, values[one.Name], one.Value)
			}
			if one.Usage == "" {
				t.Errorf("%s has no usage", one.Name)
			}
		}
	}
}

func TestAVariableSetToNothingCountsAsUnset(t *testing.T) {
	t.Parallel()
	var environ []string
	for name := range otherValues(t) {
		environ = append(environ, name+"=")
	}
	environ = append(environ, "WSBRIDGE_PUSH_TOKEN_FILE=", "WSBRIDGE_LISTNE=")
	environ = slices.DeleteFunc(environ, func(line string) bool { return line == "WSBRIDGE_BACKEND_URL=" })
	want := mustParse(t, withBackend()...)
	if got := mustParse(t, withBackend(environ...)...); !reflect.DeepEqual(got, want) {
		t.Errorf("settings = %+v, want the defaults %+v", got, want)
	}
	wantFault(t, []string{"WSBRIDGE_BACKEND_URL="}, "WSBRIDGE_BACKEND_URL", "must be set")
}

func TestASettingThatDoesNotParseIsNamedByItsVariable(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ variable, value, word string }{
		{"WSBRIDGE_BACKEND_URL", "127.0.0.1:9000", "http://"},
		{"WSBRIDGE_BACKEND_EVENTS", "connect,messages", "messages"},
		{"WSBRIDGE_BACKEND_TIMEOUT", "30", "30s"},
		{"WSBRIDGE_BACKEND_MAX_CONCURRENT", "many", "a whole number, at least 1"},
		{"WSBRIDGE_BACKEND_MAX_CONCURRENT", "1e3", "a whole number"},
		{"WSBRIDGE_BACKEND_MAX_CONCURRENT", "9223372036854775808", "too large"},
		{"WSBRIDGE_BACKEND_MAX_ANSWER", "1MB", `: "MB" is not a unit; allowed: a whole number of bytes (65536), or of KiB, MiB or GiB (64KiB), at least 1`},
		{"WSBRIDGE_BACKEND_MAX_ANSWER", "-1", "not a whole number; allowed: a whole number of bytes"},
		{"WSBRIDGE_BACKEND_MAX_ANSWER", "1.5MiB", "not a whole number; allowed: a whole number of bytes"},
		{"WSBRIDGE_BACKEND_HOST", "app.example.org/path", "a name or an address"},
		{"WSBRIDGE_BACKEND_HOST", "app example", "a name or an address"},
		{"WSBRIDGE_BACKEND_HOST", "user@example.org", "a name or an address"},
		{"WSBRIDGE_BACKEND_HOST", "::1", "[::1]:9000"},
		{"WSBRIDGE_BACKEND_HOST", "app:web", "a name or an address"},
		{"WSBRIDGE_BACKEND_TEXT_TYPE", "json", "application/json"},
		{"WSBRIDGE_BACKEND_TEXT_TYPE", "text/plain; charset", "application/json"},
		{"WSBRIDGE_BACKEND_TEXT_TYPE", "text/plain; name=\"\u00e9\"", "application/json"},
		{"WSBRIDGE_BACKEND_TEXT_TYPE", "text/plain\r\nX-Evil: 1", "application/json"},
		{"WSBRIDGE_BACKEND_CA", "/nonexistent/ca.pem", "cannot be read: no such file"},
		{"WSBRIDGE_BACKEND_CA", "settings.go", "no certificate"},
		{"WSBRIDGE_LISTEN", "8080", "host:port"},
		{"WSBRIDGE_LISTEN", "http://127.0.0.1:8080", "host:port"},
		{"WSBRIDGE_LISTEN", "127.0.0.256:8080", "host:port"},
		{"WSBRIDGE_LISTEN", "127.0.0.1:http", "0 to 65535"},
		{"WSBRIDGE_LISTEN", "127.0.0.1:65536", "0 to 65535"},
		{"WSBRIDGE_PUSH_LISTEN", "unix:push.sock", "absolute"},
		{"WSBRIDGE_PUSH_LISTEN", "unix:/run/wsbridge/", "name a file"},
		{"WSBRIDGE_PUSH_LISTEN", "unix:/" + strings.Repeat("p", 107), "107"},
		{"WSBRIDGE_SOCKET_MODE", "rw-rw----", "0660"},
		{"WSBRIDGE_SOCKET_MODE", "0680", "0660"},
		{"WSBRIDGE_SOCKET_MODE", "1777", "0777"},
		{"WSBRIDGE_NODE", "shop 1", "letters"},
		{"WSBRIDGE_NODE", strings.Repeat("n", 64), "63"},
		{"WSBRIDGE_LOG_LEVEL", "loud", "debug, info, warn, error"},
		{"WSBRIDGE_LOG_LEVEL", "INFO+2", "debug, info, warn, error"},
		{"WSBRIDGE_LOG_FORMAT", "xml", "text, json"},
		{"WSBRIDGE_PATHS", "chat", "chat"},
		{"WSBRIDGE_PATHS", "/chat,,/ws", "empty item"},
		{"WSBRIDGE_TRUSTED_PROXIES", "10.0.0.1", "10.0.0.1/32"},
		{"WSBRIDGE_TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.1/33", `: "10.0.0.1/33" is not a network; allowed: networks such as`},
		{"WSBRIDGE_PING_INTERVAL", "25 s", "a duration such as"},
		{"WSBRIDGE_COMPRESSION", "yes", "on, off"},
		{"WSBRIDGE_SLOW_CLIENT", "drop", "close, drop-oldest"},
		{"WSBRIDGE_RATE_MESSAGES", "NaN", "a number such as"},
		{"WSBRIDGE_RATE_MESSAGES", "+Inf", "a number such as"},
		{"WSBRIDGE_RATE_MESSAGES", "1e999", "a number such as"},
		{"WSBRIDGE_RATE_POLICY", "closed", "wait, close"},
	} {
		wantFault(t, withBackend(row.variable+"="+row.value), row.variable, row.word, strconv.Quote(row.value))
	}
}

func TestAValueBelowTheLeastIsAFault(t *testing.T) {
	t.Parallel()
	s := mustParse(t, withBackend()...)
	tried := 0
	for _, g := range groups(&s) {
		for _, one := range g.Settings {
			if one.Min == "" {
				continue
			}
			tried++
			below := "0"
			if one.Min == "0" {
				below = "-1"
			}
			if one.Value.Type() == reflect.TypeFor[time.Duration]() && one.Min != "0" {
				below = "999us"
			} else if one.Value.Type() == reflect.TypeFor[time.Duration]() {
				below = "-1ns"
			}
			wantFault(t, withBackend(one.Name+"="+below), one.Name, below)
			mustParse(t, withBackend(one.Name+"="+one.Min)...)
		}
	}
	if tried < 20 {
		t.Errorf("settings with a least value = %d, want at least 20", tried)
	}
	wantFault(t, withBackend("WSBRIDGE_RATE_MESSAGES=-0.5"), "WSBRIDGE_RATE_MESSAGES", "at least 0")
}

func TestEveryFaultIsReportedAtOnceInTheOrderOfTheDocuments(t *testing.T) {
	t.Parallel()
	_, faults := parse([]string{
		"WSBRIDGE_RATE_POLICY=x", "WSBRIDGE_ZEBRA=1", "WSBRIDGE_APE=1", "WSBRIDGE_PUSH_TOKEN_FILE=/nonexistent", "WSBRIDGE_TLS_KEY=k",
		"WSBRIDGE_PING_INTERVAL=0", "WSBRIDGE_PATHS=chat", "WSBRIDGE_BACKEND_TIMEOUT=x", "WSBRIDGE_BACKEND_MAX_CONCURRENT=x", "PATH=/bin",
	})
	var got []string
	for _, f := range faults {
		got = append(got, f.Variable)
	}
	want := []string{
		"WSBRIDGE_BACKEND_URL", "WSBRIDGE_BACKEND_TIMEOUT", "WSBRIDGE_BACKEND_MAX_CONCURRENT", "WSBRIDGE_TLS_CERT", "WSBRIDGE_PATHS",
		"WSBRIDGE_PING_INTERVAL", "WSBRIDGE_PUSH_TOKEN_FILE", "WSBRIDGE_RATE_POLICY", "WSBRIDGE_APE", "WSBRIDGE_ZEBRA",
	}
	if !slices.Equal(got, want) {
		t.Errorf("faults of %v, want %v", got, want)
	}
}

func TestAMisspeltVariableIsAFaultThatNamesTheNearest(t *testing.T) {
	t.Parallel()
	for misspelt, nearest := range map[string]string{
		"WSBRIDGE_LISTNE":           "WSBRIDGE_LISTEN",
		"WSBRIDGE_BACKEND_TIME_OUT": "WSBRIDGE_BACKEND_TIMEOUT",
		"WSBRIDGE_MAX_MESAGE":       "WSBRIDGE_MAX_MESSAGE",
		"WSBRIDGE_PUSH_TOKENFILE":   "WSBRIDGE_PUSH_TOKEN_FILE",
		"WSBRIDGE_BACKENDURL":       "WSBRIDGE_BACKEND_URL",
		"WSBRIDGE_BACKEND_URL_FILE": "WSBRIDGE_BACKEND_URL",
		"WSBRIDGE_BACKEND_TIMEOUTS": "WSBRIDGE_BACKEND_TIMEOUT",
		"WSBRIDGE_RATE_MESSAGE":     "WSBRIDGE_RATE_MESSAGES",
	} {
		environ := withBackend(misspelt + "=Tr0ub4dor")
		wantFault(t, environ, misspelt, "nearest name is "+nearest)
		if _, faults := parse(environ); strings.Contains(faults[0].Error(), "Tr0ub4dor") {
			t.Errorf("fault = %q, which shows the value", faults[0])
		}
	}
}

func TestAMisspeltVariableThatIsNearNoneIsSuggestedNone(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"WSBRIDGE_X", "WSBRIDGE_", "WSBRIDGE_NAME", "WSBRIDGE_URL", "WSBRIDGE_WORKERS", "WSBRIDGE_REDIS_PASSWORD"} {
		environ := withBackend(name + "=Tr0ub4dor")
		wantFault(t, environ, name, "wsbridge env")
		if _, faults := parse(environ); strings.Contains(faults[0].Error(), "nearest") {
			t.Errorf("fault = %q, want no suggestion", faults[0])
		}
	}
}

func TestWhatOrchestratorsInjectIsLetBe(t *testing.T) {
	t.Parallel()
	mustParse(t, withBackend("WSBRIDGE_SERVICE_HOST=10.0.0.7", "WSBRIDGE_SERVICE_PORT=80", "WSBRIDGE_PORT=tcp://10.0.0.7:80",
		"WSBRIDGE_PORT_80_TCP_ADDR=10.0.0.7", "wsbridge_listen=x", "NOT_WSBRIDGE_X=1", "WSBRIDGE", "=C:=x")...)
}

func TestTheDistanceOfTwoNamesIsTheNumberOfEdits(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"kitten", "sitting", 3}, {"LISTNE", "LISTEN", 2}, {"flaw", "lawn", 2}} {
		if got := distance(row.a, row.b); got != row.want {
			t.Errorf("distance(%q, %q) = %d, want %d", row.a, row.b, got, row.want)
		}
	}
}

func TestASecretMayComeFromAFile(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{"Tr0ub4dor\n": "Tr0ub4dor", "Tr0ub4dor\r\n": "Tr0ub4dor", "Tr0ub4dor": "Tr0ub4dor", "a b": "a b"} {
		s := mustParse(t, withBackend("WSBRIDGE_PUSH_TOKEN_FILE="+writeFile(t, content))...)
		if s.Bridge.PushToken != want {
			t.Errorf("token of a file with %q = %q, want %q", content, s.Bridge.PushToken, want)
		}
	}
}

func TestASecretsFileThatHoldsNoneIsAFault(t *testing.T) {
	t.Parallel()
	const variable = "WSBRIDGE_PUSH_TOKEN_FILE"
	wantFault(t, withBackend(variable+"=/nonexistent/token"), variable, `"/nonexistent/token"`, "no such file")
	wantFault(t, withBackend(variable+"="+t.TempDir()), variable, "directory")
	wantFault(t, withBackend(variable+"="+writeFile(t, "")), variable, "empty")
	wantFault(t, withBackend(variable+"="+writeFile(t, "\n")), variable, "empty")
	wantFault(t, withBackend(variable+"="+writeFile(t, "x"), "WSBRIDGE_PUSH_TOKEN=y"), variable, "WSBRIDGE_PUSH_TOKEN is set as well")
}

func TestASecretIsNeverPrinted(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "Tr0ub4dor\n two lines")
	for _, environ := range [][]string{
		withBackend("WSBRIDGE_PUSH_TOKEN=Tr0ub4dor"),
		withBackend("WSBRIDGE_PUSH_TOKEN=Tr0ub4dor\u00e9"),
		withBackend("WSBRIDGE_PUSH_TOKEN= Tr0ub4dor"),
		withBackend("WSBRIDGE_PUSH_TOKEN=Tr0ub4dor", "WSBRIDGE_PUSH_TOKEN_FILE="+file),
		withBackend("WSBRIDGE_PUSH_TOKEN_FILE=" + file),
		withBackend("WSBRIDGE_TOKEN=Tr0ub4dor"),
		{"WSBRIDGE_BACKEND_URL=http://user:Tr0ub4dor@127.0.0.1:9000"},
		{"WSBRIDGE_BACKEND_URL=http://user:Tr0ub4dor/@x@127.0.0.1:9000"},
		{"WSBRIDGE_BACKEND_URL=http://user:x@Tr0ub4dor@127.0.0.1:9000"},
	} {
		var out strings.Builder
		for _, f := range printEnv(&out, environ) {
			fmt.Fprintln(&out, f)
		}
		if strings.Contains(out.String(), "Tr0ub4dor") {
			t.Errorf("with %q this is printed:\n%s", environ, out.String())
		}
	}
}

func TestTheErrorOfASecretIsNotShown(t *testing.T) {
	t.Parallel()
	g := group{Settings: []setting{{Name: "WSBRIDGE_KEYS", Field: "Keys", Secret: true, Value: reflect.ValueOf([]string{})}}}
	p := parsing{values: map[string]string{"WSBRIDGE_KEYS": "Tr0ub4dor"}, groups: []group{g}}
	p.refuseUnparsed(g, env.ParseError{Name: "Keys", Err: errors.New(`"Tr0ub4dor" is not base64`)})
	if got, want := fmt.Sprint(p.faults), "[WSBRIDGE_KEYS: does not parse]"; got != want {
		t.Errorf("faults = %s, want %s", got, want)
	}
}

func TestATokenThatNoHeaderCanCarryIsAFault(t *testing.T) {
	t.Parallel()
	for _, token := range []string{" token", "token\t", "t\u00f6ken", "to\nken"} {
		wantFault(t, withBackend("WSBRIDGE_PUSH_TOKEN="+token), "WSBRIDGE_PUSH_TOKEN", "printable ASCII")
	}
}

func TestPushesFromOtherHostsNeedAToken(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:8081", ":8081", "[::]:8081", "10.0.0.7:8081", "push.example.org:8081"} {
		environ := withBackend("WSBRIDGE_PUSH_LISTEN=" + address)
		wantFault(t, environ, "WSBRIDGE_PUSH_TOKEN", "must be set", address)
		mustParse(t, append(environ, "WSBRIDGE_PUSH_TOKEN=t")...)
		mustParse(t, append(environ, "WSBRIDGE_PUSH_TOKEN_FILE="+writeFile(t, "t"))...)
		wantFault(t, append(environ, "WSBRIDGE_PUSH_TOKEN_FILE=/nonexistent"), "WSBRIDGE_PUSH_TOKEN_FILE")
	}
	for _, address := range []string{"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/run/push.sock"} {
		mustParse(t, withBackend("WSBRIDGE_PUSH_LISTEN="+address)...)
	}
}

func TestClientsAndPushesNeedAnAddressEach(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		listen, push string
		same         bool
	}{
		{"127.0.0.1:8080", "127.0.0.1:8080", true},
		{"localhost:8080", "127.0.0.1:8080", true},
		{":8080", "127.0.0.1:8080", true},
		{"0.0.0.0:8080", "[::1]:8080", true},
		{"127.0.0.1:8080", "127.0.0.1:08080", true},
		{"127.0.0.1:8080", "[::ffff:127.0.0.1]:8080", true},
		{"unix:/run/a.sock", "unix:/run/a.sock", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"127.0.0.1:8080", "127.0.0.2:8080", false},
		{"127.0.0.1:8080", "[::1]:8080", false},
		{"unix:/run/a.sock", "unix:/run/b.sock", false},
		{"a.example.org:8080", "127.0.0.1:8080", false},
	} {
		environ := withBackend("WSBRIDGE_LISTEN="+row.listen, "WSBRIDGE_PUSH_LISTEN="+row.push)
		if row.same {
			wantFault(t, environ, "WSBRIDGE_PUSH_LISTEN", "the same as WSBRIDGE_LISTEN")
		} else {
			mustParse(t, environ...)
		}
	}
}

func TestACertificateAndItsKeyComeTogether(t *testing.T) {
	t.Parallel()
	wantFault(t, withBackend("WSBRIDGE_TLS_CERT=c"), "WSBRIDGE_TLS_KEY", "WSBRIDGE_TLS_CERT")
	wantFault(t, withBackend("WSBRIDGE_TLS_KEY=k"), "WSBRIDGE_TLS_CERT", "WSBRIDGE_TLS_KEY")
}

func TestOnlyHeadersThatDescribeTheClientAreForwarded(t *testing.T) {
	t.Parallel()
	const variable = "WSBRIDGE_BACKEND_FORWARD_HEADERS"
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding", "upgrade",
		"Expect", "host", "Accept-Encoding", "Content-Type", "content-length", "CE-Id", "ce-anything", "Webhook-Signature", "traceparent",
		"X-Forwarded-For", "x-forwarded-anything", "X-Real-IP", "Sec-WebSocket-Key", "a b", "a:b", "h\u00e9", "\u212aelvin",
	} {
		wantFault(t, withBackend(variable+"=Cookie,"+name), variable, strconv.Quote(name))
	}
	s := mustParse(t, withBackend(variable+"= cookie , X-Tenant,ticket,Contents,x_y")...)
	if want := []string{"Cookie", "X-Tenant", "Ticket", "Contents", "X_y"}; !slices.Equal(s.Backend.ForwardHeaders, want) {
		t.Errorf("ForwardHeaders = %q, want %q", s.Backend.ForwardHeaders, want)
	}
}

func TestAHostHeaderMayHaveAPort(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"app", "app.example.org", "app.example.org:8443", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "my_app"} {
		mustParse(t, withBackend("WSBRIDGE_BACKEND_HOST="+host)...)
	}
}

func TestWithoutPathsTheBackendsURLDecides(t *testing.T) {
	t.Parallel()
	for url, want := range map[string][]bridge.Path{
		"http://127.0.0.1:9000":              {"/ws", "/ws/*"},
		"http://unix:/run/app.sock":          {"/ws", "/ws/*"},
		"http://127.0.0.1:9000/realtime.php": {"/*"},
		"http://127.0.0.1:9000/":             {"/*"},
	} {
		if s := mustParse(t, "WSBRIDGE_BACKEND_URL="+url); !slices.Equal(s.Bridge.Paths, want) {
			t.Errorf("paths for %s = %q, want %q", url, s.Bridge.Paths, want)
		}
	}
	s := mustParse(t, "WSBRIDGE_BACKEND_URL=http://127.0.0.1:9000/x", "WSBRIDGE_PATHS=/chat, /b/*")
	if want := []bridge.Path{"/chat", "/b/*"}; !slices.Equal(s.Bridge.Paths, want) {
		t.Errorf("paths = %q, want %q", s.Bridge.Paths, want)
	}
}

func TestABurstIsTwiceTheRateAndAtLeastOneUnlessItIsOff(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		rate, bytes string
		messages    int
		burst       int64
	}{
		{"0", "0", 0, 0}, {"1e-300", "1", 1, 2}, {"0.1", "1", 1, 2}, {"0.75", "3", 2, 6}, {"10", "1MiB", 20, 2 << 20},
		{"1e300", "9223372036854775807", math.MaxInt32, math.MaxInt64 - 1},
	} {
		s := mustParse(t, withBackend("WSBRIDGE_RATE_MESSAGES="+row.rate, "WSBRIDGE_RATE_HANDSHAKES="+row.rate, "WSBRIDGE_RATE_BYTES="+row.bytes)...)
		if s.Rate.MessagesBurst != row.messages || s.Rate.HandshakesBurst != row.messages || s.Rate.BytesBurst != row.burst {
			t.Errorf("bursts of %s and %s bytes = %d, %d, %d bytes, want %d, %d, %d bytes", row.rate, row.bytes,
				s.Rate.MessagesBurst, s.Rate.HandshakesBurst, s.Rate.BytesBurst, row.messages, row.messages, row.burst)
		}
	}
}

func TestTheDescriptorLimitBoundsTheConnections(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		descriptors uint64
		posts, want int
	}{
		{0, 16, 65536}, // unknown
		{64, 16, 1},
		{1024, 16, 842},
		{65536, 16, 58903},
		{1 << 20, 100, 943555},
		{1<<20 + 1, 100, 65536},
		{math.MaxUint64, 16, 65536}, // unlimited
	} {
		if got := connectionsFor(row.descriptors, row.posts); got != row.want {
			t.Errorf("connectionsFor(%d, %d) = %d, want %d", row.descriptors, row.posts, got, row.want)
		}
	}
	s := mustParse(t, withBackend("WSBRIDGE_BACKEND_MAX_CONCURRENT=5")...)
	if want := connectionsFor(descriptors(), 5); s.Bridge.MaxConnections != want {
		t.Errorf("MaxConnections = %d, want %d", s.Bridge.MaxConnections, want)
	}
}

func TestASizeIsANumberOfBytesOrHasABinaryUnit(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int64{"0": 0, "65536": 65536, "064": 64, "64KiB": 64 << 10, "1MiB": 1 << 20, "3GiB": 3 << 30,
		"9223372036854775807": math.MaxInt64, "9007199254740991KiB": math.MaxInt64 - 1023} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "KiB", "-1", "+1", "1.5MiB", "1KB", "1K", "1kib", "1 KiB", "1KiB ", "1TiB", "0x10", "1_000", "\u0661",
		"9223372036854775808", "9007199254740992KiB", "8589934592GiB", "99999999999999999999GiB"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", s, got)
		}
	}
}

func FuzzASizeIsExactOrAnError(f *testing.F) {
	for _, s := range []string{"0", "64KiB", "1MiB", "2GiB", "-1", "1.5KiB", "9007199254740992KiB", "KiB", "\u0661"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, ok := new(big.Int), false
		for unit, factor := range map[string]int64{"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
			digits := strings.TrimSuffix(s, unit)
			if digits+unit != s || digits == "" || strings.Trim(digits, "0123456789") != "" {
				continue
			}
			want.SetString(digits, 10)
			want.Mul(want, big.NewInt(factor))
			ok = want.IsInt64()
		}
		got, err := parseSize(s)
		if ok != (err == nil) || ok && got != want.Int64() {
			t.Errorf("parseSize(%q) = %d, %v, want %v (allowed: %v)", s, got, err, want, ok)
		}
	})
}

func TestWhatEnvPrintsIsAnEnvironmentFileOfTheSameSettings(t *testing.T) {
	t.Parallel()
	values := otherValues(t)
	for _, secret := range []string{"WSBRIDGE_PUSH_TOKEN", "WSBRIDGE_BACKEND_SECRET"} {
		values[secret+"_FILE"] = writeFile(t, values[secret])
		delete(values, secret)
	}
	var out strings.Builder
	if faults := printEnv(&out, lines(values)); len(faults) > 0 {
		t.Fatalf("faults = %v, want none", faults)
	}
	// A shell unquotes as systemd does.
	command := exec.Command("/bin/sh", "-c", `set -a; . "$0"; exec env -0`, writeFile(t, out.String()))
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	read, err := command.Output()
	if err != nil {
		t.Fatalf("reading the file with sh: %v\n%s", err, out.String())
	}
	if got := variables(strings.Split(string(read), "\x00")); !maps.Equal(got, values) {
		t.Errorf("variables = %q, want %q", got, values)
	}
}

func TestEnvShowsABurstOnlyWhereItsRateIsOn(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ environ, line string }{
		{"", "#WSBRIDGE_RATE_MESSAGES_BURST="},
		{"", "#WSBRIDGE_RATE_BYTES_BURST="},
		{"", "#WSBRIDGE_RATE_HANDSHAKES_BURST="},
		{"WSBRIDGE_RATE_MESSAGES=10", "#WSBRIDGE_RATE_MESSAGES_BURST=20"},
		{"WSBRIDGE_RATE_BYTES=1KiB", "#WSBRIDGE_RATE_BYTES_BURST=2048"},
		{"WSBRIDGE_RATE_HANDSHAKES=0.1", "#WSBRIDGE_RATE_HANDSHAKES_BURST=1"},
		{"WSBRIDGE_RATE_MESSAGES_BURST=3", "WSBRIDGE_RATE_MESSAGES_BURST=3"},
	} {
		var out strings.Builder
		if faults := printEnv(&out, withBackend(row.environ)); len(faults) > 0 {
			t.Errorf("faults = %v, want none", faults)
		}
		if !strings.Contains(out.String(), "\n"+row.line+"\n") {
			t.Errorf("with %q the line %s is missing from\n%s", row.environ, row.line, out.String())
		}
	}
}

func TestEnvTellsWhatIsSetFromWhatIsNot(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	faults := printEnv(&out, withBackend("WSBRIDGE_MAX_MESSAGE=1 MiB", "WSBRIDGE_PUSH_TOKEN=t", "WSBRIDGE_MISSPELT=1", "WSBRIDGE_NODE=shop"))
	if len(faults) != 2 {
		t.Errorf("faults = %v, want two", faults)
	}
	all := strings.Split(out.String(), "\n")
	for _, line := range []string{
		"WSBRIDGE_BACKEND_URL=http://127.0.0.1:9000", `WSBRIDGE_MAX_MESSAGE="1 MiB"`, "#WSBRIDGE_PUSH_TOKEN=(set)", "#WSBRIDGE_PUSH_TOKEN_FILE=",
		"#WSBRIDGE_LISTEN=127.0.0.1:8080", "WSBRIDGE_NODE=shop", "#WSBRIDGE_PATHS=/ws,/ws/*", "#WSBRIDGE_ALLOWED_ORIGINS=",
		fmt.Sprintf("#WSBRIDGE_MAX_CONNECTIONS=%d", connectionsFor(descriptors(), 16)),
	} {
		if !slices.Contains(all, line) {
			t.Errorf("the line %s is missing from\n%s", line, out.String())
		}
	}
	if head, _, _ := strings.Cut(out.String(), "\n\n"); !strings.Contains(strings.ReplaceAll(head, "\n# ", " "), "secrets are left out") {
		t.Errorf("the head does not say that secrets are left out:\n%s", head)
	}
	if strings.Contains(out.String(), "MISSPELT") {
		t.Errorf("an unknown variable is printed:\n%s", out.String())
	}
}

// The files that are printed from the settings. `go test ./cmd/wsbridge -run Golden -update` rewrites them.

func TestGoldenEnvironmentFile(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	writeEnv(&out, groups(new(settings)), nil)
	golden(t, "../../systemd/wsbridge.env", out.String())
}

func TestGoldenReadmeTable(t *testing.T) {
	t.Parallel()
	const name, start, end = "../../README.md", "<!-- settings -->\n", "<!-- /settings -->"
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, foundStart := strings.Cut(string(content), start)
	_, after, foundEnd := strings.Cut(rest, end)
	if !foundStart || !foundEnd {
		t.Fatalf("%s has no place for the table of settings: put the lines %s and %s where it belongs, and run with -update", name, strings.TrimSpace(start), end)
	}
	golden(t, name, before+start+readmeTable()+end+after)
}

func golden(t *testing.T, name, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v: go test ./cmd/wsbridge -run Golden -update writes it", err)
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		if i >= len(gotLines) || i >= len(wantLines) || gotLines[i] != wantLines[i] {
			t.Fatalf("%s differs from the settings at line %d: go test ./cmd/wsbridge -run Golden -update rewrites it", name, i+1)
		}
	}
}

// readmeTable is every setting as a table in Markdown.
func readmeTable() string {
	var table strings.Builder
	table.WriteString("| variable | default | meaning |\n|---|---|---|\n")
	escape := strings.NewReplacer("|", `\|`, "*", `\*`, "<", `\<`)
	for _, g := range groups(new(settings)) {
		for _, one := range g.Settings {
			byDefault, meaning := "", one.Usage
			if one.Default != "" {
				byDefault = "`" + one.Default + "`"
			}
			if one.Required {
				byDefault = "required"
			}
			if one.Secret {
				meaning += "; " + one.Name + "_FILE names a file that holds it"
			}
			fmt.Fprintf(&table, "| `%s` | %s | %s |\n", one.Name, byDefault, escape.Replace(meaning))
		}
	}
	return table.String()
}
