package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

func TestTwoTabsTalkAndSeeWhatTravelled(t *testing.T) {
	d := startDemo(t)
	ctx := startBrowser(t)
	complaints := new(complaints)

	first := openTab(t, ctx, d.url, complaints)
	nameOfFirst := nicknameIn(t, first)
	second := openTab(t, ctx, d.url, complaints)
	nameOfSecond := nicknameIn(t, second)
	if nameOfFirst == nameOfSecond {
		t.Fatalf("both tabs are called %q", nameOfFirst)
	}
	waitFor(t, first, "#people", nameOfSecond)
	waitFor(t, second, "#people", nameOfFirst)

	say(t, first, "hello from the first tab")
	waitFor(t, first, "#log .mine", "hello from the first tab")
	waitFor(t, second, "#log", "hello from the first tab")
	say(t, second, "<b>and</b> hello back")
	waitFor(t, second, "#log .mine", "<b>and</b> hello back")
	waitFor(t, first, "#log", "<b>and</b> hello back")

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

	// What the greeting proposes to type reaches the page, too.
	resp, err := http.Post(d.push+"/connections", "application/x-www-form-urlencoded", strings.NewReader("hello from curl"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	waitFor(t, first, "#log .pushed", "hello from curl")
	waitFor(t, second, "#log .pushed", "hello from curl")
	waitFor(t, second, ".card .title", "A push from outside the application")

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
		{"demo-phone-light", "light", 390, 844, true},
		{"demo-phone-dark", "dark", 390, 844, true},
		{"demo-narrow-light", "light", 360, 740, false},
	} {
		picture(t, first, shot.name, shot.scheme, shot.width, shot.height, shot.whole)
	}

	complaints.check(t)
}

func TestATabThatLeavesIsTakenOffTheOtherOnesList(t *testing.T) {
	d := startDemo(t)
	ctx := startBrowser(t)
	complaints := new(complaints)
	first := openTab(t, ctx, d.url, complaints)
	nicknameIn(t, first)
	second, closeSecond := chromedp.NewContext(ctx)
	if err := chromedp.Do(second, chromedp.Navigate(d.url)); err != nil {
		t.Fatal(err)
	}
	name := nicknameIn(t, second)
	waitFor(t, first, "#people", name)
	closeSecond()
	waitFor(t, first, "#log", name+" left.")
	complaints.check(t)
}

// running is a demo under test.
type running struct {
	url, push string
	stop      func()
}

// startDemo runs the program's own demo until the test ends.
func startDemo(t *testing.T) running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- demo(ctx, []string{"-listen", "127.0.0.1:0"}, in, &stderr)
		in.Close()
	}()
	greeting := make([]byte, 4096)
	n, err := out.Read(greeting)
	if err != nil {
		t.Fatalf("the demo did not start: %v", <-ended)
	}
	go io.Copy(io.Discard, out)
	urls := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindAllString(string(greeting[:n]), -1)
	if len(urls) < 2 {
		t.Fatalf("greeting = %q, want the address of the page and of the pushes", greeting[:n])
	}
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the demo ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the demo did not end")
		}
		if stderr.Len() > 0 {
			t.Logf("the demo said:\n%s", stderr.String())
		}
	})
	t.Cleanup(stop)
	return running{url: urls[0] + "/", push: urls[1], stop: stop}
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

// waitFor waits until an element with this text is there.
func waitFor(t *testing.T, tab context.Context, selector, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, 10*time.Second)
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
