package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/gorilla/websocket"
)

func TestTwoTabsTalkAndSeeWhatTravelled(t *testing.T) {
	d := startDemo(t)
	browser := startBrowser(t)
	complaints := new(complaints)

	first, nameOfFirst, second, nameOfSecond := openTwoTabs(t, browser, d.url, complaints)

	say(t, first, "hello from the first tab")
	waitFor(t, first, "#log .mine", "hello from the first tab")
	waitFor(t, second, "#log", "hello from the first tab")
	say(t, second, "<b>and</b> hello back")
	waitFor(t, second, "#log .mine", "<b>and</b> hello back")
	waitFor(t, first, "#log", "<b>and</b> hello back")

	// A tab knows itself, though it hears of its connection before it learns which one that is.
	waitFor(t, first, ".card[data-whose=mine] .title", "You connected")
	waitFor(t, second, ".card[data-whose=mine] .title", "You connected")
	waitFor(t, first, ".card[data-whose=others] .title", nameOfSecond+" connected")

	// The card of the second tab's own message: frame, POST, answer, frame, and the push to the first tab.
	card := ".card[data-whose=mine]:has(.step[data-kind=post])"
	for _, want := range []struct{ where, text string }{
		{"[data-kind=frame]", `{"text":"<b>and</b> hello back"}`},
		{"[data-kind=post]", "POST /ws HTTP/1.1"},
		{"[data-kind=post]", "ce-type: wsbridge.message"},
		{"[data-kind=post]", "ce-sequence: 2"},
		{"[data-kind=answer]", "HTTP/1.1 200 OK"},
		{"[data-kind=answer]", `"type":"message"`},
		{"[data-kind=answer] + [data-kind=frame]", "wsbridge → this tab"},
		{"[data-kind=push]", "POST /connections/"},
		{"[data-kind=push]", "HTTP/1.1 202 Accepted"},
		{"[data-kind=push]", nameOfFirst},
	} {
		waitFor(t, second, card+" .step"+want.where, want.text)
	}
	// And that push as the first tab sees it.
	waitFor(t, first, ".card[data-whose=mine]:not(:has(.step[data-kind=post])) [data-kind=push] + [data-kind=frame]", "wsbridge → this tab")

	// What the page proposes to type reaches this tab alone.
	pushTo(t, first, "hello from curl")
	waitFor(t, first, "#log .pushed", "hello from curl")
	waitFor(t, first, ".card .title", "A push from outside the application")
	waitFor(t, first, ".card .step[data-kind=push]", "seen by this tab only as a frame")

	say(t, first, "That one came from my terminal.")
	waitFor(t, second, "#log", "my terminal")
	say(t, second, "Nice. And the chat knows nothing of WebSocket?")
	waitFor(t, first, "#log", "knows nothing")
	say(t, first, "Nothing at all: it reads a POST and answers it.")
	waitFor(t, second, "#log", "Nothing at all")
	waitFor(t, first, card+" .step[data-kind=push]", "202 Accepted")
	for _, shot := range []struct {
		name, scheme  string
		width, height int64
		whole         bool
	}{
		{"demo-desktop-light", "light", 1440, 900, false},
		{"demo-desktop-dark", "dark", 1440, 900, false},
		{"demo-phone-light", "light", 390, 844, false},
		{"demo-phone-light-whole", "light", 390, 844, true},
		{"demo-phone-dark", "dark", 390, 844, true},
		{"demo-narrow-light", "light", 360, 740, false},
		{"demo-narrowest-light", "light", 320, 568, false},
		{"demo-narrowest-dark", "dark", 320, 568, true},
	} {
		picture(t, first, shot.name, shot.scheme, shot.width, shot.height, shot.whole)
	}

	complaints.check(t)
}

// openTwoTabs opens two tabs that know each other.
func openTwoTabs(t *testing.T, browser context.Context, url string, complaints *complaints) (first context.Context, nameOfFirst string, second context.Context, nameOfSecond string) {
	t.Helper()
	first = openTab(t, browser, url, complaints)
	nameOfFirst = nicknameIn(t, first)
	second = openTab(t, browser, url, complaints)
	nameOfSecond = nicknameIn(t, second)
	if nameOfFirst == nameOfSecond {
		t.Fatalf("both tabs are called %q", nameOfFirst)
	}
	waitFor(t, first, "#people", nameOfSecond)
	waitFor(t, second, "#people", nameOfFirst)
	return first, nameOfFirst, second, nameOfSecond
}

