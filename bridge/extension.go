package bridge

import (
	"iter"
	"strconv"
	"strings"
)

// negotiate takes the first offer of permessage-deflate (RFC 7692, 7.1) that we can keep. It returns the bits of the window
// that our messages may use, and the server_max_window_bits to confirm (0 where the client asked for none). An offer with
// a parameter that is unknown, twice there or has a wrong value is declined, and the next one looked at.
func negotiate(lines []string) (accept bool, window, confirm int) {
	for _, line := range lines {
		for offer := range split(line, ',') {
			name, parameters, parametric := strings.Cut(offer, ";")
			if strings.TrimSpace(name) != "permessage-deflate" {
				continue
			}
			if !parametric {
				return true, 15, 0
			}
			if confirm, ok := acceptable(parameters); ok {
				if confirm == 0 {
					return true, 15, 0
				}
				return true, confirm, confirm
			}
		}
	}
	return false, 0, 0
}

// acceptable reports whether an offer's parameters make sense, and the window it asks of us (0: none).
func acceptable(parameters string) (confirm int, ok bool) {
	seen := map[string]bool{}
	for parameter := range split(parameters, ';') {
		name, value, valued := strings.Cut(strings.TrimSpace(parameter), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if inner, ok := strings.CutPrefix(value, `"`); ok && strings.HasSuffix(inner, `"`) {
			value = strings.TrimSuffix(inner, `"`)
		}
		if seen[name] {
			return 0, false
		}
		seen[name] = true
		switch name {
		case "server_no_context_takeover", "client_no_context_takeover":
			if valued {
				return 0, false
			}
		case "client_max_window_bits":
			// We inflate with the largest window, so whatever the client compresses with will do.
			if valued && windowBits(value) == 0 {
				return 0, false
			}
		case "server_max_window_bits":
			if confirm = windowBits(value); confirm == 0 {
				return 0, false
			}
		default:
			return 0, false
		}
	}
	return confirm, true
}

// split cuts a header's value at a separator, but not inside a quoted string.
func split(s string, separator byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(s); i++ {
			switch {
			case s[i] == '"':
				quoted = !quoted
			case s[i] == '\\' && quoted:
				i++
			case s[i] == separator && !quoted:
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(s[start:])
	}
}

// windowBits returns a window size of RFC 7692, 8 to 15, or 0.
func windowBits(value string) int {
	if n, err := strconv.Atoi(value); err == nil && n >= 8 && n <= 15 && value[0] != '0' && value[0] != '+' {
		return n
	}
	return 0
}
