package upstream

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// accepted returns the reply to a text message that was answered with 200, these headers and this body.
func accepted(t testing.TB, body string, lines ...string) *Reply {
	t.Helper()
	return (&Client{}).reply(text("x"), response(t, 200, lines...), []byte(body), noon)
}

// wantInvalid reports where anything of an invalid answer counts.
func wantInvalid(t testing.TB, name string, r *Reply) {
	t.Helper()
	if r.Outcome != Invalid || r.Err == nil {
		t.Errorf("%s: got = %s, %v, want invalid", name, r.Outcome, r.Err)
	}
	if r.Messages != nil || r.To != "" || r.User != nil || r.State != nil || r.Join != nil || r.Leave != nil || r.Close != nil || r.SetCookie != nil ||
		r.Subprotocol != "" || r.Header != nil || r.Body != nil {
		t.Errorf("%s: something of it counts: %+v", name, r)
	}
}

func TestANameIsPlainASCIIOfAtMost200Bytes(t *testing.T) {
	rows := []struct {
		name string
		want bool
	}{
		{"42", true}, {"a", true}, {"user@example.org", true}, {"a/b:c;d=e", true}, {"!#$&()*+-./:;<=>?@[]^_`{|}~\\", true}, {"...", true}, {".a", true},
		{strings.Repeat("x", 200), true}, {strings.Repeat("x", 201), false},
		{"", false}, {".", false}, {"..", false}, {" ", false}, {"a b", false}, {"a,b", false}, {`a"b`, false}, {"a'b", false}, {"a%b", false},
		{"a\tb", false}, {"a\x00", false}, {"a\x1f", false}, {"a\x7f", false}, {"é", false}, {"\x80", false}, {"\xff", false},
	}
	for _, row := range rows {
		if got := ValidName(row.name); got != row.want {
			t.Errorf("%q: got = %v, want %v", row.name, got, row.want)
		}
	}
}

func TestACloseMayUseTheCodesOfTheContract(t *testing.T) {
	allowed := func(code int) bool {
		return code == 1000 || code == 1008 || code >= 1011 && code <= 1013 || code >= 3000 && code <= 4999
	}
	for code := -1; code <= 70000; code++ {
		if got := ValidClose(code, "") == nil; got != allowed(code) {
			t.Errorf("%d: got = %v, want %v", code, got, allowed(code))
		}
	}
	rows := []struct {
		reason string
		want   bool
	}{
		{"", true}, {strings.Repeat("x", 123), true}, {strings.Repeat("x", 124), false}, {strings.Repeat("é", 61), true}, {strings.Repeat("é", 62), false},
		{"\xff", false}, {"\xc3", false}, {"tschüß", true},
	}
	for _, row := range rows {
		if got := ValidClose(4001, row.reason) == nil; got != row.want {
			t.Errorf("%q: got = %v, want %v", row.reason, got, row.want)
		}
	}
}

func TestWsCloseIsACodeAndAReasonInQuotes(t *testing.T) {
	good := []struct {
		value string
		want  Close
	}{
		{`4001`, Close{4001, ""}},
		{`1000 ""`, Close{1000, ""}},
		{`4001 "reason"`, Close{4001, "reason"}},
		{`4001   "two words"`, Close{4001, "two words"}},
		{"4001 \t\"x\"", Close{4001, "x"}},
		{`4001 "say \"hi\" \\ \x"`, Close{4001, `say "hi" \ x`}},
		{`4001 "grüß"`, Close{4001, "grüß"}},
		{`3000 "` + strings.Repeat("x", 123) + `"`, Close{3000, strings.Repeat("x", 123)}},
		{`3000 "` + strings.Repeat(`\"`, 123) + `"`, Close{3000, strings.Repeat(`"`, 123)}},
	}
	for _, row := range good {
		r := accepted(t, "bye", "Ws-Close: "+row.value)
		if r.Outcome != Accepted || r.Close == nil || *r.Close != row.want {
			t.Errorf("%s: got = %+v, %v, want %+v", row.value, r.Close, r.Err, row.want)
		}
		if want := []Payload{{Data: []byte("bye")}}; !equalPayloads(r.Messages, want) {
			t.Errorf("%s: messages = %s, want %s", row.value, show(r.Messages), show(want))
		}
	}
	for _, value := range []string{
		``, `"reason"`, `4001 reason`, `4001 "reason`, `4001 reason"`, `4001 "`, `4001"reason"`, `4001, "reason"`, `4001 "a" "b"`, `4001 "a"b"`, `4001 "a\"`, `4001 'a'`,
		`400`, `04001`, `40010`, `4001.0`, `+401`, `-401`, `4e03`, `0x10`, `1001`, `1002`, `1005`, `1006`, `1009`, `1010`, `1014`, `1015`, `2999`, `5000`, `0000`,
		`4001 "` + strings.Repeat("x", 124) + `"`, "4001 \"\xff\"",
	} {
		wantInvalid(t, value, accepted(t, "bye", "Ws-Close: "+value))
	}
}