// The visitor kills the worker, again and again, and the chat goes on over the same connections.
func TestTheChatOutlivesTheWorkerThatTheVisitorKills(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("there is nothing to kill: connections outlive their process on Linux alone")
		return
	}
	d := startDemo(t)
	browser := startBrowser(t)
	complaints := new(complaints)
	first, nameOfFirst, second, nameOfSecond := openTwoTabs(t, browser, d.url, complaints)
	addresses := []string{pushAddress(t, first), pushAddress(t, second)}
	for i := range 4 {
		if err := chromedp.Do(first, chromedp.Click("#kill")); err != nil {
			t.Fatal(err)
		}
		notes := fmt.Sprintf(".note:nth-child(%d of .note:not(:empty))", i+3) // behind who they are, and who has joined
		waitFor(t, first, notes, "was killed")
		waitFor(t, first, notes, "with all 2 connections")
		for j, tab := range []context.Context{first, second} {
			text := fmt.Sprintf("after death %d, from %d", i, j)
			say(t, tab, text)
			waitFor(t, first, "#log", text)
			waitFor(t, second, "#log", text)
		}
	}
	waitFor(t, second, "#log", "was killed")
	if again := []string{pushAddress(t, first), pushAddress(t, second)}; !slices.Equal(again, addresses) {
		t.Errorf("the connections are %q, and were %q", again, addresses)
	}
	for _, tab := range []context.Context{first, second} {
		if bad, err := chromedp.Run(tab, chromedp.Evaluate[bool](`document.getElementById('log').textContent.includes('Disconnected')`)); err != nil || bad {
			t.Errorf("a tab of %s and %s was disconnected (%v)", nameOfFirst, nameOfSecond, err)
		}
	}
	picture(t, first, "demo-killed-light", "light", 1440, 900, false)
	picture(t, first, "demo-killed-phone-dark", "dark", 390, 844, false)

	// Nobody else's page may do that.
	request, _ := http.NewRequest(http.MethodDelete, d.url+"/worker", nil)
	request.Header.Set("Sec-Fetch-Site", "cross-site")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden {
		t.Errorf("a kill from another site: %s, want 403", answer.Status)
	}
	complaints.check(t)
}

func TestOnAPhoneThePageHasRoomForAllOfIt(t *testing.T) {
	d := startDemo(t)
	browser := startBrowser(t)
	complaints := new(complaints)
	tab := openTab(t, browser, d.url, complaints)
	nicknameIn(t, tab)
	check := func(when string) {
		t.Helper()
		for _, size := range [][2]int64{{320, 568}, {360, 740}, {390, 844}} {
			if err := chromedp.Do(tab, chromedp.EmulateViewport(size[0], size[1])); err != nil {
				t.Fatal(err)
			}
			for what, expression := range map[string]string{
				"a label of the map lies over a box or its arrow": `[...document.querySelectorAll('.lane')].some(lane => {
					const range = document.createRange()
					range.selectNodeContents(lane.firstChild)
					const label = range.getBoundingClientRect()
					return [...document.querySelectorAll('.place'), lane.querySelector('i')].some(other => {
						const box = other.getBoundingClientRect()
						return label.left < box.right && label.right > box.left
					})
				})`,
				"a word of the map is broken":  `[...document.querySelectorAll('.place')].some(place => place.scrollWidth > place.clientWidth || place.offsetHeight > 52)`,
				"the chat is cut":              `[...document.querySelectorAll('.chat > *')].some(e => e.getBoundingClientRect().bottom > document.querySelector('.chat').getBoundingClientRect().bottom)`,
				"the name of a step is broken": `[...document.querySelectorAll('.leg b')].some(b => b.offsetHeight > 24)`,
				"a time has a line of its own": `[...document.querySelectorAll('.took')].some(took =>
					took.offsetParent && took.getBoundingClientRect().top > took.parentElement.firstChild.getBoundingClientRect().bottom)`,
			} {
				if bad, err := chromedp.Run(tab, chromedp.Evaluate[bool](expression)); err != nil || bad {
					t.Errorf("%s, %d pixels wide: %s (%v)", when, size[0], what, err)
				}
			}
		}
		// At the last size.
		for what, expression := range map[string]string{
			"what travelled begins below the first screen": `document.getElementById('wire-title').getBoundingClientRect().bottom + scrollY > innerHeight`,
			"the log is low": `document.getElementById('log').clientHeight < 200`,
		} {
			if bad, err := chromedp.Run(tab, chromedp.Evaluate[bool](expression)); err != nil || bad {
				t.Errorf("%s: %s (%v)", when, what, err)
			}
		}
	}
	check("alone")
	picture(t, tab, "demo-phone-alone", "light", 390, 844, false)
	second := openTab(t, browser, d.url, complaints)
	waitFor(t, tab, "#people", nicknameIn(t, second))
	say(t, tab, "hello")
	waitFor(t, tab, ".card .step[data-kind=push] .took", "ms")
	check("in company")
	complaints.check(t)
}

