package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
)

// Browsers are slow to start: one is enough for all that pages do.
func TestBrowsers(t *testing.T) {
	t.Parallel()
	browser := startBrowser(t)
	for name, test := range map[string]func(*testing.T, context.Context){
		"the documented client comes back where the code says so":     theDocumentedClientComesBackWhereTheCodeSaysSo,
		"the documented client stays away where the code says so":     theDocumentedClientStaysAwayWhereTheCodeSaysSo,
		"a page is told why it may not connect":                       aPageIsToldWhyItMayNotConnect,
		"the documented client is back after a restart":               theDocumentedClientIsBackAfterARestart,
		"a dead server is reconnected to as well":                     aDeadServerIsReconnectedToAsWell,
		"the documented client backs off with jitter":                 theDocumentedClientBacksOffWithJitter,
		"a page that closes the documented client is left alone":      aPageThatClosesTheDocumentedClientIsLeftAlone,
		"a page stays connected while the application is away":        aPageStaysConnectedWhileTheApplicationIsAway,
		"a broadcast reaches both browsers":                           aBroadcastReachesBothBrowsers,
		"a browser gets the subprotocol that the application chooses": aBrowserGetsTheSubprotocolThatTheApplicationChooses,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, browser)
		})
	}
}

func theDocumentedClientComesBackWhereTheCodeSaysSo(t *testing.T, browser context.Context) {
	b := newBackend(t, echo)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*", "WSBRIDGE_BACKEND_EVENTS=connect,message")
	p := openPage(t, browser, "ws://"+s.clients+"/ws", "let clock = 0; performance.now = () => clock; Math.random = () => 1")
	p.hears(t, "state connecting", "state open")
	codes := []int{1011, 1012, 1013, 3008, 1012}
	for i, code := range codes {
		id := b.expect(t, "connect").connection
		p.say(t, fmt.Sprintf("before %d", code))
		p.hears(t, fmt.Sprintf("text before %d", code))
		b.expect(t, "message")
		if i == len(codes)-1 {
			p.evaluate(t, "String(clock = 10001)")
		}
		s.close(t, id, code, "because")
		p.hears(t, fmt.Sprintf("state waiting %d because", code), "state connecting", "state open")
	}
	b.expect(t, "connect")
	p.say(t, "still the same page")
	p.hears(t, "text still the same page")
	if got := p.evaluate(t, "waits.join()"); got != "5,10,20,40,5" {
		t.Errorf("it has waited %s ms, want 5,10,20,40 and, behind a connection that has held, 5", got)
	}
}

func theDocumentedClientStaysAwayWhereTheCodeSaysSo(t *testing.T, browser context.Context) {
	b := newBackend(t, nil)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*")
	for _, code := range []int{1000, 1008, 1009, 3000, 3003, 4000, 4999} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			p := openPage(t, browser, "ws://"+s.clients+"/ws")
			p.hears(t, "state connecting", "state open")
			id := b.expect(t, "connect").connection
			reason := "because"
			if code == 1009 {
				reason = "message larger than 65536 bytes"
				p.evaluate(t, "String(client.send('x'.repeat(65537)))")
			} else {
				s.close(t, id, code, reason)
			}
			p.hears(t, fmt.Sprintf("state closed %d %s", code, reason))
			b.expect(t, "disconnect")
			p.isAtRest(t)
		})
	}
}

func aPageIsToldWhyItMayNotConnect(t *testing.T, browser context.Context) {
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		w.Header().Set("Ws-Close", `3000 "sign in first"`)
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*")
	p := openPage(t, browser, "ws://"+s.clients+"/ws")
	p.hears(t, "state connecting", "state open", "state closed 3000 sign in first")
	p.isAtRest(t)
}

