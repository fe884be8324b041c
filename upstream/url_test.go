package upstream

import (
	"bufio"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestABackendURLIsReadAsItIsWritten(t *testing.T) {
	rows := []struct {
		text string
		want URL
	}{
		{"http://127.0.0.1:9000", URL{scheme: "http", host: "127.0.0.1:9000"}},
		{"http://127.0.0.1:9000/", URL{scheme: "http", host: "127.0.0.1:9000", path: "/"}},
		{"http://127.0.0.1:9000/realtime.php", URL{scheme: "http", host: "127.0.0.1:9000", path: "/realtime.php"}},
		{"http://app.example.org/a%2Fb/%7Ec?x=%20&y", URL{scheme: "http", host: "app.example.org", path: "/a%2Fb/%7Ec", query: "x=%20&y"}},
		{"http://app?x=1", URL{scheme: "http", host: "app", query: "x=1"}},
		{"http://app?", URL{scheme: "http", host: "app"}},
		{"http://[::1]:9000/x", URL{scheme: "http", host: "[::1]:9000", path: "/x"}},
		{"http://app/café/a b", URL{scheme: "http", host: "app", path: "/caf%C3%A9/a%20b"}}, // a path is encoded where it must be
		{"https://app.example.org:8443/events", URL{scheme: "https", host: "app.example.org:8443", path: "/events"}},
		{"http://app:1/", URL{scheme: "http", host: "app:1", path: "/"}},
		{"http://app:65535/", URL{scheme: "http", host: "app:65535", path: "/"}},
		{"http://unix:/run/app.sock", URL{scheme: "http", host: "unix", socket: "/run/app.sock"}},
		{"http://unix:/run/app.sock:", URL{scheme: "http", host: "unix", socket: "/run/app.sock"}},
		{"http://unix:/run/app.sock:/", URL{scheme: "http", host: "unix", socket: "/run/app.sock", path: "/"}},
		{"http://unix:/run/app.sock:/a:b?x=1:2", URL{scheme: "http", host: "unix", socket: "/run/app.sock", path: "/a:b", query: "x=1:2"}},
		{"https://unix:/run/app.sock:/x", URL{scheme: "https", host: "unix", socket: "/run/app.sock", path: "/x"}},
		{"http://unix/x", URL{scheme: "http", host: "unix", path: "/x"}}, // a host of that name
	}
	for _, row := range rows {
		row.want.text = row.text
		var u URL
		if err := u.UnmarshalText([]byte(row.text)); err != nil {
			t.Errorf("%s: %v", row.text, err)
			continue
		}
		if u != row.want {
			t.Errorf("%s: got = %+v, want %+v", row.text, u, row.want)
		}
		if u.String() != row.text {
			t.Errorf("%s: String = %q", row.text, u.String())
		}
		if want := row.want.path != ""; u.HasPath() != want {
			t.Errorf("%s: HasPath = %v, want %v", row.text, u.HasPath(), want)
		}
	}
}

func TestABackendURLThatCouldNotWorkIsAnError(t *testing.T) {
	rows := []struct{ text, want string }{
		{"", "must start with http:// or https://"},
		{"127.0.0.1:9000", "must start with http:// or https://"},
		{"ftp://app/", "must start with http:// or https://"},
		{"unix:/run/app.sock", "must start with http:// or https://"},
		{"//app/", "must start with http:// or https://"},
		{"http:/app", "must start with http:// or https://"},
		{"http://", "has no host"},
		{"http:///x", "has no host"},
		{"http://:9000/x", "has no host"},
		{"http://user@app/", "must not carry a user name or password"},
		{"http://user:secret@app/", "must not carry a user name or password"},
		{"http://app/#x", "must not have a fragment"},
		{"http://app/x#", "must not have a fragment"},
		{"http://app//x", "must not have a path that starts with //"},
		{"http://unix:/run/app.sock://x", "must not have a path that starts with //"},
		{"http://app:0/", "must have a port from 1 to 65535"},
		{"http://app:65536/", "must have a port from 1 to 65535"},
		{"http://app:x/", "invalid port"},
		{"http://app:-1/", "invalid port"},
		{"http://a b/", "invalid character"},
		{"http://[::1/", "missing ']'"},
		{"http://app/%zz", "invalid URL escape"},
		{"http://app/x?a b", "must have a query of printable ASCII"},
		{"http://app/x?é", "must have a query of printable ASCII"},
		{"http://app/x\r\nHost: evil", "invalid control character"},
		{"http://app/x?a\nb", "invalid control character"},
		{"http://app/\x7f", "invalid control character"},
		{"http://unix:run/app.sock", "must be absolute"},
		{"http://unix:", "must be absolute"},
		{"http://unix:/run/app.sock:x", "must start with a slash"},
		{"http://unix:/run/app.sock?x=1", "needs a path"},
	}
	for _, row := range rows {
		u := URL{text: "before"}
		err := u.UnmarshalText([]byte(row.text))
		if err == nil {
			t.Errorf("%q was accepted: %+v", row.text, u)
			continue
		}
		if !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got = %q, want %q in it", row.text, err, row.want)
		}
		if u.text != "before" {
			t.Errorf("%q: a fault changed the URL", row.text)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows a password: %v", row.text, err)
		}
	}
}