func TestATabThatLeavesIsTakenOffTheOtherOnesList(t *testing.T) {
	d := startDemo(t)
	browser := startBrowser(t)
	complaints := new(complaints)
	first := openTab(t, browser, d.url, complaints)
	nicknameIn(t, first)
	second, closeSecond := chromedp.NewContext(browser)
	if err := chromedp.Do(second, chromedp.Navigate(d.url)); err != nil {
		t.Fatal(err)
	}
	name := nicknameIn(t, second)
	waitFor(t, first, "#people", name)
	closeSecond()
	waitFor(t, first, "#log", name+" left.")
	complaints.check(t)
}

func TestATabComesBackWhereTheCloseCodeInvitesItTo(t *testing.T) {
	d := startDemo(t)
	browser := startBrowser(t)
	complaints := new(complaints)
	tab := openTab(t, browser, d.url, complaints)
	nicknameIn(t, tab)

	waitFor(t, tab, "#terminal:not([hidden])", "curl")
	closeTab(t, tab, 1012)
	waitFor(t, tab, "#log", "Disconnected (1012")
	waitFor(t, tab, ".card[data-whose=mine] .title", "You disconnected")
	nicknameIn(t, tab)
	waitFor(t, tab, "#terminal:not([hidden])", "curl")
	// A message that is lost on its way: the disconnect event takes its number, and has a card of its own all the same.
	if _, err := chromedp.Run(tab, chromedp.Evaluate[bool]("socket.send = () => {}, true")); err != nil {
		t.Fatal(err)
	}
	say(t, tab, "is anybody there?")
	closeTab(t, tab, 1000)
	waitFor(t, tab, "#state-text", "Closed (1000")
	waitFor(t, tab, ".card:not(:has([data-kind=post])) .title", "You said “is anybody there?”")
	waitFor(t, tab, "#terminal[hidden]", "curl") // it could only fail now
	complaints.check(t)

	// What was the tab's own is so behind the end of its connection, whatever it then shows.
	if err := chromedp.Do(tab, chromedp.Click(chromedp.ID("all"))); err != nil {
		t.Fatal(err)
	}
	waitFor(t, tab, ".card[data-whose=mine] .title", "You disconnected")
	if err := chromedp.Do(tab, chromedp.Click(chromedp.ID("again"))); err != nil {
		t.Fatal(err)
	}
	nicknameIn(t, tab)
	d.stop()
	waitFor(t, tab, "#log", "Disconnected (1001")
	startDemo(t, "-listen", strings.Trim(d.url, "htp:/"))
	nicknameIn(t, tab)
}

func TestEventsFromOutsideNeverReachTheApplication(t *testing.T) {
	d := startDemo(t)
	trace := openTrace(t, d.url)
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"POST", "/ws", http.StatusMethodNotAllowed},
		{"POST", "/", http.StatusMethodNotAllowed},
		{"POST", "/trace", http.StatusMethodNotAllowed},
		{"POST", "/ws/", http.StatusNotFound},
		{"POST", "//ws", http.StatusTemporaryRedirect}, // to /ws
		{"GET", "/ws", http.StatusUpgradeRequired},
		{"GET", "/connections", http.StatusNotFound},
	} {
		r, err := http.NewRequest(test.method, strings.TrimSuffix(d.url, "/")+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("ce-type", "wsbridge.connect")
		r.Header.Set("ce-connectionid", "forged")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.status {
			t.Errorf("%s %s: status = %d, want %d", test.method, test.path, resp.StatusCode, test.status)
		}
	}
	if c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(d.url, "http")+"ws", http.Header{"ce-connectionid": {"forged"}}); err != nil {
		t.Error(err)
	} else {
		defer c.Close()
	}
	if e := <-trace; e.Kind != "post" || e.Connection == "forged" {
		t.Errorf("first event = %+v, want that of the WebSocket client", e)
	}
}