func theDocumentedClientIsBackAfterARestart(t *testing.T, browser context.Context) {
	b := newBackend(t, echo)
	address := "127.0.0.1:" + freePort(t)
	env := []string{"WSBRIDGE_BACKEND_URL=" + b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*", "WSBRIDGE_LISTEN=" + address}
	s := serve(t, env...)
	p := openPage(t, browser, "ws://"+address+"/ws")
	p.hears(t, "state connecting", "state open")
	s.signal(t, syscall.SIGTERM)
	p.hears(t, "state waiting 1001 shutting down", "state connecting")
	s.exits(t, 0)
	p.hears(t, "state waiting 1006 ", "state connecting", "state waiting 1006 ")
	if p.evaluate(t, "String(client.send('lost'))") != "false" {
		t.Error("send claims to have sent without a connection")
	}

	serve(t, env...)
	p.awaits(t, "state open")
	p.say(t, "hello again")
	p.awaits(t, "text hello again") // what could not be sent has not come instead
	for e := range b.events {
		if e.kind == "message" {
			if e.body != "hello again" {
				t.Errorf("message = %q, want only what was sent", e.body)
			}
			return
		}
	}
}

func aDeadServerIsReconnectedToAsWell(t *testing.T, browser context.Context) {
	b := newBackend(t, echo)
	address := "127.0.0.1:" + freePort(t)
	env := []string{oneProcess, "WSBRIDGE_BACKEND_URL=" + b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*", "WSBRIDGE_LISTEN=" + address, "WSBRIDGE_PUSH_LISTEN=127.0.0.1:0"}
	killed := start(t, env, program(t))
	killed.awaitLine(t, "msg=serving")
	p := openPage(t, browser, "ws://"+address+"/ws")
	p.hears(t, "state connecting", "state open")
	killed.signal(t, syscall.SIGKILL)
	<-killed.end
	p.hears(t, "state waiting 1006 ", "state connecting")
	serve(t, env...)
	p.awaits(t, "state open")
}

// While the server is away every wait is random, of up to twice as long as the last one, up to the longest.
func theDocumentedClientBacksOffWithJitter(t *testing.T, browser context.Context) {
	nobody := "ws://127.0.0.1:" + freePort(t) + "/ws"
	for _, random := range []float64{1, 0.25} {
		p := openPage(t, browser, nobody, fmt.Sprintf("Math.random = () => %g", random))
		for range 7 {
			p.hears(t, "state connecting", "state waiting 1006 ")
		}
		var waits []float64
		if err := json.Unmarshal([]byte(p.evaluate(t, "JSON.stringify(waits.slice(0, 7))")), &waits); err != nil {
			t.Fatal(err)
		}
		want := []float64{5, 10, 20, 40, 50, 50, 50}
		for i := range want {
			want[i] *= random
		}
		if !slices.Equal(waits, want) {
			t.Errorf("with %g for a random number it waits %v ms, want %v", random, waits, want)
		}
		p.evaluate(t, "String(client.close())")
		p.awaits(t, "state closed 1000 ")
		p.isAtRest(t)
	}
}

func aPageThatClosesTheDocumentedClientIsLeftAlone(t *testing.T, browser context.Context) {
	b := newBackend(t, nil)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*")
	p := openPage(t, browser, "ws://"+s.clients+"/ws")
	p.hears(t, "state connecting", "state open")
	p.evaluate(t, "String(client.close())")
	p.hears(t, "state closed 1000 ")
	b.expect(t, "connect")
	if e := b.expect(t, "disconnect"); !strings.Contains(e.body, `"code":1000`) || !strings.Contains(e.body, `"by":"client"`) {
		t.Errorf("disconnect event = %s, want the client's 1000", e.body)
	}
	p.isAtRest(t)
}

func aPageStaysConnectedWhileTheApplicationIsAway(t *testing.T, browser context.Context) {
	var tries atomic.Int32
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.kind == "message" && tries.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		echo(w, e)
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*")
	p := openPage(t, browser, "ws://"+s.clients+"/ws")
	p.hears(t, "state connecting", "state open")
	p.say(t, "one")
	p.say(t, "two")
	p.hears(t, "text one", "text two")
}

func aBroadcastReachesBothBrowsers(t *testing.T, browser context.Context) {
	for _, compression := range []string{"off", "on"} {
		t.Run("compression "+compression, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, func(w http.ResponseWriter, e event) { w.Header().Set("Ws-Join", "room1") })
			s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*", "WSBRIDGE_COMPRESSION="+compression)
			var pages []*page
			var ids []string
			for range 2 {
				p := openPage(t, browser, "ws://"+s.clients+"/ws")
				p.hears(t, "state connecting", "state open")
				pages, ids = append(pages, p), append(ids, b.expect(t, "connect").connection)
			}
			if e := pages[0].evaluate(t, "lastSocket.extensions"); strings.Contains(e, "permessage-deflate") != (compression == "on") {
				t.Errorf("extensions = %q", e)
			}
			send := func(query, contentType, body string, want string) {
				t.Helper()
				status, got := request(t, "POST", "http://"+s.pushes+"/groups/room1"+query, http.Header{"Content-Type": {contentType}}, body)
				if status != http.StatusAccepted || got != want {
					t.Fatalf("POST /groups/room1%s: %d %s, want 202 %s", query, status, got, want)
				}
			}
			const one, two = `{"matched":1,"queued":1,"dropped":0}` + "\n", `{"matched":2,"queued":2,"dropped":0}` + "\n"
			large := strings.Repeat("a broadcast, ", 10_000)
			send("", "text/plain", "grüße 👋", two)
			send("", "application/octet-stream", "\x00\xff\x80 bytes", two)
			send("", "text/plain", large, two)
			send("?except="+ids[0], "text/plain", "only for the second", one)
			send("?except="+ids[1], "application/octet-stream", "\x01", one)
			send("", "text/plain", "the end", two)
			pages[0].hears(t, "text grüße 👋", "binary 0,255,128,32,98,121,116,101,115", "text "+large, "binary 1", "text the end")
			pages[1].hears(t, "text grüße 👋", "binary 0,255,128,32,98,121,116,101,115", "text "+large, "text only for the second", "text the end")

			status, got := request(t, "POST", "http://"+s.pushes+"/groups/room1?confirm=1m", nil, "do you hear me?")
			if want := `{"matched":2,"queued":2,"dropped":0,"confirmed":2}` + "\n"; status != http.StatusOK || got != want {
				t.Errorf("confirm by browsers: %d %s, want 200 %s", status, got, want)
			}
		})
	}
}