func TestTheWsHeadersAreRead(t *testing.T) {
	r := accepted(t, "hello", "Ws-User: 42", "WS-STATE: step=2", "ws-join: a, b ,c", "Ws-Join: d", "Ws-Leave: e", "Ws-To: /groups/a", "Ws-Close: 4001", "Ws-Messages: one", "Set-Cookie: a=b", "Set-Cookie: c=d")
	switch {
	case r.Outcome != Accepted || r.Err != nil || r.Status != 200:
		t.Fatalf("got = %s, %d, %v, want accepted", r.Outcome, r.Status, r.Err)
	case r.User == nil || *r.User != "42":
		t.Errorf("user = %v, want 42", r.User)
	case r.State == nil || *r.State != "step=2":
		t.Errorf("state = %v, want step=2", r.State)
	case !slices.Equal(r.Join, []string{"a", "b", "c", "d"}) || !slices.Equal(r.Leave, []string{"e"}):
		t.Errorf("join = %q, leave = %q", r.Join, r.Leave)
	case r.To != "/groups/a" || r.Close == nil || r.Close.Code != 4001:
		t.Errorf("to = %q, close = %v", r.To, r.Close)
	case !slices.Equal(r.SetCookie, []string{"a=b", "c=d"}):
		t.Errorf("cookies = %q", r.SetCookie)
	}
	r = accepted(t, "hello")
	if r.User != nil || r.State != nil || r.Join != nil || r.Leave != nil || r.To != "" || r.Close != nil || r.SetCookie != nil {
		t.Errorf("without headers: got = %+v", r)
	}
}

func TestAValueAtTheEdgeOfItsRule(t *testing.T) {
	rows := []struct {
		line string
		want bool
	}{
		{"Ws-User: " + strings.Repeat("u", 200), true},
		{"Ws-User: " + strings.Repeat("u", 201), false},
		{"Ws-User:", false},
		{"Ws-User: a b", false},
		{"Ws-User: a,b", false},
		{"Ws-User: .", false},
		{"Ws-User: ..", false},
		{"Ws-User: ...", true},
		{"Ws-User: é", false},
		{"Ws-State: " + strings.Repeat("s", 1024), true},
		{"Ws-State: " + strings.Repeat("s", 1025), false},
		{"Ws-State:", true}, // takes the state back
		{"Ws-State: .", true},
		{"Ws-State: a b", false},
		{"Ws-State: a%20b", false},
		{"Ws-State: a\"b", false},
		{"Ws-State: {}", true},
		{"Ws-State: \xff", false},
		{"Ws-Join: " + strings.Repeat("g", 200), true},
		{"Ws-Join: " + strings.Repeat("g", 201), false},
		{"Ws-Join:", true},
		{"Ws-Join: , ,a,", true}, // RFC 9110, 5.6.1: empty elements are ignored
		{"Ws-Join: a, b c", false},
		{"Ws-Join: a, ..", false},
		{"Ws-Join: \"a\"", false},
		{"Ws-Leave: " + strings.Repeat("g", 200), true},
		{"Ws-Leave: " + strings.Repeat("g", 201), false},
		{"Ws-Leave: a%b", false},
		{"Ws-To: /", true}, // which routes there are, the push side knows
		{"Ws-To: groups/a", false},
		{"Ws-To: http://host/groups/a", false},
		{"Ws-To:", false},
		{"Ws-Messages: one", true},
		{"Ws-Messages: lines", true},
		{"Ws-Messages: none", true},
		{"Ws-Messages:", false},
		{"Ws-Messages: One", false},
		{"Ws-Messages: two", false},
		{"Ws-Messages: one, lines", false},
		{"Ws-Other: whatever it is", true},
		{"Content-Encoding: gzip", false},
		{"Content-Encoding: Identity", true},
		{"Content-Encoding:", true},
	}
	for _, row := range rows {
		name := row.line
		if len(name) > 40 {
			name = fmt.Sprintf("%s… (%d bytes)", name[:20], len(name))
		}
		if r := accepted(t, "hello", row.line); !row.want {
			wantInvalid(t, name, r)
		} else if r.Outcome != Accepted {
			t.Errorf("%s: got = %s, %v, want accepted", name, r.Outcome, r.Err)
		}
	}
	if r := accepted(t, "", "Content-Encoding: gzip"); r.Outcome != Accepted {
		t.Errorf("nothing, encoded: got = %s, %v, want accepted", r.Outcome, r.Err)
	}
	if r := accepted(t, "", "Ws-State:"); r.State == nil || *r.State != "" {
		t.Errorf("an empty state: got = %v, want one", r.State)
	}
}

