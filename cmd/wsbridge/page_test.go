package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/gorilla/websocket"
)

// A person looks at the live page, in a real browser: numbers, the table, one connection, a message to it, its end, the settings.
func TestTheLivePageShowsAndDoesWhatItSays(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if user, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/ws/"), "<"); r.Header.Get("ce-type") == "wsbridge.connect" {
			w.Header().Set("Ws-User", user)
			w.Header().Set("Ws-Join", "room-"+user[:1])
		}
		if r.Header.Get("ce-type") == "wsbridge.message" {
			w.Header().Set("Content-Type", "text/plain")
			w.Write(body)
		}
	}))
	defer backend.Close()
	secret := "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM="
	clients, pushes := serving(t, "WSBRIDGE_BACKEND_URL="+backend.URL, "WSBRIDGE_BACKEND_SECRET="+secret, "WSBRIDGE_NODE=here", "WSBRIDGE_PING_INTERVAL=20s", "WSBRIDGE_DRAIN_TIMEOUT=2s")
	conns := map[string]*websocket.Conn{}
	for _, user := range []string{"ann", "bob", "cid", "dan<b>"} {
		c, _, err := websocket.DefaultDialer.Dial("ws://"+clients+"/ws/"+strings.NewReplacer("<", "%3C", ">", "%3E").Replace(user), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		conns[user] = c
	}
	for range 3 {
		conns["bob"].WriteMessage(websocket.TextMessage, []byte("hello"))
		if _, _, err := conns["bob"].ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	browser := startBrowser(t)
	complaints := new(complaints)
	tab := openTab(t, browser, "http://"+pushes+"/", complaints)
	waitFor(t, tab, "#node", "here")
	waitFor(t, tab, "#backend[data-up='1']", "is up")
	waitFor(t, tab, ".tile:nth-child(1) dd", "4")
	waitFor(t, tab, "#rows tr:nth-child(4) td", "room-")
	waitFor(t, tab, "#shown", "4 of 4 found among 4.")
	waitFor(t, tab, ".plot:nth-child(2) .key", "/s")
	waitFor(t, tab, ".plot:nth-child(1) svg[role=img][aria-label^=Connections] path[d*=L]", "") // a line, not just a point

	// Sorted by what has come from them, bob is first, and then last.
	press := func(selector string) {
		t.Helper()
		if err := chromedp.Do(tab, chromedp.Click(selector)); err != nil {
			t.Fatal(err)
		}
	}
	in := "#columns th:nth-child(8) button"
	press(in)
	waitFor(t, tab, "#columns th:nth-child(8)[aria-sort=ascending]", "In")
	waitFor(t, tab, "#rows tr:last-child td:nth-child(2)", "bob")
	press(in)
	waitFor(t, tab, "#rows tr:first-child td:nth-child(2)", "bob")
	if err := chromedp.Do(tab, chromedp.SendKeys(chromedp.ID("search"), "room-a")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, tab, "#shown", "1 of 1 found among 4.")
	waitFor(t, tab, "#rows tr:first-child td:nth-child(2)", "ann")

	// One of them is sent to and closed.
	press("#rows tr:first-child button")
	waitFor(t, tab, "dialog[open] dd", "ann")
	for _, shot := range []struct {
		name, scheme  string
		width, height int64
	}{{"page-one-light", "light", 1440, 900}, {"page-one-phone-dark", "dark", 390, 844}} {
		picture(t, tab, shot.name, shot.scheme, shot.width, shot.height, false)
	}
	if err := chromedp.Do(tab, chromedp.SendKeys(chromedp.ID("send-text"), "from the page, <b>ä</b>")); err != nil {
		t.Fatal(err)
	}
	press("#send button")
	waitFor(t, tab, "#said", "Sent.")
	if _, p, err := conns["ann"].ReadMessage(); err != nil || string(p) != "from the page, <b>ä</b>" {
		t.Errorf("the client was sent %q, %v", p, err)
	}
	if err := chromedp.Do(tab, chromedp.SendKeys(chromedp.ID("close-reason"), "enough")); err != nil {
		t.Fatal(err)
	}
	press("#close button")
	waitFor(t, tab, "#said", "Closed.")
	if _, _, err := conns["ann"].ReadMessage(); !websocket.IsCloseError(err, 1000) || !strings.Contains(err.Error(), "enough") {
		t.Errorf("the client was closed with %v", err)
	}
	conns["ann"].Close()
	press("dialog form[method=dialog] button")
	waitFor(t, tab, "#shown", "0 of 0 found among 3.")
	if _, err := chromedp.Run(tab, chromedp.Evaluate[bool](`document.getElementById('search').value = '', document.getElementById('search').dispatchEvent(new Event('input'))`)); err != nil {
		t.Fatal(err)
	}

	press("details summary")
	waitFor(t, tab, "#settings tr[data-set] th", "WSBRIDGE_PING_INTERVAL")
	waitFor(t, tab, "#settings tr[data-set] td", "(set)")
	for _, shot := range []struct {
		name, scheme  string
		width, height int64
	}{{"page-light", "light", 1440, 900}, {"page-dark", "dark", 1440, 900}, {"page-phone-light", "light", 390, 844}, {"page-narrow-dark", "dark", 320, 568}} {
		picture(t, tab, shot.name, shot.scheme, shot.width, shot.height, true)
	}
	text, err := chromedp.Run(tab, chromedp.Evaluate[string]("document.documentElement.outerHTML"))
	if err != nil || strings.Contains(text, secret) || strings.Contains(text, "dan<b>") {
		t.Errorf("the page has what it must not: %v", err)
	}
	complaints.check(t)
}

// Who may not push may not look.
func TestTheLivePageAsksForTheToken(t *testing.T) {
	_, pushes := serving(t, "WSBRIDGE_BACKEND_URL=http://127.0.0.1:9", "WSBRIDGE_PUSH_TOKEN=of-the-test-0123456789")
	for _, row := range []struct {
		password string
		want     int
	}{{"", 401}, {"another", 401}, {"of-the-test-0123456789", 200}} {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, fmt.Sprintf("http://%s/", pushes), nil)
		if err != nil {
			t.Fatal(err)
		}
		if row.password != "" {
			request.SetBasicAuth("anybody", row.password)
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != row.want || strings.Contains(string(body), "of-the-test") {
			t.Errorf("with the password %q: %s, want %d", row.password, answer.Status, row.want)
		}
		if row.want == 401 && !strings.Contains(strings.Join(answer.Header.Values("WWW-Authenticate"), ","), "Basic") {
			t.Errorf("a browser is not asked for the password: %q", answer.Header.Get("WWW-Authenticate"))
		}
	}
}