func aBrowserGetsTheSubprotocolThatTheApplicationChooses(t *testing.T, browser context.Context) {
	b := newBackend(t, func(w http.ResponseWriter, e event) {
		if e.path == "/ws?choose" && e.kind == "connect" {
			if got := e.header.Get("ce-subprotocols"); got != "chat.v2,chat.v1" {
				t.Errorf("ce-subprotocols = %q", got)
			}
			w.Header().Set("Sec-WebSocket-Protocol", "chat.v1")
		}
	})
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_ALLOWED_ORIGINS=*")
	const offer = "options.protocols = ['chat.v2', 'chat.v1']"
	p := openPage(t, browser, "ws://"+s.clients+"/ws?choose", offer)
	p.hears(t, "state connecting", "state open")
	if got := p.evaluate(t, "lastSocket.protocol"); got != "chat.v1" {
		t.Errorf("socket.protocol = %q, want chat.v1", got)
	}
	p = openPage(t, browser, "ws://"+s.clients+"/ws", offer)
	p.hears(t, "state connecting", "state waiting 1006 ") // as the page says of an offer that is not taken up
	p.evaluate(t, "String(client.close())")
}

// The table that frontend developers read and the client below it say the same.
func TestTheTableOfCodesIsWhatTheDocumentedClientDoes(t *testing.T) {
	t.Parallel()
	text, script := clientsPage(t)
	comeBack := map[string]bool{}
	_, list, _ := strings.Cut(script, "comeBack = [")
	list, _, _ = strings.Cut(list, "]")
	for code := range strings.SplitSeq(list, ",") {
		comeBack[strings.TrimSpace(code)] = true
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.ContainsAny(cells[1], "0123456789") {
			continue
		}
		for code := range strings.SplitSeq(cells[1], ",") {
			code = strings.TrimSpace(code)
			seen[code] = true
			if strings.Contains(cells[3], "**reconnect**") != comeBack[code] {
				t.Errorf("%s: the table says %q, the client comes back: %t", code, strings.TrimSpace(cells[3]), comeBack[code])
			}
		}
	}
	for code := range comeBack {
		if !seen[code] {
			t.Errorf("the table lacks %s", code)
		}
	}
	if n := strings.Count(script[strings.Index(script, "function connect"):], "\n"); n > 25 {
		t.Errorf("the client has %d lines, want 25 at most", n)
	}
}

// close closes a connection by way of the push side.
func (s *sidecar) close(t *testing.T, id string, code int, reason string) {
	t.Helper()
	status, body := request(t, "DELETE", fmt.Sprintf("http://%s/connections/%s?code=%d&reason=%s", s.pushes, id, code, reason), nil, "")
	if status != http.StatusNoContent {
		t.Fatalf("DELETE with code %d: %d %s", code, status, body)
	}
}

