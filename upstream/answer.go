package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what an answer's headers may say, in bytes.
const (
	maxName   = 200
	maxState  = 1 << 10
	maxReason = 123 // RFC 6455, 5.5: a control frame carries 125 bytes, two of them the code
)

// ValidName reports whether s may name a user or a group: 1 to 200 printable ASCII characters without space, comma, quotes and
// percent sign, and not "." or "..", so that it goes through headers, lists and paths as it is.
func ValidName(s string) bool {
	return s != "" && len(s) <= maxName && s != "." && s != ".." && plain(s)
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == ',' || c == '"' || c == '\'' || c == '%' {
			return false
		}
	}
	return true
}

// ValidClose reports whether the backend may close a connection with this code and reason.
func ValidClose(code int, reason string) error {
	switch {
	case code == 1000, code == 1008, code >= 1011 && code <= 1013, code >= 3000 && code <= 4999:
	default:
		return fmt.Errorf("close code %d: use 1000, 1008, 1011 to 1013 or 3000 to 4999", code)
	}
	if len(reason) > maxReason {
		return fmt.Errorf("close reason of %d bytes: at most %d", len(reason), maxReason)
	}
	if !utf8.ValidString(reason) {
		return fmt.Errorf("close reason %q is not UTF-8", reason)
	}
	return nil
}

// control reads the Ws- headers of a 2xx answer, and of a 4xx answer only Ws-Close, into the reply. The first fault spoils the whole.
func (r *Reply) control(header fields, binary bool, body []byte) error {
	contentType := header.get("Content-Type")
	if header = header.ours(); len(header) == 0 && r.Outcome == Accepted { // as most are
		if len(body) == 0 {
			return nil
		}
		return r.messages("one", contentType, binary, body)
	}
	return r.controls(header, contentType, binary, body)
}

// controls does that with those of the headers that there are.
func (r *Reply) controls(header fields, contentType string, binary bool, body []byte) error {
	one := func(name string) (value string, present bool, err error) {
		for _, field := range header {
			switch {
			case field.Name != name:
			case present:
				return "", true, fmt.Errorf("%s is there %d times: once is allowed", name, len(header.values(name)))
			default:
				value, present = strings.TrimSpace(field.Value), true
			}
		}
		return value, present, nil
	}
	if value, present, err := one("Ws-Close"); err != nil {
		return err
	} else if present {
		if r.Close, err = parseClose(value); err != nil {
			return err
		}
	}
	if r.Outcome != Accepted {
		return nil
	}
	if value, present, err := one("Ws-User"); err != nil {
		return err
	} else if present {
		if !ValidName(value) {
			return fmt.Errorf("Ws-User %q: a user is 1 to %d printable ASCII characters without space, comma, quotes and %%", value, maxName)
		}
		r.User = &value
	}
	if value, present, err := one("Ws-State"); err != nil {
		return err
	} else if present {
		if len(value) > maxState || !plain(value) {
			return fmt.Errorf("Ws-State of %d bytes: a state is at most %d printable ASCII characters without space, comma, quotes and %%", len(value), maxState)
		}
		r.State = &value
	}
	var err error
	if r.Join, err = groups(header, "Ws-Join"); err != nil {
		return err
	}
	if r.Leave, err = groups(header, "Ws-Leave"); err != nil {
		return err
	}
	to, present, err := one("Ws-To")
	if err != nil {
		return err
	}
	if present && !strings.HasPrefix(to, "/") {
		return fmt.Errorf("Ws-To %q: use a send route such as /connections/ID", to)
	}
	r.To = to
	shape, present, err := one("Ws-Messages")
	if err != nil {
		return err
	} else if !present {
		shape = "one"
		if len(body) == 0 {
			shape = "none"
		}
	}
	return r.messages(shape, contentType, binary, body)
}