func TestTheApplicationOutlivesTheSidecarsDrain(t *testing.T) {
	d := startDemo(t)
	trace := openTrace(t, d.url)
	c, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(d.url, "http")+"ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go d.stop()
	for {
		if _, _, err = c.ReadMessage(); err != nil {
			break
		}
	}
	if !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the client's end = %v, want close code 1001", err)
	}
	c.Close()
	var last traced
	for e := range trace {
		last = e
	}
	if last.Kind != "answer" || last.Answer.Start != "HTTP/1.1 204 No Content" {
		t.Errorf("last entry = %+v, want the answer to the disconnect event", last)
	}
}

func TestWhere8000IsTakenTheDemoFindsAnotherPort(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.1:8000"); err == nil {
		defer l.Close()
	} // else somebody has taken it already
	d := startDemo(t, "-listen", "")
	if strings.Contains(d.url, ":8000/") {
		t.Errorf("address = %s, which is taken", d.url)
	}
	resp, err := http.Get(d.url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status = %d, want 200", resp.StatusCode)
	}
	err = demo(t.Context(), []string{"-listen", strings.Trim(d.url, "htp:/")}, io.Discard, io.Discard)
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second demo at the same address = %v, want address in use", err)
	}
}

func TestTheDemoSaysWhatItsCommandLineTakes(t *testing.T) {
	for _, args := range [][]string{{"-port", "8000"}, {"8000"}, {"-listen"}} {
		err := demo(t.Context(), args, io.Discard, io.Discard)
		if _, ok := errors.AsType[fault](err); !ok || !strings.Contains(err.Error(), "wsbridge demo [-listen address]") {
			t.Errorf("%q: %v, want a fault that says what there is", args, err)
		}
	}
	var stdout strings.Builder
	if err := demo(t.Context(), []string{"-h"}, &stdout, io.Discard); err != nil || !strings.Contains(stdout.String(), "-listen") {
		t.Errorf("help = %q, %v, want -listen explained", stdout.String(), err)
	}
}

// runningDemo is a demo under test.
type runningDemo struct {
	url  string // of the page
	stop func()
}

// startDemo runs the program's own demo until the test ends, at a free port unless the arguments say otherwise.
func startDemo(t *testing.T, args ...string) runningDemo {
	t.Helper()
	if len(args) == 0 {
		args = []string{"-listen", "127.0.0.1:0"}
	}
	ctx, cancel := context.WithCancel(context.Background())
	greeting, stdout := io.Pipe()
	var stderr bytes.Buffer // read after the end only
	var err error
	ended := make(chan struct{})
	go func() {
		err = demo(ctx, args, stdout, &stderr)
		stdout.Close()
		close(ended)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the demo did not end")
			return
		}
		if err != nil || stderr.Len() > 0 {
			t.Errorf("the demo ended with %v and said %q", err, stderr.String())
		}
	})
	t.Cleanup(stop)
	lines := bufio.NewScanner(greeting)
	for lines.Scan() {
		if url := strings.TrimSpace(lines.Text()); strings.HasPrefix(url, "http://127.0.0.1:") {
			go io.Copy(io.Discard, greeting)
			return runningDemo{url, stop}
		}
	}
	stop()
	t.Fatal("the demo printed no address")
	return runningDemo{}
}

// openTrace streams the trace until the demo ends.
func openTrace(t *testing.T, url string) <-chan traced {
	t.Helper()
	resp, err := http.Get(url + "trace")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	entries := make(chan traced, tracedEntries)
	go func() {
		defer close(entries)
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e traced
				if err := json.Unmarshal([]byte(data), &e); err != nil {
					t.Errorf("data = %q: %v", data, err)
				}
				entries <- e
			}
		}
	}()
	return entries
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

// complaints collects what a browser writes into the console of a page as a warning, an error or an exception; a violation of
// the Content-Security-Policy is among them.
type complaints struct {
	mu   sync.Mutex
	list []string
}

