package bridge

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// plainPushes are what may come, and whether it is a plain push.
var plainPushes = []struct {
	text  string
	state plainState
}{
	{"POST /groups/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", plainWhole},
	{"POST /connections HTTP/1.1\r\nhost:127.0.0.1:9701\r\ncontent-length: 0\r\n\r\n", plainWhole},
	{"POST /users/ada HTTP/1.1\r\nHost: [::1]:80\r\nUser-Agent: x/1 (y)\r\nAccept: */*\r\nContent-Type: text/plain; charset=utf-8\r\nAuthorization: Bearer x\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n\r\n", plainWhole},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel", plainMore},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPOST", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a b\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\nx", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nIdempotency-Key: x\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nOrigin: https://a\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nSec-Fetch-Site: cross-site\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Type: Multipart/form-data; boundary=x\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n folded: x\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nAccept: \x00\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.1\nHost: a\nContent-Length: 0\n\r\n\r\n", plainNot},
	{"POST /users/ada?ttl=1s HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/a%62 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/.. HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST //users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST http://a/users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"PUT /users/ada HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"POST /users/ada  HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", plainNot},
	{"", plainNot},
}

func TestAPlainPushIsReadAsNetHTTPReadsIt(t *testing.T) {
	for _, row := range plainPushes {
		if got := comparePush(t, []byte(row.text)); got != row.state {
			t.Errorf("%q: state = %d, want %d", row.text, got, row.state)
		}
	}
}

// FuzzPlainPush looks for bytes that are read in another way than net/http reads them.
func FuzzPlainPush(f *testing.F) {
	for _, row := range plainPushes {
		f.Add([]byte(row.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) { comparePush(t, data) })
}

// comparePush returns what is made of it. A plain push net/http must read alike, and nothing else in it may mean anything.
func comparePush(t *testing.T, data []byte) plainState {
	t.Helper()
	r, state := readPlain(bytes.Clone(data))
	if state != plainWhole {
		return state
	}
	reader := bufio.NewReader(bytes.NewReader(data))
	want, err := http.ReadRequest(reader)
	if err != nil {
		t.Fatalf("%q is read, and net/http says %v", data, err)
	}
	body, err := io.ReadAll(want.Body)
	if err != nil || !bytes.Equal(body, r.body) || reader.Buffered() > 0 {
		t.Errorf("%q has the body %q, and net/http reads %q, %v, with %d bytes behind it", data, r.body, body, err, reader.Buffered())
	}
	to, ok := sendRoute(want)
	if !ok || to != r.target || want.URL.RawQuery != "" || want.Close || want.Host != string(r.host) {
		t.Errorf("%q is for %+v at %q, and net/http reads %s %s at %q, close = %t", data, r.target, r.host, want.Method, want.URL, want.Host, want.Close)
	}
	if want.Header.Get("Content-Type") != string(r.contentType) || want.Header.Get("Authorization") != string(r.authorization) {
		t.Errorf("%q: Content-Type %q, Authorization %q, and net/http reads %v", data, r.contentType, r.authorization, want.Header)
	}
	for name, values := range want.Header {
		if len(values) > 1 && !slices.Contains([]string{"User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Connection"}, name) || name == "Origin" || strings.HasPrefix(name, "Sec-") {
			t.Errorf("%q is plain with %s: %q", data, name, values)
		}
	}
	return state
}

func TestAVerdictIsTheSameOnBothWays(t *testing.T) {
	two := 2
	for _, v := range []verdict{
		{status: 202}, {status: 202, result: &result{Matched: 3, Queued: 2, Dropped: 1}}, {status: 200, result: &result{Matched: 3, Confirmed: &two}}, {status: 410, detail: `connection "<a>" is not open`},
		{status: 409, field: "confirm", detail: "é"},
	} {
		recorder := httptest.NewRecorder()
		v.write(recorder)
		want := recorder.Result()
		got, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(v.append(nil, time.Unix(1_790_000_000, 0)))), nil)
		if err != nil {
			t.Fatal(err)
		}
		ours, _ := io.ReadAll(got.Body)
		theirs, _ := io.ReadAll(want.Body)
		if got.StatusCode != want.StatusCode || !bytes.Equal(ours, theirs) || got.Close || got.ContentLength != int64(len(theirs)) || got.Header.Get("Date") != "Mon, 21 Sep 2026 14:13:20 GMT" {
			t.Errorf("%+v: got %d %v %q, want %d %q", v, got.StatusCode, got.Header, ours, want.StatusCode, theirs)
		}
		got.Header.Del("Date")
		got.Header.Del("Content-Length")
		if a, b := text(got.Header), text(want.Header); a != b {
			t.Errorf("%+v: header = %s, want %s", v, a, b)
		}
	}
}

// text returns a header as JSON has it: sorted.
func text(header http.Header) string {
	p, _ := json.Marshal(header)
	return string(p)
}