// messages cuts the body of an answer into messages as Ws-Messages asks.
func (r *Reply) messages(shape, contentType string, binary bool, body []byte) error {
	switch shape {
	case "one":
		r.only[0] = NewPayload(contentType, binary, body)
		r.Messages = r.only[:]
	case "lines":
		for line := range bytes.Lines(body) {
			if ended, ok := bytes.CutSuffix(line, []byte("\n")); ok {
				line = bytes.TrimSuffix(ended, []byte("\r"))
			}
			r.Messages = append(r.Messages, NewPayload(contentType, binary, line))
		}
	case "none":
	default:
		return fmt.Errorf("Ws-Messages %q: use one, lines or none", shape)
	}
	return nil
}

// NewPayload returns data as a message whose kind the Content-Type gives: text/*, JSON, XML and forms are text, anything else is
// binary. Without a type it is what binary says. What is not UTF-8 is always binary.
func NewPayload(contentType string, binary bool, data []byte) Payload {
	if contentType != "" {
		binary = !textual(contentType)
	}
	return Payload{Binary: binary || !utf8.Valid(data), Data: data}
}

// mediaType returns the type without its parameters: one of those may be malformed where the type itself is plain to see.
func mediaType(contentType string) string {
	kind, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	return strings.TrimSpace(kind)
}

func textual(contentType string) bool {
	kind := mediaType(contentType)
	return strings.HasPrefix(kind, "text/") || kind == "application/json" || kind == "application/xml" ||
		kind == "application/x-www-form-urlencoded" || strings.HasSuffix(kind, "+json") || strings.HasSuffix(kind, "+xml")
}

// forClients reports whether a refusal's body of this type is meant for a client: an application writes plain text or JSON on
// purpose, an error page comes by itself.
func forClients(contentType string) bool {
	kind := mediaType(contentType)
	return kind == "text/plain" || kind == "application/json" || strings.HasSuffix(kind, "+json")
}

func groups(header fields, name string) ([]string, error) {
	var names []string
	for _, line := range header.values(name) {
		for group := range strings.SplitSeq(line, ",") {
			if group = strings.Trim(group, " \t"); group == "" {
				continue // RFC 9110, 5.6.1.2: empty list elements are ignored
			}
			if !ValidName(group) {
				return nil, fmt.Errorf("%s %q: a group is 1 to %d printable ASCII characters without space, comma, quotes and %%", name, group, maxName)
			}
			names = append(names, group)
		}
	}
	return names, nil
}

// parseClose reads `4001` or `4001 "reason"`, the reason a quoted string of RFC 9110, 5.6.4.
func parseClose(value string) (*Close, error) {
	digits, rest, _ := strings.Cut(value, " ")
	code, err := strconv.Atoi(digits)
	if err != nil || len(digits) != 4 {
		return nil, fmt.Errorf("Ws-Close %q: use a code of four digits and, if you like, a reason in double quotes", value)
	}
	var reason []byte
	if rest = strings.TrimLeft(rest, " \t"); rest != "" {
		if len(rest) < 2 || rest[0] != '"' || rest[len(rest)-1] != '"' {
			return nil, fmt.Errorf("Ws-Close %q: the reason must stand in double quotes", value)
		}
		inner := rest[1 : len(rest)-1]
		for i := 0; i < len(inner); i++ {
			switch {
			case inner[i] == '\\' && i+1 < len(inner):
				i++
			case inner[i] == '\\' || inner[i] == '"':
				return nil, fmt.Errorf("Ws-Close %q: a quote or backslash in the reason needs a backslash before it", value)
			}
			reason = append(reason, inner[i])
		}
	}
	if err := ValidClose(code, string(reason)); err != nil {
		return nil, fmt.Errorf("Ws-Close: %w", err)
	}
	return &Close{Code: code, Reason: string(reason)}, nil
}

// retryAfter reads Retry-After in either form of RFC 9110, 10.2.3; 0 where there is none or it makes no sense.
func retryAfter(header fields, now time.Time) time.Duration {
	value := strings.TrimSpace(header.get("Retry-After"))
	if value == "" {
		return 0
	}
	// What is beyond the range, ParseUint makes the largest: 68 years.
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