// clientsPage returns docs/clients.md, and the client that it shows.
func clientsPage(t *testing.T) (text, script string) {
	t.Helper()
	content, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, found := strings.Cut(string(content), "```js\n")
	script, _, closed := strings.Cut(script, "```\n")
	if !found || !closed {
		t.Fatal("docs/clients.md shows no client")
	}
	return string(content), script
}

func startBrowser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("this test needs a browser: apt-get install -y chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		// Several tabs are tested at once, and each counts as looked at.
		chromedp.Flag("disable-background-timer-throttling", true),
		chromedp.Flag("disable-renderer-backgrounding", true),
		chromedp.Flag("disable-backgrounding-occluded-windows", true),
	)
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	return ctx
}

// page is a tab with the documented client in it.
type page struct {
	tab   context.Context
	heard int // how much of its log has been read
}

// openPage opens a page that connects with the documented client, whose waits are short, and logs all that it is told. The preparations
// are statements that run before.
func openPage(t *testing.T, browser context.Context, url string, preparations ...string) *page {
	t.Helper()
	_, script := clientsPage(t)
	html := `<!DOCTYPE html><link rel="icon" href="data:,"><script>
const waits = [], told = [], options = { first: 5, longest: 50 }
let lastSocket, look = () => {}
const tell = line => { told.push(line); look() }
const toldNext = n => new Promise(done => { (look = () => { if (n < told.length) done(told[n]) })() })
const set = window.setTimeout, clear = window.clearTimeout, timers = new Set()
window.setTimeout = (f, ms) => {
  waits.push(ms)
  const timer = set(() => { timers.delete(timer); f() }, ms)
  timers.add(timer)
  return timer
}
window.clearTimeout = timer => { timers.delete(timer); clear(timer) }
window.WebSocket = class extends WebSocket {
  constructor(...args) { super(...args); lastSocket = this }
}
` + strings.Join(preparations, "\n") + `
</script><script>
` + script + `
</script><script>
const client = connect(` + quote(url) + `, {
  state: (...what) => tell(['state', ...what].join(' ')),
  message: data => tell(typeof data === 'string' ? 'text ' + data : 'binary ' + new Uint8Array(data)),
}, options)
</script>`
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write([]byte(html))
	}))
	t.Cleanup(site.Close)
	tab, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	if err := chromedp.Do(tab, chromedp.Navigate(site.URL)); err != nil {
		t.Fatal(err)
	}
	return &page{tab: tab}
}

func quote(s string) string {
	text, _ := json.Marshal(s)
	return string(text)
}

func (p *page) evaluate(t *testing.T, expression string) string {
	t.Helper()
	value, err := chromedp.Run(p.tab, chromedp.Evaluate[string](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return value
}

func (p *page) say(t *testing.T, text string) {
	t.Helper()
	if got := p.evaluate(t, "String(client.send("+quote(text)+"))"); got != "true" {
		t.Fatalf("send = %s, want true", got)
	}
}

// next returns what the page is told next.
func (p *page) next(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.tab, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf("toldNext(%d)", p.heard), chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("the page is told no more: %v; until then: %s", err, shorten(p.evaluate(t, "told.join('; ')")))
	}
	p.heard++
	return text
}

// hears fails unless this is what the page is told next.
func (p *page) hears(t *testing.T, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if got := p.next(t); got != want {
			t.Fatalf("the page is told %q, want %q", shorten(got), shorten(want))
		}
	}
}

// awaits passes over what the page is told until it is this.
func (p *page) awaits(t *testing.T, line string) {
	t.Helper()
	for p.next(t) != line {
	}
}

// isAtRest fails where a page that was told of the end has told something else since, or is waiting for a time to do something.
func (p *page) isAtRest(t *testing.T) {
	t.Helper()
	if got := p.evaluate(t, "told.slice("+fmt.Sprint(p.heard)+").join('; ')"); got != "" {
		t.Errorf("behind its end the page is told %q", got)
	}
	if got := p.evaluate(t, "String(timers.size)"); got != "0" {
		t.Errorf("%s timers of the page go on", got)
	}
	if got := p.evaluate(t, "String(lastSocket.readyState > WebSocket.OPEN)"); got != "true" {
		t.Errorf("the page has connected again")
	}
}
