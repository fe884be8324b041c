package bridge

import (
	"strconv"
	"strings"
)

// negotiate takes the first offer of permessage-deflate (RFC 7692, 7.1) that we can keep. It returns the bits of the window
// that our messages may use, and the server_max_window_bits to confirm (0 where the client asked for none). An offer with
// a parameter that is unknown, twice there or has a wrong value is declined, and the next one looked at.
func negotiate(lines []string) (accept bool, window, confirm int) {
	for _, line := range lines {
		for offer := range strings.SplitSeq(line, ",") {
			name, parameters, _ := strings.Cut(offer, ";")
			if strings.TrimSpace(name) != "permessage-deflate" {
				continue
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
	if strings.TrimSpace(parameters) == "" {
		return 0, true
	}
	seen := map[string]bool{}
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, valued := strings.Cut(strings.TrimSpace(parameter), "=")
		name, value = strings.TrimSpace(name), strings.Trim(strings.TrimSpace(value), `"`)
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

// windowBits returns a window size of RFC 7692, 8 to 15, or 0.
func windowBits(value string) int {
	if n, err := strconv.Atoi(value); err == nil && n >= 8 && n <= 15 && value[0] != '0' && value[0] != '+' {
		return n
	}
	return 0
}
