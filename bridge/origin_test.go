package bridge

import (
	"net/url"
	"strings"
	"testing"
)

func TestAnOriginPatternIsKeptAsABrowserWritesIt(t *testing.T) {
	rows := []struct{ text, want string }{
		{"https://example.org", "https://example.org"},
		{"HTTPS://Example.ORG", "https://example.org"},
		{"https://example.org:443", "https://example.org"},
		{"http://example.org:80", "http://example.org"},
		{"http://example.org:443", "http://example.org:443"},
		{"https://example.org:8443", "https://example.org:8443"},
		{"https://example.org.", "https://example.org"},
		{"https://*.example.org", "https://*.example.org"},
		{"https://*.Example.org:443", "https://*.example.org"},
		{"https://*.example.org:8443", "https://*.example.org:8443"},
		{"http://[0:0::1]:8080", "http://[::1]:8080"},
		{"http://192.0.2.1", "http://192.0.2.1"},
		{"capacitor://localhost", "capacitor://localhost"},
		{"app://x", "app://x"},
		{"chrome-extension://abc", "chrome-extension://abc"},
		{"file://", "file://"},
		{"null", "null"},
		{"*", "*"},
	}
	for _, row := range rows {
		var got Origin
		if err := got.UnmarshalText([]byte(row.text)); err != nil || string(got) != row.want {
			t.Errorf("%q: got = %q, %v, want %q", row.text, got, err, row.want)
		}
	}
}

func TestAnOriginPatternThatNoBrowserCouldMatchIsAnError(t *testing.T) {
	rows := []struct{ text, want string }{
		{"", "must be scheme://host[:port]"},
		{"example.org", "must be scheme://host[:port]"},
		{"*.example.org", "must be scheme://host[:port]"},
		{"https:/example.org", "must be scheme://host[:port]"},
		{"wss://example.org", "must be the origin of the page"},
		{"ws://example.org", "must be the origin of the page"},
		{"://example.org", "must start with a scheme"},
		{"*://example.org", "must start with a scheme"},
		{"1a://example.org", "must start with a scheme"},
		{"https://", "must have a host"},
		{"https://*", "must have a host"},
		{"https://*.", "must have a host"},
		{"file://*.", "must have a host name behind *."},
		{"https://*.[::1]", "must have a host name behind *."},
		{"https://*example.org", "must have a host"},
		{"https://*.*.example.org", "must have a host"},
		{"https://example.*", "must have a host"},
		{"https://.example.org", "must have a host"},
		{"https://example..org", "must have a host"},
		{"https://example.org..", "must have a host"},
		{"https://example.org/", "must have a host"},
		{"https://example.org/chat", "must have a host"},
		{"https://example.org?x", "must have a host"},
		{"https://me@example.org", "must have a host"},
		{"https://exämple.org", "must have a host"},
		{"https://ban\u212a.org", "must have a host"}, // the Kelvin sign
		{"https://example.org:", "must have a host"},
		{"https://example.org:0", "must have a host"},
		{"https://example.org:65536", "must have a host"},
		{"https://example.org:*", "must have a host"},
		{"http://::1", "must have a host"},
		{"http://[::1", "must have a host"},
		{"http://[::1]x", "must have a host"},
		{"http://[fe80::1%eth0]", "must have a host"},
		{"http://[192.0.2.1]", "must have a host"},
		{"https://a, https://b", "must have a host"},
		{"https://" + strings.Repeat("a", 254), "must have a host"},
	}
	for _, row := range rows {
		o := Origin("as before")
		err := o.UnmarshalText([]byte(row.text))
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: error = %v, want one with %q", row.text, err, row.want)
		}
		if o != "as before" {
			t.Errorf("%q: pattern = %q, want no change", row.text, o)
		}
	}
}