// nginx's rule for proxy_pass: without a path the client's is kept, with one the client's doesn't matter. The query always stays.
func TestAPostGoesWhereTheURLAndTheClientSay(t *testing.T) {
	rows := []struct{ url, path, query, want string }{
		{"http://app", "/ws/7", "x=1", "/ws/7?x=1"},
		{"http://app", "/ws/7", "", "/ws/7"},
		{"http://app", "", "", "/"},
		{"http://app/", "/ws/7", "", "/"},
		{"http://app/realtime.php", "/ws/7", "x=1", "/realtime.php?x=1"},
		{"http://app/realtime.php", "/ws/7", "", "/realtime.php"},
		{"http://app/realtime.php?key=k", "/ws", "x=1", "/realtime.php?key=k&x=1"},
		{"http://app/realtime.php?key=k", "/ws", "", "/realtime.php?key=k"},
		{"http://app?key=k", "/ws", "x=1", "/ws?key=k&x=1"},
		{"http://app", "/a%20b/%C3%A9%e9/%7e~/x;y=1/a+b/@:!$&'()*,=", "q=%20+%zz&&;é\"<>", "/a%20b/%C3%A9%e9/%7e~/x;y=1/a+b/@:!$&'()*,=?q=%20+%zz&&;é\"<>"},
		{"http://app", "/a|b\"c<d>^`{}", "", "/a|b\"c<d>^`{}"},
		{"http://app", "/caf\xc3\xa9\xff", "", "/caf\xc3\xa9\xff"},
		{"http://app/a%2Fb", "/ws", "x", "/a%2Fb?x"},
		{"http://unix:/run/app.sock", "/ws/7", "x=1", "/ws/7?x=1"},
		{"http://unix:/run/app.sock:/in.cgi", "/ws/7", "x=1", "/in.cgi?x=1"},
	}
	for _, row := range rows {
		u := parseURL(t, row.url)
		if got := u.target(row.path, row.query); got != row.want {
			t.Errorf("%s for %s?%s: got = %q, want %q", row.url, row.path, row.query, got, row.want)
		}
	}
}

func FuzzURL(f *testing.F) {
	for _, url := range []string{"http://app", "http://app/x?y", "http://unix:/run/app.sock:/x?a b", "https://[::1]:1/ä ö?x\ty", "http://app/%0d%0a", "http://a?\x7f"} {
		for _, target := range []string{"/", "/ws?x=1", "/%0d%0aX:y?%0a", "http://other/ws?x", "/é\"?é\xff", "/?#x", "a://\""} {
			f.Add(url, target)
		}
	}
	f.Fuzz(func(t *testing.T, url, target string) {
		var u URL
		if u.UnmarshalText([]byte(url)) != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: chat.example.org\r\n\r\n")))
		if err != nil {
			return // net/http refuses it before we see it
		}
		c := &Client{config: Config{URL: u, TextType: "text/plain"}}
		e := text("hello")
		if e.Handshake = c.Handshake(r); strings.HasPrefix(e.Handshake.Path, "//") || e.Handshake.Path == "*" {
			return // bridge refuses it: it could be read in more than one way
		}
		line, rest, _ := strings.Cut(string(c.appendRequest(nil, e, noon)), "\r\n")
		uri, ok := strings.CutSuffix(strings.TrimPrefix(line, "POST "), " HTTP/1.1")
		if !ok || !strings.HasPrefix(line, "POST /") || slices.ContainsFunc([]byte(uri), func(b byte) bool { return b <= ' ' || b == 0x7f }) {
			t.Errorf("%q for %q: request line = %q", url, target, line)
		}
		// A host that is none may come in the target.
		if host, _, _ := strings.Cut(rest, "\r\n"); host != "Host: chat.example.org" && (target[0] == '/' || !strings.HasPrefix(host, "Host: ")) {
			t.Errorf("%q for %q: behind the request line = %q", url, target, rest)
		}
	})
}
