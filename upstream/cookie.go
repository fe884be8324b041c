package upstream

import (
	"net/http"
	"strings"
	"time"
)

// maxCookie bounds the Cookie header of a connection, in bytes, once the backend has changed it.
const maxCookie = 4 << 10

// SetCookie returns a handshake with the cookies that a connection's later events have behind an answer with these Set-Cookie lines.
func (h *Handshake) SetCookie(lines []string, now time.Time) *Handshake {
	changed := *h
	changed.Cookie = changeCookie(h.Cookie, lines, now)
	return &changed
}

// changeCookie returns a connection's Cookie header after an answer with these Set-Cookie lines: a cookie is added or replaced, or
// removed when it has expired. Other pairs stay byte for byte. A change that would take the header over 4 KiB is left out.
func changeCookie(cookie string, lines []string, now time.Time) string {
	for _, line := range lines {
		// The pair as it was sent, quotes included: what a browser would send back. Names and values are taken as browsers take them
		// (RFC 6265, 5.2), which is more than net/http does: PHP has cookies such as prefs[lang].
		pair, attributes, _ := strings.Cut(line, ";")
		pair = strings.TrimSpace(pair)
		name, _, _ := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		set, err := http.ParseSetCookie("x=;" + attributes)
		if err != nil || name == "" || !strings.Contains(pair, "=") || strings.ContainsFunc(pair, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			continue
		}
		if set.Expires.IsZero() {
			set.Expires, _ = http.ParseTime(set.RawExpires) // the older forms of a date
		}
		gone := set.MaxAge < 0 || set.MaxAge == 0 && !set.Expires.IsZero() && !set.Expires.After(now)
		var pairs []string
		found := gone
		for old := range strings.SplitSeq(cookie, ";") {
			old = strings.TrimSpace(old)
			if oldName, _, _ := strings.Cut(old, "="); old == "" {
				continue
			} else if strings.TrimSpace(oldName) != name {
				pairs = append(pairs, old)
			} else if !found {
				pairs = append(pairs, pair)
				found = true
			}
		}
		if !found {
			pairs = append(pairs, pair)
		}
		if changed := strings.Join(pairs, "; "); len(changed) <= maxCookie || len(changed) < len(cookie) {
			cookie = changed
		}
	}
	return cookie
}
