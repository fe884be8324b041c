package bridge

import (
	"errors"
	"fmt"
	"strings"
)

// Path is a pattern of paths that accept an upgrade: a path as it stands in a request, or with a final /* everything below
// it. /* alone is every path.
type Path string

// UnmarshalText parses a pattern. It's an error where no request could match, or one only by a trick.
func (p *Path) UnmarshalText(text []byte) error {
	s := string(text)
	path := strings.TrimSuffix(s, "*")
	switch {
	case !strings.HasPrefix(s, "/"):
		return errors.New("must start with a slash, like /chat or /ws/*")
	case strings.Contains(path, "*"), len(path) < len(s) && !strings.HasSuffix(path, "/"):
		return errors.New("may have a * only as the last segment, like /ws/*")
	}
	for i, c := range path {
		switch {
		case c == '%':
			if i+2 >= len(path) || !isHex(rune(path[i+1])) || !isHex(rune(path[i+2])) {
				return errors.New("has a % without two hexadecimal digits behind it")
			}
		case !isLetter(c) && !isDigit(c) && !strings.ContainsRune("/-._~!$&'()+,;=:@", c):
			return fmt.Errorf("must not hold %q: a path is written as in a request, in letters, digits and -._~!$&'()+;=:@, others percent-encoded, without a query", c)
		}
	}
	if _, err := requestPath(path); err != nil {
		return err
	}
	*p = Path(s)
	return nil
}

// match reports whether the pattern covers the path of a request, as requestPath returns it.
func (p Path) match(path string) bool {
	below, wildcard := strings.CutSuffix(string(p), "*")
	if wildcard {
		return strings.HasPrefix(path, below)
	}
	return path == below
}

// requestPath returns the path of a request's target as the client wrote it. It's an error where the path could be read in
// more than one way: nginx, wsbridge and the application would then not speak of the same one, and a location that is
// closed to the world would be open through the back door. A decoded path no longer shows the difference.
func requestPath(target string) (string, error) {
	path, _, _ := strings.Cut(target, "?")
	if !strings.HasPrefix(path, "/") {
		// What clients send to a proxy: http://host/path.
		scheme, rest, absolute := strings.Cut(path, "://")
		if !absolute || !isScheme(lower(scheme)) {
			return "", errors.New("must have a path")
		}
		if slash := strings.IndexByte(rest, '/'); slash >= 0 {
			path = rest[slash:]
		} else {
			path = "/"
		}
	}
	lower := strings.ToLower(path)
	switch {
	case strings.Contains(path, `\`):
		return "", errors.New("must not hold a backslash")
	case strings.Contains(path, "#"):
		return "", errors.New("must not hold #")
	}
	for _, encoded := range [...]string{"%2e", "%2f", "%5c"} {
		if strings.Contains(lower, encoded) {
			return "", fmt.Errorf("must not hold %s", encoded)
		}
	}
	segments := strings.Split(lower[1:], "/")
	for i, segment := range segments {
		// Servlet containers drop a parameter before they look at the segment: /..;x/ is /../ to them, and /;x/ is //.
		name, _, _ := strings.Cut(segment, ";")
		name, _, _ = strings.Cut(name, "%3b")
		switch {
		case name == "." || name == "..":
			return "", errors.New("must not hold a dot segment")
		case name == "" && i < len(segments)-1:
			return "", errors.New("must not hold //")
		}
	}
	return path, nil
}

func isDigit(c rune) bool  { return '0' <= c && c <= '9' }
func isLetter(c rune) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isHex(c rune) bool    { return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' }