func TestWithoutPatternsAnOriginMustBeOfTheHostThatWasAskedFor(t *testing.T) {
	rows := []struct {
		origin, host string
		want         bool
	}{
		{"https://example.org", "example.org", true},
		{"http://example.org", "example.org", true},
		{"HTTPS://EXAMPLE.org", "Example.ORG", true},
		{"https://example.org.", "example.org", true},
		{"https://example.org", "example.org.", true},
		{"https://example.org:8443", "example.org:8443", true},
		{"https://example.org:8443", "example.org", true}, // nginx's $host
		{"https://example.org:8443", "example.org:9443", false},
		{"https://example.org", "example.org:443", true},
		{"http://example.org", "example.org:80", true},
		{"http://example.org", "example.org:443", false},
		{"https://example.org", "example.org:8443", false},
		{"https://example.org:443", "example.org", true},
		{"http://192.0.2.1:8080", "192.0.2.1:8080", true},
		{"http://192.0.2.1", "192.0.2.2", false},
		{"http://[::1]:8080", "[::1]:8080", true},
		{"http://[::1]:8080", "[0:0:0::1]:8080", true},
		{"http://[::1]:8080", "[::1]", true},
		{"http://[::1]", "[::2]", false},
		{"capacitor://localhost", "localhost", true},
		{"capacitor://localhost", "localhost:8080", false},
		{"https://localhost", "127.0.0.1", false},

		{"https://evil.com", "example.org", false},
		{"https://www.example.org", "example.org", false},
		{"https://example.org", "www.example.org", false},
		{"https://example.org.evil.com", "example.org", false},
		{"https://evilexample.org", "example.org", false},
		{"https://evil.com/example.org", "example.org", false},
		{"https://evil.com#example.org", "example.org", false},
		{"https://evil.com?example.org", "example.org", false},
		{"https://example.org@evil.com", "example.org", false},
		{"https://evil.com@example.org", "example.org", false},
		{"https://example.org:443@evil.com", "example.org", false},
		{`https://evil.com\example.org`, "example.org", false},
		{`https://evil.com\.example.org`, "example.org", false},
		{"https://example.org%2eevil.com", "example.org", false},
		{"https://example.org/", "example.org", false},
		{"https://example.org ", "example.org", false},
		{"https://example.org:", "example.org", false},
		{"https://example.org:x", "example.org", false},
		{"https://ban\u212a.org", "bank.org", false}, // the Kelvin sign
		{"https://example.org, https://evil.com", "example.org", false},
		{"https://example.org https://evil.com", "example.org", false},
		{"example.org", "example.org", false},
		{"//example.org", "example.org", false},
		{"https:example.org", "example.org", false},
		{"null", "example.org", false},
		{"null", "null", false},
		{"file://", "", false},
		{"https://", "", false},
		{"https://example.org", "", false},
		{"https://example.org", "example.org:x", false},
		{"https://example.org", "me@example.org", false},
	}
	for _, row := range rows {
		if got := originAllowed([]string{row.origin}, nil, row.host); got != row.want {
			t.Errorf("origin %q, host %q: allowed = %v, want %v", row.origin, row.host, got, row.want)
		}
	}
}

func TestEitherHostMayBeTheOrigins(t *testing.T) {
	origin := []string{"https://example.org"}
	if !originAllowed(origin, nil, "127.0.0.1:8080", "example.org") {
		t.Error("the forwarded host doesn't count")
	}
	if !originAllowed(origin, nil, "example.org", "other.example") {
		t.Error("the request's own host doesn't count")
	}
	if originAllowed(origin, nil, "127.0.0.1:8080", "other.example") {
		t.Error("an origin of neither host is allowed")
	}
	if originAllowed(origin, nil) {
		t.Error("an origin is allowed without a host")
	}
}

func TestPatternsSayWhichOriginsMayConnect(t *testing.T) {
	rows := []struct {
		patterns, origin string
		want             bool
	}{
		{"https://example.org", "https://example.org", true},
		{"https://example.org", "HTTPS://Example.org", true},
		{"https://example.org", "https://example.org:443", true},
		{"https://example.org", "http://example.org", false},
		{"https://example.org", "https://example.org:8443", false},
		{"https://example.org", "https://www.example.org", false},
		{"https://example.org", "https://here.example", false}, // the host that was asked for
		{"https://example.org:8443", "https://example.org:8443", true},
		{"https://example.org:8443", "https://example.org", false},

		{"https://*.example.org", "https://www.example.org", true},
		{"https://*.example.org", "https://a.b.example.org", true},
		{"https://*.example.org", "https://example.org", false},
		{"https://*.example.org", "https://.example.org", false},
		{"https://*.example.org", "https://evilexample.org", false},
		{"https://*.example.org", "http://www.example.org", false},
		{"https://*.example.org", "https://www.example.org:8443", false},
		{"https://*.example.org", "https://www.example.org.evil.com", false},
		{"https://*.example.org", "https://evil.com/www.example.org", false},
		{"https://*.example.org", "https://evil.com/.example.org", false},
		{"https://*.example.org", "https://evil.com#.example.org", false},
		{"https://*.example.org", "https://evil.com?.example.org", false},
		{"https://*.example.org", `https://evil.com\.example.org`, false},
		{"https://*.example.org", "https://evil.com@www.example.org", false},
		{"https://*.example.org", "https://evil.com:1.example.org", false},
		{"https://*.example.org", "https://evil.com, https://www.example.org", false},
		{"https://*.example.org:8443", "https://www.example.org:8443", true},
		{"https://*.example.org:8443", "https://www.example.org", false},
		{"https://example.org,https://*.example.org", "https://example.org", true},
		{"https://example.org,https://*.example.org", "https://www.example.org", true},

		{"capacitor://localhost", "capacitor://localhost", true},
		{"capacitor://localhost", "http://localhost", false},
		{"file://", "file://", true},
		{"file://", "file:///etc", false},
		{"http://[::1]:3000", "http://[::1]:3000", true},
		{"null", "null", true},
		{"https://example.org", "null", false},
		{"null", "https://here.example", false},

		{"*", "https://evil.com", true},
		{"*", "null", true},
		{"*", "nonsense", true},
		{"https://example.org,*", "https://evil.com", true},
	}
	for _, row := range rows {
		if got := originAllowed([]string{row.origin}, patterns(t, row.patterns), "here.example"); got != row.want {
			t.Errorf("%s, origin %q: allowed = %v, want %v", row.patterns, row.origin, got, row.want)
		}
	}
}

