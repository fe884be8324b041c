package upstream

import (
	"bufio"
	"bytes"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// plainAnswer reads the head of an answer that came in one piece and has nothing in it but a status, plain fields and the length of its body: nearly every one is such, and
// net/http takes four times as long for it. What is not plain it leaves to net/http, untouched, and returns nil. Wherever it returns something net/http would return the
// same. It looks at what is buffered, and does not read.
func plainAnswer(r *bufio.Reader, limit int64) *head {
	buffered, _ := r.Peek(r.Buffered())
	end := bytes.Index(buffered, []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	line, rest, _ := strings.Cut(string(buffered[:end]), "\r\n") // all that is kept are parts of this
	status, ok := strings.CutPrefix(line, "HTTP/1.1 ")
	if !ok || len(status) < 5 || status[3] != ' ' || status[0] < '2' || status[0] > '5' || !printable(status) || strings.TrimLeft(status, " ") != status {
		return nil
	}
	code, err := strconv.ParseUint(status[:3], 10, 16)
	if err != nil || code == http.StatusNoContent || code == http.StatusNotModified { // which have no body, whatever their fields say
		return nil
	}
	answer := heads.Get().(*head)
	*answer = head{code: int(code), status: status, length: -1}
	answer.fields = answer.first[:0]
	for len(rest) > 0 {
		line, rest, _ = strings.Cut(rest, "\r\n")
		name, value, found := strings.Cut(line, ":")
		if !found || !fieldName(name) || !printable(value) {
			return nil
		}
		name, value = textproto.CanonicalMIMEHeaderKey(name), strings.Trim(value, " \t")
		switch name {
		case "Content-Length":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil || answer.length >= 0 || int64(n) > limit || value[0] < '0' {
				return nil
			}
			answer.length = int64(n)
		case "Connection":
			if !strings.EqualFold(value, "keep-alive") {
				return nil
			}
		case "Transfer-Encoding", "Trailer", "Pragma":
			return nil
		}
		answer.fields = append(answer.fields, Field{name, value})
	}
	if answer.length < 0 {
		return nil
	}
	r.Discard(end + len("\r\n\r\n"))
	return answer
}

// printable reports whether s is of printable ASCII and spaces.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// fieldName reports whether s is a field's name of letters, digits and dashes.
func fieldName(s string) bool {
	for i := range len(s) {
		if b := s[i]; b != '-' && (b < '0' || b > '9') && (b|0x20 < 'a' || b|0x20 > 'z') {
			return false
		}
	}
	return s != ""
}