func TestOneFaultSpoilsTheWholeAnswer(t *testing.T) {
	good := []string{"Ws-User: 42", "Ws-State: s", "Ws-Join: a", "Ws-Leave: b", "Ws-To: /groups/a", "Ws-Close: 4001", "Ws-Messages: one", "Set-Cookie: a=b"}
	if r := accepted(t, "hello", good...); r.Outcome != Accepted {
		t.Fatalf("got = %s, %v, want accepted", r.Outcome, r.Err)
	}
	bad := map[string]string{"Ws-User": "a b", "Ws-State": "a b", "Ws-Join": "a b", "Ws-Leave": "a b", "Ws-To": "x", "Ws-Close": "1", "Ws-Messages": "x"}
	for i, line := range good {
		name, _, _ := strings.Cut(line, ":")
		if value, ok := bad[name]; ok {
			lines := slices.Clone(good)
			lines[i] = name + ": " + value
			wantInvalid(t, lines[i], accepted(t, "hello", lines...))
		}
		switch name {
		case "Ws-Join", "Ws-Leave", "Set-Cookie": // lists
		default:
			wantInvalid(t, line+", twice", accepted(t, "hello", append(slices.Clone(good), line)...))
		}
	}
}

func TestAnErrorShowsNoStateAndNoBody(t *testing.T) {
	r := accepted(t, "secret body", "Ws-State: secret state")
	wantInvalid(t, "a bad state", r)
	if strings.Contains(r.Err.Error(), "secret") {
		t.Errorf("error = %v", r.Err)
	}
}

func TestTheContentTypeSaysWhetherItIsText(t *testing.T) {
	rows := []struct {
		contentType string
		asText      bool
	}{
		{"text/plain", true}, {"text/plain; charset=utf-8", true}, {"TEXT/HTML", true}, {"text/html;charset", true}, {"text/csv; header", true}, {"text/event-stream", true},
		{"application/json", true}, {"Application/JSON ; charset=utf-8", true}, {"application/problem+json", true}, {"application/vnd.api+json;x=\"", true},
		{"application/xml", true}, {"image/svg+xml", true}, {"application/atom+xml", true}, {"application/x-www-form-urlencoded", true},
		{"application/octet-stream", false}, {"image/png", false}, {"application/x-protobuf", false}, {"application/jsonx", false}, {"multipart/form-data", false},
		{"application/pdf", false}, {"nonsense", false}, {"x/text/plain", false}, {"json", false},
	}
	for _, row := range rows {
		for _, binary := range []bool{false, true} { // what the message was doesn't matter
			if got := NewPayload(row.contentType, binary, []byte("grüß")); got.Binary == row.asText {
				t.Errorf("%q, message binary = %v: binary = %v, want %v", row.contentType, binary, got.Binary, !row.asText)
			}
			if got := NewPayload(row.contentType, binary, []byte("\xff")); !got.Binary {
				t.Errorf("%q: what is not UTF-8 came out as text", row.contentType)
			}
		}
	}
	for _, binary := range []bool{false, true} {
		if got := NewPayload("", binary, []byte("x")); got.Binary != binary {
			t.Errorf("without a type: binary = %v, want %v as the message was", got.Binary, binary)
		}
	}
	if got := NewPayload("", false, []byte("\xc3")); !got.Binary {
		t.Errorf("without a type: what is not UTF-8 came out as text")
	}
}

