package bridge

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestAPathPatternMatchesWhatItSays(t *testing.T) {
	rows := []struct {
		pattern, path string
		want          bool
	}{
		{"/ws", "/ws", true},
		{"/ws", "/ws/", false},
		{"/ws", "/ws/7", false},
		{"/ws", "/wsx", false},
		{"/ws", "/WS", false},
		{"/ws", "/w%73", false}, // the raw path counts: the backend is sent this one
		{"/ws", "", false},
		{"/ws/", "/ws/", true},
		{"/ws/", "/ws/7", false},
		{"/ws/*", "/ws/7", true},
		{"/ws/*", "/ws/", true},
		{"/ws/*", "/ws/a/b", true},
		{"/ws/*", "/ws", false},
		{"/ws/*", "/wsx/7", false},
		{"/ws/*", "/x/ws/7", false},
		{"/*", "/", true},
		{"/*", "/ws/7", true},
		{"/", "/", true},
		{"/", "/ws", false},
		{"/caf%C3%A9/*", "/caf%C3%A9/1", true},
	}
	for _, row := range rows {
		var p Path
		if err := p.UnmarshalText([]byte(row.pattern)); err != nil {
			t.Errorf("%s: %v", row.pattern, err)
			continue
		}
		if string(p) != row.pattern {
			t.Errorf("pattern = %s, want %s", p, row.pattern)
		}
		if got := p.match(row.path); got != row.want {
			t.Errorf("%s matches %q = %v, want %v", row.pattern, row.path, got, row.want)
		}
	}
}

func TestAPathPatternThatNoRequestCouldMatchIsAnError(t *testing.T) {
	rows := []struct{ pattern, want string }{
		{"", "must start with a slash"},
		{"ws", "must start with a slash"},
		{"*", "must start with a slash"},
		{"http://example.org/ws", "must start with a slash"},
		{"/ws*", "only as the last segment"},
		{"/*/ws", "only as the last segment"},
		{"/ws/**", "only as the last segment"},
		{"/ws/*/", "only as the last segment"},
		{"/ws?x=1", `must not hold '?'`},
		{"/ws#x", `must not hold '#'`},
		{"/ws/{id}", `must not hold '{'`},
		{"/ws 7", `must not hold ' '`},
		{"/ws\t", `must not hold '\t'`},
		{"/ws\x00", `must not hold '\x00'`},
		{"/ws\x7f", `must not hold '\x7f'`},
		{"/café", `must not hold 'é'`},
		{`/ws\7`, `must not hold '\\'`},
		{"/ws/%", "without two hexadecimal digits"},
		{"/ws/%4", "without two hexadecimal digits"},
		{"/ws/%g4", "without two hexadecimal digits"},
		{"/ws/%4g", "without two hexadecimal digits"},
		{"/ws/%*", "only as the last segment"},
		{"//ws", "must not hold //"},
		{"/ws//*", "must not hold //"},
		{"/ws/./7", "must not hold a dot segment"},
		{"/ws/..", "must not hold a dot segment"},
		{"/ws/../*", "must not hold a dot segment"},
		{"/ws/%2E%2e", "must not hold %2e"},
		{"/ws%2F7", "must not hold %2f"},
		{"/ws%5c7", "must not hold %5c"},
	}
	for _, row := range rows {
		p := Path("as before")
		err := p.UnmarshalText([]byte(row.pattern))
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: error = %v, want one with %q", row.pattern, err, row.want)
		}
		if p != "as before" {
			t.Errorf("%q: pattern = %q, want no change", row.pattern, p)
		}
	}
}

func TestAPathThatCouldBeReadInTwoWaysIsAnError(t *testing.T) {
	rows := []struct{ target, want string }{
		{"/ws/..", "must not hold a dot segment"},
		{"/ws/../admin", "must not hold a dot segment"},
		{"/ws/.", "must not hold a dot segment"},
		{"/./ws", "must not hold a dot segment"},
		{"/..", "must not hold a dot segment"},
		{"/ws/..;/admin", "must not hold a dot segment"},
		{"/ws/..;x=1/admin", "must not hold a dot segment"},
		{"/ws/.;/admin", "must not hold a dot segment"},
		{"/ws/..%3Bx/admin", "must not hold a dot segment"},
		{"/ws/..?x=1", "must not hold a dot segment"},
		{"http://example.org/ws/../admin", "must not hold a dot segment"},
		{"http://example.org/..", "must not hold a dot segment"},
		{"//ws", "must not hold //"},
		{"//example.org/ws", "must not hold //"},
		{"/ws//7", "must not hold //"},
		{"/ws//", "must not hold //"},
		{"/ws/;x=1/7", "must not hold //"},
		{"/;/ws", "must not hold //"},
		{"http://example.org//ws", "must not hold //"},
		{`/ws\7`, "must not hold a backslash"},
		{`/ws\..\admin`, "must not hold a backslash"},
		{`http://example.org/ws\7`, "must not hold a backslash"},
		{"/ws/%2e%2e/admin", "must not hold %2e"},
		{"/ws/%2E", "must not hold %2e"},
		{"/ws/7%2ejson", "must not hold %2e"},
		{"/ws%2f7", "must not hold %2f"},
		{"/ws%2F7", "must not hold %2f"},
		{"/ws%5c7", "must not hold %5c"},
		{"/ws%5C7", "must not hold %5c"},
		{"/ws#7", "must not hold #"},
		{"/ws#?", "must not hold #"},
		{"", "must have a path"},
		{"*", "must have a path"},
		{"ws", "must have a path"},
		{"../ws", "must have a path"},
		{"example.org:443", "must have a path"},
		{"http:ws", "must have a path"},
		{"http:/ws", "must have a path"},
		{"http:/://ws", "must have a path"},
		{"?http://example.org/ws", "must have a path"},
	}
	for _, row := range rows {
		got, err := requestPath(row.target)
		if err == nil || err.Error() != row.want || got != "" {
			t.Errorf("%q: got = %q, %v, want %q", row.target, got, err, row.want)
		}
	}
}