func TestARequestWithoutOneOriginIsNoBrowsersOrIsRefused(t *testing.T) {
	rows := []struct {
		name     string
		origins  []string
		patterns string
		want     bool
	}{
		{"no header", nil, "", true},
		{"no header", nil, "https://example.org", true},
		{"an empty header", []string{""}, "", true},
		{"an empty header", []string{""}, "https://example.org", true},
		{"two headers", []string{"https://example.org", "https://example.org"}, "", false},
		{"two headers", []string{"https://example.org", "https://example.org"}, "https://example.org", false},
		{"two headers, one empty", []string{"", "https://example.org"}, "https://example.org", false},
		{"two headers", []string{"https://example.org", "https://evil.com"}, "*", true},
	}
	for _, row := range rows {
		if got := originAllowed(row.origins, patterns(t, row.patterns), "example.org"); got != row.want {
			t.Errorf("%s, patterns %q: allowed = %v, want %v", row.name, row.patterns, got, row.want)
		}
	}
}

func patterns(t testing.TB, list string) []Origin {
	t.Helper()
	if list == "" {
		return nil
	}
	var origins []Origin
	for text := range strings.SplitSeq(list, ",") {
		var o Origin
		if err := o.UnmarshalText([]byte(text)); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		origins = append(origins, o)
	}
	return origins
}

// An origin that is allowed is, to another parser too, one of an allowed host.
func FuzzAnAllowedOriginIsOfAnAllowedHost(f *testing.F) {
	for _, seed := range []string{
		"https://example.org", "https://www.example.org:443", "https://example.org.evil.com", "https://evil.com/example.org", "https://example.org@evil.com",
		`https://evil.com\.example.org`, "https://evil.com#.example.org", "http://[::1]:8080", "null", "", "file://", "https://evil.com:.example.org", "https://EXAMPLE.org.",
	} {
		f.Add(seed, "example.org")
	}
	f.Add("http://[::1]:8080", "[::1]")
	subdomains := patterns(f, "https://*.example.org")
	f.Fuzz(func(t *testing.T, origin, host string) {
		if origin == "" {
			return
		}
		if originAllowed([]string{origin}, subdomains, host) {
			u := bare(t, origin)
			if name := strings.TrimSuffix(u.Hostname(), "."); u.Scheme != "https" || !strings.HasSuffix(strings.ToLower(name), ".example.org") {
				t.Fatalf("%q is allowed as a subdomain of example.org", origin)
			}
		}
		if originAllowed([]string{origin}, nil, host) {
			u := bare(t, origin)
			asked, err := url.Parse("http://" + host)
			if err != nil {
				t.Fatalf("%q is allowed for %q: %v", origin, host, err)
			}
			if got, want := dotless(u), dotless(asked); got != want && !strings.Contains(want, ":") {
				t.Fatalf("%q is allowed for %q: host = %q, want %q", origin, host, got, want)
			}
			if asked.Port() != "" && u.Port() != "" && strings.TrimLeft(u.Port(), "0") != strings.TrimLeft(asked.Port(), "0") {
				t.Fatalf("%q is allowed for %q, with another port", origin, host)
			}
			if !originAllowed([]string{strings.ToUpper(origin)}, nil, host) {
				t.Fatalf("%q is allowed, but not in upper case", origin)
			}
		}
		var o Origin
		if o.UnmarshalText([]byte(origin)) == nil && o != "*" && !strings.Contains(origin, "*") && !originAllowed([]string{string(o)}, []Origin{o}, "") {
			t.Fatalf("the pattern %q doesn't match itself", origin)
		}
		var again Origin
		if o != "" {
			if err := again.UnmarshalText([]byte(o)); err != nil || again != o {
				t.Fatalf("%q becomes %q, and then %q: %v", origin, o, again, err)
			}
		}
	})
}

// bare parses an origin, which must have nothing but a scheme and a host.
func bare(t *testing.T, origin string) *url.URL {
	t.Helper()
	u, err := url.Parse(origin)
	if err != nil || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		t.Fatalf("%q is allowed, which is more than an origin: %v", origin, err)
	}
	return u
}

func dotless(u *url.URL) string { return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".") }