func TestTheBodyIsCutAsWsMessagesSays(t *testing.T) {
	rows := []struct {
		shape, body string
		want        []string
	}{
		{"", "", nil},
		{"", "a\nb\n", []string{"a\nb\n"}},
		{"one", "", []string{""}},
		{"one", "a\nb\n", []string{"a\nb\n"}},
		{"none", "", nil},
		{"none", "a\nb\n", nil},
		{"lines", "", nil},
		{"lines", "a", []string{"a"}},
		{"lines", "a\n", []string{"a"}},
		{"lines", "a\r\nb\r\n", []string{"a", "b"}},
		{"lines", "a\n\nb", []string{"a", "", "b"}},
		{"lines", "\n", []string{""}},
		{"lines", "\n\n", []string{"", ""}},
		{"lines", "\r\n", []string{""}},
		{"lines", "a\rb\n", []string{"a\rb"}},
		{"lines", "a\r\r\n", []string{"a\r"}},
		{"lines", "a\r", []string{"a\r"}}, // a CR counts in front of an LF alone
		{"lines", "\r", []string{"\r"}},
	}
	for _, row := range rows {
		var lines []string
		if row.shape != "" {
			lines = append(lines, "Ws-Messages: "+row.shape)
		}
		var want []Payload
		for _, data := range row.want {
			want = append(want, Payload{Data: []byte(data)})
		}
		if r := accepted(t, row.body, lines...); r.Outcome != Accepted || !equalPayloads(r.Messages, want) {
			t.Errorf("%q of %q: got = %s %s, want %s", row.shape, row.body, r.Outcome, show(r.Messages), show(want))
		}
	}
	r := accepted(t, "a\n\xff\nb", "Ws-Messages: lines")
	if want := []Payload{{Data: []byte("a")}, {Binary: true, Data: []byte("\xff")}, {Data: []byte("b")}}; !equalPayloads(r.Messages, want) {
		t.Errorf("got = %s, want %s", show(r.Messages), show(want))
	}
	r = accepted(t, "a\nb", "Ws-Messages: lines", "Content-Type: application/octet-stream")
	if want := []Payload{{Binary: true, Data: []byte("a")}, {Binary: true, Data: []byte("b")}}; !equalPayloads(r.Messages, want) {
		t.Errorf("got = %s, want %s", show(r.Messages), show(want))
	}
	r = accepted(t, "", "Ws-Messages: one", "Content-Type: image/png")
	if want := []Payload{{Binary: true}}; !equalPayloads(r.Messages, want) {
		t.Errorf("got = %s, want %s", show(r.Messages), show(want))
	}
}

func TestAnAnswerWithoutATypeIsAsTheMessageWas(t *testing.T) {
	rows := []struct {
		kind   Type
		binary bool
		body   string
		want   bool
	}{
		{Message, false, "hello", false},
		{Message, true, "hello", true},
		{Message, false, "\xff", true},
		{Connect, false, "hello", false},
		{Connect, false, "\xff", true},
	}
	for _, row := range rows {
		e := text("")
		e.Type, e.Body.Binary = row.kind, row.binary
		r := (&Client{}).reply(e, response(t, 200), []byte(row.body), noon)
		if want := []Payload{{Binary: row.want, Data: []byte(row.body)}}; !equalPayloads(r.Messages, want) {
			t.Errorf("%s, binary = %v: got = %s, want %s", row.kind, row.binary, show(r.Messages), show(want))
		}
	}
}