func TestAPlainPathIsTakenAsItCame(t *testing.T) {
	rows := []struct{ target, want string }{
		{"/", "/"},
		{"/ws/7", "/ws/7"},
		{"/ws/7/", "/ws/7/"},
		{"/ws/7?x=../..//%2e%2f%5c\\#", "/ws/7"},
		{"/ws/7?x=1?y=2", "/ws/7"},
		{"/?", "/"},
		{"/ws/.well-known", "/ws/.well-known"},
		{"/ws/...", "/ws/..."},
		{"/ws/a..b", "/ws/a..b"},
		{"/ws/7.json", "/ws/7.json"},
		{"/ws/..x/", "/ws/..x/"},
		{"/ws/7;v=1", "/ws/7;v=1"},
		{"/ws/7;v=1/x", "/ws/7;v=1/x"},
		{"/ws/7;..", "/ws/7;.."},
		{"/ws/;v=1", "/ws/;v=1"},
		{"/w%73/%20%C3%a9", "/w%73/%20%C3%a9"},
		{"/ws/100%25", "/ws/100%25"},
		{"/WS", "/WS"},
		{"http://example.org/ws/7?x=//", "/ws/7"},
		{"HTTP://example.org:80/ws", "/ws"},
		{"http://example.org", "/"},
		{"http://example.org?x=/ws", "/"},
	}
	for _, row := range rows {
		if got, err := requestPath(row.target); err != nil || got != row.want {
			t.Errorf("%q: got = %q, %v, want %q", row.target, got, err, row.want)
		}
	}
}

// What requestPath lets pass means the same to who decodes it, who cleans it, and who takes it as it stands.
func FuzzAPathThatPassesHasOneMeaning(f *testing.F) {
	for _, seed := range []string{
		"/ws/7?x=1", "/ws/..;/admin", "/ws/%2e%2e/", "//ws", `/ws\..`, "http://example.org/ws", "/ws/%252e", "/;/x", "*", "/ws/.%00./", "http:///..", "/%",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		raw, err := requestPath(target)
		if err != nil {
			return
		}
		if !strings.HasPrefix(raw, "/") || raw != "/" && !strings.Contains(target, raw) {
			t.Fatalf("%q: path = %q, which the client didn't send", target, raw)
		}
		standard, err := url.ParseRequestURI(target)
		if err != nil {
			return // net/http answers 400
		}
		if standard.Path == "" {
			standard.Path = "/"
		}
		if got := unescape(t, raw); got != standard.Path {
			t.Fatalf("%q: path = %q, decoded %q, want %q", target, raw, got, standard.Path)
		}
		for _, read := range []string{raw, standard.Path} {
			if want := path.Clean(read); read != want && read != want+"/" || strings.Contains(read, `\`) {
				t.Fatalf("%q: path = %q, read as %q, cleaned %q", target, raw, read, want)
			}
		}
		if strings.Count(raw, "/") != strings.Count(standard.Path, "/") {
			t.Fatalf("%q: path = %q, decoded %q with other segments", target, raw, standard.Path)
		}
	})
}

func unescape(t *testing.T, raw string) string {
	t.Helper()
	decoded, err := url.PathUnescape(raw)
	if err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	return decoded
}

// A pattern that is taken can match a request that net/http lets in.
func FuzzAPathPatternMatchesARequest(f *testing.F) {
	for _, seed := range []string{"/ws", "/ws/*", "/*", "/caf%C3%A9", "/a;b=c/*", "/ws/..", "*", "/%2e/*", "/[x]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var p Path
		if p.UnmarshalText([]byte(text)) != nil {
			return
		}
		target := strings.TrimSuffix(text, "*")
		standard, err := url.ParseRequestURI(target)
		if err != nil || standard.EscapedPath() != target {
			t.Fatalf("%q: no request has such a path: %v", text, err)
		}
		if raw, err := requestPath(target + "?x"); err != nil || !p.match(raw) {
			t.Fatalf("%q doesn't match %q: %v", text, raw, err)
		}
		if wildcard := target != text; p.match(target+"x") != wildcard {
			t.Fatalf("%q matches %q = %v, want %v", text, target+"x", !wildcard, wildcard)
		}
	})
}
