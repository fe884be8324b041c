package e2e

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What nginx and systemd are told in numbers says in its comments how it hangs together with settings. It does with their defaults.
func TestTheNumbersForNginxAndSystemdFitTheDefaults(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := runOnce(t, []string{"WSBRIDGE_BACKEND_URL=http://127.0.0.1:9"}, "env")
	if code != 0 {
		t.Fatal(stderr)
	}
	first := func(text, pattern string) string {
		t.Helper()
		match := regexp.MustCompile("(?m)" + pattern).FindStringSubmatch(text)
		if match == nil {
			t.Fatalf("there is no %s", pattern)
		}
		return match[1]
	}
	duration := func(text string) time.Duration {
		t.Helper()
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	size := func(text string) int {
		t.Helper()
		text = strings.NewReplacer("k", "<<10", "m", "<<20", "KiB", "<<10", "MiB", "<<20").Replace(text)
		digits, shift, _ := strings.Cut(text, "<<")
		n, err := strconv.Atoi(digits)
		bits, _ := strconv.Atoi(shift)
		if err != nil {
			t.Fatal(err)
		}
		return n << bits
	}
	setting := func(name string) string {
		t.Helper()
		return first(stdout, "^#WSBRIDGE_"+name+"=(.*)$")
	}

	php := nginxFile(t, "wsbridge-php.conf")
	public, private, _ := strings.Cut(nginxFile(t, "wsbridge.conf"), "listen 127.0.0.1:8082;")
	if got, ping := duration(first(public, "^ +proxy_read_timeout (.*);")), duration(setting("PING_INTERVAL")); got < 2*ping {
		t.Errorf("nginx cuts connections that are silent for %s, with a ping each %s", got, ping)
	}
	if got, timeout := duration(first(private, "^ +proxy_read_timeout (.*);")), duration(setting("BACKEND_TIMEOUT")); got <= timeout {
		t.Errorf("nginx gives up on the application after %s, wsbridge after %s: nginx must be the one to wait longer", got, timeout)
	}
	if got, timeout := duration(first(php, "^ +fastcgi_read_timeout (.*);")), duration(setting("BACKEND_TIMEOUT")); got <= timeout {
		t.Errorf("nginx gives up on PHP-FPM after %s, wsbridge after %s: nginx must be the one to wait longer", got, timeout)
	}
	if got, most := size(first(private, "^ +client_max_body_size (.*);")), size(setting("MAX_MESSAGE")); got < most {
		t.Errorf("nginx takes bodies of %d bytes, wsbridge messages of %d", got, most)
	}
	if got, listen := first(public, "^ +server (127.*);"), setting("LISTEN"); got != listen {
		t.Errorf("nginx looks for wsbridge at %s, where it is at %s", got, listen)
	}

	unit, err := os.ReadFile("../systemd/wsbridge.service")
	if err != nil {
		t.Fatal(err)
	}
	if got, drain := duration(first(string(unit), "^TimeoutStopSec=(.*)")), duration(setting("DRAIN_TIMEOUT")); got <= drain {
		t.Errorf("systemd cuts a stop off after %s, a drain takes up to %s", got, drain)
	}
}

// The two files for nginx are the same but for how the application is reached.
func TestTheFileForPHPFPMIsTheOtherForAnotherApplication(t *testing.T) {
	t.Parallel()
	other := nginxFile(t, "wsbridge.conf")
	// The head, and in either server what is said of the application.
	of := regexp.MustCompile(`(?s)^.*?wsbridge.env:\n|    # The application\..*?\n}\n|# What wsbridge sees[^\n]*\n(?:#[^\n]*\n)*|    location = /realtime.php {.*?\n    }\n`)
	if http, php := of.ReplaceAllString(other, ""), of.ReplaceAllString(nginxFile(t, "wsbridge-php.conf"), ""); http != php {
		t.Errorf("nginx/wsbridge.conf and nginx/wsbridge-php.conf differ in more than the application: make each change in both. What is left of the second:\n%s", php)
	} else if len(http) < len(other)/2 {
		t.Errorf("only %d bytes of %d are compared", len(http), len(other))
	}
}

// The unit for several instances is the other one but for the names in it.
func TestTheUnitForInstancesIsTheUnitUnderOtherNames(t *testing.T) {
	t.Parallel()
	var bodies []string
	for _, name := range []string{"wsbridge.service", "wsbridge@.service"} {
		text, err := os.ReadFile("../systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(text), "[Unit]\n")
		bodies = append(bodies, body)
	}
	want := strings.NewReplacer(
		"(wsbridge)", "(wsbridge %i)", "=/etc/wsbridge.env", "=/etc/wsbridge/%i.env", "/run/wsbridge/", "/run/wsbridge-%i/", "Directory=wsbridge", "Directory=wsbridge-%i",
		"/etc/wsbridge/push-token", "/etc/wsbridge/%i.push-token",
	).Replace(bodies[0])
	if bodies[1] != want {
		t.Errorf("wsbridge@.service is\n%s\nwant\n%s", bodies[1], want)
	}
}