func TestEveryStatusHasItsOutcome(t *testing.T) {
	special := map[int]Outcome{
		401: Unauthenticated, 403: Forbidden, 410: Gone,
		404: Misconfigured, 405: Misconfigured, 415: Misconfigured, 419: Misconfigured, 431: Misconfigured,
		425: Later, 429: Later, 503: Later,
		408: Uncertain, 502: Uncertain, 504: Uncertain,
	}
	for status := 100; status <= 999; status++ {
		want, ok := special[status]
		switch {
		case ok:
		case status < 200 || status > 599:
			want = Invalid
		case status < 300:
			want = Accepted
		case status < 400:
			want = Redirected
		case status < 500:
			want = Refused
		default:
			want = Failed
		}
		if got := outcome(status); got != want {
			t.Errorf("%d: got = %s, want %s", status, got, want)
		}
		for _, kind := range []Type{Connect, Message, Disconnect} {
			e := text("")
			e.Type = kind
			r := (&Client{}).reply(e, response(t, status), nil, noon)
			if r.Outcome != want || r.Status != status || (r.Err == nil) != (want == Accepted) || r.TimedOut {
				t.Errorf("%s, %d: got = %s, %d, %v, want %s", kind, status, r.Outcome, r.Status, r.Err, want)
			}
		}
	}
}

func TestOnARefusalOnlyWsCloseCounts(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 409, 410, 418, 419, 422, 451, 499} {
		r := (&Client{}).reply(text("x"), response(t, status,
			"Ws-Close: 4001 \"no\"", "Ws-User: a b", "Ws-State: a b", "Ws-Join: a b", "Ws-Leave: a b", "Ws-To: x", "Ws-Messages: x", "Set-Cookie: a=b",
			"Content-Type: text/plain"), []byte("no"), noon)
		if r.Outcome != outcome(status) || r.Close == nil || *r.Close != (Close{4001, "no"}) {
			t.Errorf("%d: got = %s, close %v, want %s and 4001", status, r.Outcome, r.Close, outcome(status))
		}
		if r.User != nil || r.State != nil || r.Join != nil || r.Leave != nil || r.To != "" || r.SetCookie != nil {
			t.Errorf("%d: more than Ws-Close counts: %+v", status, r)
		}
		r = (&Client{}).reply(text("x"), response(t, status, "Ws-Close: 1005"), nil, noon)
		wantInvalid(t, fmt.Sprintf("%d with a bad Ws-Close", status), r)
	}
}

func TestARefusalIsShownWhenItIsWrittenForClients(t *testing.T) {
	rows := []struct {
		status int
		lines  []string
		body   string
		want   []Payload
	}{
		{422, []string{"Content-Type: text/plain"}, "too long", []Payload{{Data: []byte("too long")}}},
		{422, []string{"Content-Type: text/plain; charset=utf-8"}, "too long", []Payload{{Data: []byte("too long")}}},
		{409, []string{"Content-Type: text/plain; charset"}, "too long", []Payload{{Data: []byte("too long")}}},
		{400, []string{"Content-Type: application/json"}, "{}\n[]", []Payload{{Data: []byte("{}\n[]")}}},
		{400, []string{"Content-Type: application/json", "Ws-Messages: none"}, "{}", []Payload{{Data: []byte("{}")}}},
		{499, []string{"Content-Type: application/problem+json"}, "{}", []Payload{{Data: []byte("{}")}}},
		{422, []string{"Content-Type: text/plain"}, "\xff", []Payload{{Binary: true, Data: []byte("\xff")}}},
		{422, []string{"Content-Type: text/plain"}, "", nil},
		{422, []string{"Content-Type: text/html"}, "<h1>", nil},
		{422, []string{"Content-Type: application/octet-stream"}, "x", nil},
		{422, []string{"Content-Type: application/xml"}, "<x/>", nil},
		{422, nil, "x", nil},
		{422, []string{"Content-Type: application/json", "Content-Encoding: gzip"}, "x", nil},
		// Whatever the body:
		{404, []string{"Content-Type: text/plain"}, "x", nil},
		{405, []string{"Content-Type: application/json"}, "{}", nil},
		{415, []string{"Content-Type: application/json"}, "{}", nil},
		{419, []string{"Content-Type: application/json"}, "{}", nil},
		{431, []string{"Content-Type: text/plain"}, "x", nil},
		{401, []string{"Content-Type: application/json"}, "{}", nil},
		{403, []string{"Content-Type: application/json"}, "{}", nil},
		{410, []string{"Content-Type: application/json"}, "{}", nil},
		{408, []string{"Content-Type: text/plain"}, "x", nil},
		{425, []string{"Content-Type: text/plain"}, "x", nil},
		{429, []string{"Content-Type: text/plain"}, "x", nil},
		{500, []string{"Content-Type: text/plain"}, "x", nil},
		{503, []string{"Content-Type: text/plain"}, "x", nil},
		{302, []string{"Content-Type: text/plain"}, "x", nil},
	}
	for _, row := range rows {
		r := (&Client{}).reply(text("x"), response(t, row.status, row.lines...), []byte(row.body), noon)
		if !equalPayloads(r.Messages, row.want) || r.Outcome != outcome(row.status) {
			t.Errorf("%d %q %q: got = %s %s, want %s", row.status, row.lines, row.body, r.Outcome, show(r.Messages), show(row.want))
		}
		if r.Header != nil || r.Body != nil {
			t.Errorf("%d: an answer to a message has %v, %q for a handshake", row.status, r.Header, r.Body)
		}
	}
}