func (c *complaints) collect(console iter.Seq2[chromedp.ConsoleMessage, error]) {
	for m, err := range console {
		if err != nil {
			return // the tab is closed
		}
		switch m.Type {
		case chromedp.ConsoleWarning, chromedp.ConsoleError, chromedp.ConsoleException:
			c.mu.Lock()
			c.list = append(c.list, m.String())
			c.mu.Unlock()
		}
	}
}

func (c *complaints) check(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range c.list {
		t.Errorf("the browser complains: %s", text)
	}
}

func openTab(t *testing.T, browser context.Context, url string, c *complaints) context.Context {
	t.Helper()
	tab, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	console := chromedp.Console(tab)
	go c.collect(console)
	err := chromedp.Do(tab,
		// Both tabs are looked at, as two windows side by side are.
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
			return err
		}),
		chromedp.EmulateViewport(1440, 900),
		chromedp.Navigate(url),
	)
	if err != nil {
		t.Fatalf("opening %s: %v", url, err)
	}
	return tab
}

// nicknameIn waits until a tab is connected and says who it is.
func nicknameIn(t *testing.T, tab context.Context) string {
	t.Helper()
	waitFor(t, tab, "#state-text", "Connected")
	title, err := chromedp.Run(tab, chromedp.Title())
	if err != nil {
		t.Fatal(err)
	}
	name, _, found := strings.Cut(title, " · ")
	if !found {
		t.Fatalf("title = %q, want a nickname in it", title)
	}
	return name
}

func say(t *testing.T, tab context.Context, text string) {
	t.Helper()
	if err := chromedp.Do(tab, chromedp.SendKeys(chromedp.ID("text"), text+"\r")); err != nil {
		t.Fatal(err)
	}
}

// pushAddress is where a tab says that it can be reached from a terminal.
func pushAddress(t *testing.T, tab context.Context) string {
	t.Helper()
	command, err := chromedp.Run(tab, chromedp.TextContent(chromedp.ID("curl")))
	if err != nil {
		t.Fatal(err)
	}
	return command[strings.Index(command, "http://"):]
}

// pushTo does what the curl command of the page does.
func pushTo(t *testing.T, tab context.Context, body string) {
	t.Helper()
	resp, err := http.Post(pushAddress(t, tab), "application/x-www-form-urlencoded", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("status of the push = %d, want 202", resp.StatusCode)
	}
}

func closeTab(t *testing.T, tab context.Context, code int) {
	t.Helper()
	r, err := http.NewRequest(http.MethodDelete, fmt.Sprintf("%s?code=%d", pushAddress(t, tab), code), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("status of the close = %d, want 204", resp.StatusCode)
	}
}

// waitFor waits until an element with this text is there.
func waitFor(t *testing.T, tab context.Context, selector, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, 30*time.Second)
	defer cancel()
	sel, _ := json.Marshal(selector)
	want, _ := json.Marshal(text)
	expression := fmt.Sprintf("[...document.querySelectorAll(%s)].some(e => e.textContent.includes(%s))", sel, want)
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(20*time.Millisecond))); err != nil {
		page, _ := chromedp.Run(tab, chromedp.Evaluate[string]("document.body.innerText"))
		t.Fatalf("no %s with %q: %v\nthe page:\n%s", selector, text, err, page)
	}
}

// picture keeps a screenshot, and fails where the page is wider than the screen.
func picture(t *testing.T, tab context.Context, name, scheme string, width, height int64, whole bool) {
	t.Helper()
	dir := os.Getenv("ARTIFACTS")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "wsbridge-artifacts")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := chromedp.Do(tab,
		chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{
					{Name: "prefers-color-scheme", Value: scheme},
					{Name: "prefers-reduced-motion", Value: "reduce"}, // the picture is of the page at rest
				},
			})
			return err
		}),
		chromedp.EmulateViewport(width, height),
	)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	wide, err := chromedp.Run(tab, chromedp.Evaluate[int64]("document.documentElement.scrollWidth"))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	shot := chromedp.CaptureScreenshot()
	if whole {
		shot = chromedp.FullScreenshot(100)
	}
	png, err := chromedp.Run(tab, shot)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if wide > width {
		t.Errorf("%s: the page is %d pixels wide on a screen of %d", name, wide, width)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}
