package upstream

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// plainHeads are heads, and whether they are plain.
var plainHeads = []struct {
	head  string
	plain bool
}{
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true},
	{"HTTP/1.1 200 OK\r\ncontent-length:5\r\nServer: x y\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=5, max=100\r\nDate: Fri, 27 Nov 2026 08:00:00 GMT\r\n\r\nhello", true},
	{"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", true},
	{"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nWs-Join: room\r\nSet-Cookie: c=3\r\nContent-Length: 5\r\n\r\nhello", true},
	{"HTTP/1.1 200 OK\r\nX-Empty:\r\nContent-Length: 5\r\n\r\nhello", true},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK", true},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", false}, // more than the limit
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, Ws-Join\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\n\r\nhello", false},
	{"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false},
	{"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n", false},
	{"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 2x0 OK\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\nContent-Length: 5\n\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nX: \xff\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nPragma: no-cache\r\nContent-Length: 5\r\n\r\nhello", false},
	{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", false},
	{"", false},
}

func TestAPlainAnswerIsReadAsNetHTTPReadsIt(t *testing.T) {
	for _, row := range plainHeads {
		if got := comparePlain(t, []byte(row.head)); got != row.plain {
			t.Errorf("%q is plain: %t, want %t", row.head, got, row.plain)
		}
	}
}

// FuzzPlainAnswers looks for bytes that are read in another way than net/http reads them.
func FuzzPlainAnswers(f *testing.F) {
	for _, row := range plainHeads {
		f.Add([]byte(row.head))
	}
	f.Fuzz(func(t *testing.T, data []byte) { comparePlain(t, data) })
}

// comparePlain reports whether what comes is read as a plain answer. Then net/http must have read the same.
func comparePlain(t *testing.T, data []byte) bool {
	t.Helper()
	const limit = 1000
	ours := bufio.NewReaderSize(bytes.NewReader(data), readAhead)
	ours.Peek(1)
	answer := plainAnswer(ours, limit)
	left, _ := io.ReadAll(ours)
	if answer == nil {
		if !bytes.Equal(left, data) {
			t.Errorf("of %q, which is not plain, %q is left", data, left)
		}
		return false
	}
	theirs := bufio.NewReader(bytes.NewReader(data))
	want, err := http.ReadResponse(theirs, nil)
	if err != nil {
		t.Fatalf("%q is read, and net/http says %v", data, err)
	}
	header := http.Header{}
	for _, field := range answer.fields {
		header[field.Name] = append(header[field.Name], field.Value)
	}
	if answer.status != want.Status || answer.code != want.StatusCode || answer.length != want.ContentLength || answer.close != want.Close ||
		!reflect.DeepEqual(header, want.Header) || want.ProtoMinor != 1 {
		t.Errorf("%q is read as %+v, and net/http reads %+v", data, answer, want)
	}
	body, _ := io.ReadAll(want.Body)
	if n := min(int64(len(left)), answer.length); !strings.HasPrefix(string(left[:n]), string(body)) || int64(len(body)) != n {
		t.Errorf("the body of %q is %q, and net/http reads %q", data, left[:n], body)
	}
	return true
}