// The connect event is the first that meets a CSRF protection.
func TestAForgottenCSRFProtectionIsHintedAt(t *testing.T) {
	for _, kind := range []Type{Connect, Message} {
		for _, status := range []int{400, 401, 403, 404, 410, 419, 422, 429, 500, 503} {
			e := text("x")
			e.Type = kind
			r := (&Client{}).reply(e, response(t, status), nil, noon)
			want := status == 403 || status == 419 || status == 422
			if got := strings.Contains(r.Err.Error(), "CSRF"); got != want {
				t.Errorf("%s, %d: %v", kind, status, r.Err)
			}
		}
	}
}

func TestARedirectIsLoggedWithItsLocation(t *testing.T) {
	r := (&Client{}).reply(text("x"), response(t, 301, "Location: https://app.example.org/ws/"), nil, noon)
	if r.Outcome != Redirected || !strings.Contains(r.Err.Error(), `"https://app.example.org/ws/"`) {
		t.Errorf("got = %s, %v", r.Outcome, r.Err)
	}
}

func TestRetryAfterHasTwoForms(t *testing.T) {
	const longest = (1<<31 - 1) * time.Second
	rows := []struct {
		value string
		want  time.Duration
	}{
		{"", 0}, {"0", 0}, {"1", time.Second}, {" 120 ", 2 * time.Minute}, {"007", 7 * time.Second},
		{"2147483647", longest}, {"2147483648", longest}, {"99999999999999999999999", longest}, // never is not at once
		{"-1", 0}, {"+1", 0}, {"1.5", 0}, {"1s", 0}, {"soon", 0}, {"1, 2", 0}, {"0x10", 0}, {"1_0", 0},
		{"Mon, 04 May 2026 10:00:30 GMT", 30*time.Second - 123456789},
		{"Monday, 04-May-26 10:01:00 GMT", time.Minute - 123456789},
		{"Mon May  4 10:00:01 2026", time.Second - 123456789},
		{"Mon, 04 May 2026 10:00:00 GMT", 0},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"2026-05-04T10:00:30Z", 0},
	}
	for _, row := range rows {
		header := fields{{"Retry-After", row.value}}
		if got := retryAfter(header, noon); got != row.want {
			t.Errorf("%q: got = %s, want %s", row.value, got, row.want)
		}
	}
	if got := retryAfter(nil, noon); got != 0 {
		t.Errorf("without the header: got = %s, want 0", got)
	}
	if r := (&Client{}).reply(text("x"), response(t, 503, "Retry-After: 9"), nil, noon); r.After != 9*time.Second {
		t.Errorf("after = %s, want 9s", r.After)
	}
}

