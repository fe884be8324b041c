package upstream

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSetCookieChangesTheCookiesOfLaterEvents(t *testing.T) {
	long := strings.Repeat("x", 4096)
	rows := []struct {
		name, cookie string
		lines        []string
		want         string
	}{
		{"nothing", "a=1; b=2", nil, "a=1; b=2"},
		{"adds to none", "", []string{"a=1"}, "a=1"},
		{"adds", "a=1", []string{"b=2; Path=/; HttpOnly; Secure; SameSite=Lax; Domain=example.org"}, "a=1; b=2"},
		{"replaces in place", "a=1; b=2; c=3", []string{"b=new"}, "a=1; b=new; c=3"},
		{"replaces by nothing", "a=1; b=2", []string{"a="}, "a=; b=2"},
		{"replaces both of two", "a=1; b=2; a=3", []string{"a=new"}, "a=new; b=2"},
		{"knows cases apart", "a=1", []string{"A=2"}, "a=1; A=2"},
		{"knows a beginning apart", "ab=1; b=2", []string{"a=3"}, "ab=1; b=2; a=3"},
		{"an equals sign in the value", "a=1", []string{"b=x=y=="}, "a=1; b=x=y=="},
		{"quotes stay", "a=1", []string{`b="two words"; Path=/`}, `a=1; b="two words"`},
		{"space around goes", "a=1", []string{"  b=2  ; Path=/"}, "a=1; b=2"},
		{"PHP's brackets", "prefs[lang]=en", []string{"prefs[lang]=de; expires=Fri, 01-Jan-2027 00:00:00 GMT; Max-Age=9", "prefs[size]=2"}, "prefs[lang]=de; prefs[size]=2"},
		{"JSON in the value", "", []string{`b={"x":1,"y":"\\z"}; Path=/`}, `b={"x":1,"y":"\\z"}`},
		{"UTF-8 in the value", "", []string{"b=grüß"}, "b=grüß"},

		{"Max-Age 0 removes", "a=1; b=2; c=3", []string{"b=; Max-Age=0"}, "a=1; c=3"},
		{"a negative Max-Age removes", "a=1; b=2", []string{"b=; max-age=-1"}, "a=1"},
		{"removes the last", "a=1", []string{"a=deleted; Max-Age=0"}, ""},
		{"removes both of two", "a=1; b=2; a=3", []string{"a=; Max-Age=0"}, "b=2"},
		{"removes what is not there", "a=1", []string{"b=; Max-Age=0"}, "a=1"},
		{"a past Expires removes", "a=1; b=2", []string{"b=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT"}, "a=1"},
		{"a past Expires removes, in RFC 1123", "a=1; b=2", []string{"b=; Expires=Thu, 01 Jan 1970 00:00:00 GMT"}, "a=1"},
		{"a past Expires removes, in RFC 850", "a=1; b=2", []string{"b=; Expires=Thursday, 01-Jan-70 00:00:00 GMT"}, "a=1"},
		{"an Expires of now removes", "a=1; b=2", []string{"b=x; Expires=Mon, 04 May 2026 10:00:00 GMT"}, "a=1"},
		{"a later Expires sets", "a=1", []string{"b=x; Expires=Mon, 04 May 2026 10:00:01 GMT"}, "a=1; b=x"},
		{"Max-Age goes before Expires", "a=1", []string{"a=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60"}, "a=x"},
		{"Max-Age 0 goes before Expires", "a=1", []string{"a=x; Max-Age=0; Expires=Fri, 01 Jan 2027 00:00:00 GMT"}, ""},
		{"nonsense in Max-Age and Expires is no end", "a=1", []string{"b=2; Max-Age=soon; Expires=never"}, "a=1; b=2"},

		{"several lines, in order", "a=1", []string{"b=2", "c=3", "a=; Max-Age=0", "b=4"}, "b=4; c=3"},
		{"set and removed", "", []string{"a=1", "a=; Max-Age=0"}, ""},
		{"a bad line among good ones", "a=1", []string{"b=2", "nonsense", "=x", "", ";", "c=3"}, "a=1; b=2; c=3"},
		{"no control characters", "a=1", []string{"b=x\ty", "c=\x00", "d=\x7f", "e\r=1"}, "a=1"},

		{"others stay byte for byte", `  odd ; x="a b";;y=%20;flag; =z ;b=2`, []string{"b=3"}, `odd; x="a b"; y=%20; flag; =z; b=3`},
		{"others stay byte for byte, at a removal", "\xff=\xfe; b=2", []string{"b=; Max-Age=0"}, "\xff=\xfe"},

		{"4 KiB", "a=1", []string{"b=" + long[:4096-len("a=1; b=")]}, "a=1; b=" + long[:4096-len("a=1; b=")]},
		{"over 4 KiB is left out", "a=1", []string{"b=" + long[:4097-len("a=1; b=")]}, "a=1"},
		{"over 4 KiB leaves the old value", "a=1; b=2", []string{"b=" + long}, "a=1; b=2"},
		{"over 4 KiB spoils no other line", "a=1", []string{"b=" + long, "c=3"}, "a=1; c=3"},
		{"a client's own may be larger, and shrink", "a=" + long + "; b=2", []string{"b=; Max-Age=0"}, "a=" + long},
		{"a client's own may be larger, and not grow", "a=" + long + "; b=2", []string{"b=34", "c=5"}, "a=" + long + "; b=2"},
		{"a client's own may be larger, and go", "a=" + long + "; b=2", []string{"a=; Max-Age=0"}, "b=2"},
	}
	for _, row := range rows {
		h := Handshake{Cookie: row.cookie}
		h = *h.SetCookie(row.lines, noon.Truncate(time.Second))
		if h.Cookie != row.want {
			t.Errorf("%s: got = %s, want %s", row.name, abridged(h.Cookie), abridged(row.want))
		}
	}
}