// wantRules reports where an accepted reply breaks a rule of the contract, whatever the backend said.
func wantRules(t *testing.T, r *Reply) {
	t.Helper()
	if (r.Err == nil) != (r.Outcome == Accepted) {
		t.Errorf("outcome %s with error %v", r.Outcome, r.Err)
	}
	_ = r.Outcome.String()
	if r.Outcome == Invalid {
		wantInvalidHere(t, r)
	}
	if r.After < 0 {
		t.Errorf("after = %s", r.After)
	}
	for _, m := range r.Messages {
		if !m.Binary && !utf8.Valid(m.Data) {
			t.Errorf("a text that is not UTF-8: %q", m.Data)
		}
	}
	if r.Close != nil {
		if err := ValidClose(r.Close.Code, r.Close.Reason); err != nil {
			t.Errorf("close %+v: %v", r.Close, err)
		}
	}
	if r.User != nil && !ValidName(*r.User) {
		t.Errorf("user = %q", *r.User)
	}
	if r.State != nil && (len(*r.State) > 1024 || strings.ContainsAny(*r.State, " ,\"'%") || strings.ContainsFunc(*r.State, func(c rune) bool { return c <= ' ' || c >= 0x7f })) {
		t.Errorf("state = %q", *r.State)
	}
	for _, group := range slices.Concat(r.Join, r.Leave) {
		if !ValidName(group) {
			t.Errorf("group = %q", group)
		}
	}
	if r.To != "" && !strings.HasPrefix(r.To, "/") {
		t.Errorf("to = %q", r.To)
	}
	if r.Outcome != Accepted && (r.User != nil || r.State != nil || r.Join != nil || r.Leave != nil || r.To != "" || r.SetCookie != nil || r.Subprotocol != "") {
		t.Errorf("%s, and yet: %+v", r.Outcome, r)
	}
}

func wantInvalidHere(t *testing.T, r *Reply) {
	if r.Messages != nil || r.Close != nil {
		t.Errorf("something of an invalid answer counts: %+v", r)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, "Ws-User: 42\r\nWs-Close: 4001 \"x\"\r\nWs-Messages: lines\r\n", []byte("a\n\xff"), byte(0))
	f.Add(201, "Ws-Join: a,b\r\nWs-Leave: c\r\nWs-To: /groups/a\r\nWs-State: s\r\nSet-Cookie: a=b\r\n", []byte("é"), byte(1))
	f.Add(200, "Sec-WebSocket-Protocol: chat\r\nContent-Type: text/plain\r\n", []byte("\xff"), byte(2))
	f.Add(422, "Content-Type: application/json\r\nWs-Close: 4001 \"\\\"\"\r\n", []byte("{}"), byte(0))
	f.Add(503, "Retry-After: 99999999999999999999\r\n", []byte(""), byte(2))
	f.Add(302, "Location: x\r\n", []byte(""), byte(3))
	f.Add(99, "Ws-User: x\r\nWs-User: y\r\n", []byte(""), byte(0))
	f.Fuzz(func(t *testing.T, status int, head string, body []byte, kind byte) {
		answer, err := http.ReadResponse(bufio.NewReader(strings.NewReader(fmt.Sprintf("HTTP/1.1 %03d x\r\n", status)+head+"\r\n")), nil)
		if err != nil {
			return
		}
		e := text("x")
		e.Type = []Type{Message, Message, Connect, Disconnect}[kind%4]
		e.Body.Binary = kind%4 == 1
		if e.Type == Connect {
			e.Subprotocols = []string{"chat"}
		}
		r := (&Client{}).reply(e, newHead(answer), body, noon)
		wantRules(t, r)
		if r.Status != answer.StatusCode {
			t.Errorf("status = %d, want %d", r.Status, answer.StatusCode)
		}
		if r.Subprotocol != "" && r.Subprotocol != "chat" {
			t.Errorf("subprotocol = %q", r.Subprotocol)
		}
		if e.Type == Disconnect && (r.Messages != nil || r.Close != nil) {
			t.Errorf("an answer to a disconnect counts: %+v", r)
		}
	})
}

func FuzzParseClose(f *testing.F) {
	for _, value := range []string{`4001`, `4001 "reason"`, `4001 "a\"b\\"`, `1005`, "4001 \"\xff\"", `4001 "\`, "4001\t\"x\""} {
		f.Add(value)
	}
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, value string) {
		c, err := parseClose(value)
		if err != nil {
			if c != nil {
				t.Errorf("%q: both %+v and %v", value, c, err)
			}
			return
		}
		if err := ValidClose(c.Code, c.Reason); err != nil {
			t.Errorf("%q: %v", value, err)
		}
		again, err := parseClose(fmt.Sprintf(`%d "%s"`, c.Code, quote.Replace(c.Reason)))
		if err != nil || *again != *c {
			t.Errorf("%q: written and read again = %+v, %v, want %+v", value, again, err, c)
		}
	})
}