func abridged(s string) string {
	if len(s) > 100 {
		return s[:50] + "…" + s[len(s)-50:]
	}
	return s
}

func TestAChangedCookieGoesWithTheNextEvent(t *testing.T) {
	url, came := recorder(t)
	c := clientFor(t, url)
	e := text("x")
	e.Handshake = c.Handshake(handshake(t, "GET /ws HTTP/1.1", "Host: a", "Cookie: session=old"))
	for _, step := range []struct{ set, want string }{{"", "session=old"}, {"session=new; HttpOnly", "session=new"}, {"session=; Max-Age=0", ""}} {
		if step.set != "" {
			e.Handshake = e.Handshake.SetCookie([]string{step.set}, noon)
		}
		if r := c.Post(t.Context(), e); r.Outcome != Accepted {
			t.Fatalf("got = %s, %v", r.Outcome, r.Err)
		}
		if got := (<-came).value("Cookie"); got != step.want {
			t.Errorf("after %q: Cookie = %q, want %q", step.set, got, step.want)
		}
	}
}

func FuzzChangeCookie(f *testing.F) {
	f.Add("a=1; b=2", "b=3; Max-Age=9", int64(0))
	f.Add("a=1;b", "a=; Expires=Thu, 01 Jan 1970 00:00:00 GMT", int64(1e9))
	f.Add(`x="a;b"; \xff`, "prefs[a]=\"b\"; max-age=-5; Max-Age=3", int64(1))
	f.Add(strings.Repeat("a=1; ", 1000), "b=2", int64(1))
	f.Fuzz(func(t *testing.T, cookie, line string, now int64) {
		if strings.ContainsFunc(cookie, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return // no such header comes in
		}
		pairs := func(s string) []string {
			var all []string
			for pair := range strings.SplitSeq(s, ";") {
				if pair = strings.TrimSpace(pair); pair != "" {
					all = append(all, pair)
				}
			}
			return all
		}
		named := func(pair string) string {
			name, _, _ := strings.Cut(pair, "=")
			return strings.TrimSpace(name)
		}
		got := changeCookie(cookie, []string{line}, time.Unix(now, 0))
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q, %q: a control character in %q", cookie, line, got)
		}
		if len(got) > maxCookie && len(got) > len(cookie) {
			t.Errorf("%q grew to %d bytes", cookie, len(got))
		}
		set, _, _ := strings.Cut(line, ";")
		set = strings.TrimSpace(set)
		others := func(s string) []string {
			return slices.DeleteFunc(pairs(s), func(pair string) bool { return named(pair) == named(set) })
		}
		if before, after := others(cookie), others(got); !slices.Equal(before, after) {
			t.Errorf("%q, %q: the others were %q, and are %q", cookie, line, before, after)
		}
		if got != cookie {
			for _, pair := range pairs(got) {
				if named(pair) == named(set) && pair != set {
					t.Errorf("%q, %q: %q stands where %q was set", cookie, line, pair, set)
				}
			}
		}
	})
}
