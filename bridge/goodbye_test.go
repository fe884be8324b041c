package bridge

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// goodbyesAnswered is a backend that takes everything but disconnect events, to which it says these things in turn, the last for ever.
func goodbyesAnswered(statuses ...int) http.HandlerFunc {
	var next atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("ce-type") == "wsbridge.disconnect" {
			w.WriteHeader(statuses[min(int(next.Add(1)), len(statuses))-1])
		}
	}
}

func TestAGoodbyeIsPostedUntilItIsTaken(t *testing.T) {
	inBubble(t, func(w *world) { w.answer = goodbyesAnswered(500, 502, 302, 204) }, func(b *bubble) {
		c := b.dial()
		c.Close()
		time.Sleep(time.Hour)
		seen := b.seen("disconnect")
		if len(seen) != 4 {
			t.Fatalf("posted %d times, want 4", len(seen))
		}
		for i, e := range seen {
			if e.id != seen[0].id || e.body != seen[0].body || e.header.Get("ce-sequence") != "2" || e.header.Get("ce-attempt") != fmt.Sprint(i+1) {
				t.Errorf("attempt %d: %s %s, sequence %s, attempt %s, want the same event", i+1, e.id, e.body, e.header.Get("ce-sequence"), e.header.Get("ce-attempt"))
			}
			if i == 0 {
				continue
			}
			if pause, longest := e.at.Sub(seen[i-1].at), firstGoodbyeRetry<<(i-1); pause < longest/2 || pause > longest {
				t.Errorf("attempt %d after %s, want %s to %s", i+1, pause, longest/2, longest)
			}
		}
	})
}

func TestWhatTakesAGoodbye(t *testing.T) {
	for status, want := range map[int]int{
		200: 1, 204: 1, 299: 1, 400: 1, 401: 1, 403: 1, 404: 1, 410: 1, 422: 1,
		302: 2, 408: 2, 425: 2, 429: 2, 500: 2, 501: 2, 502: 2, 503: 2, 504: 2,
	} {
		inBubble(t, func(w *world) { w.answer = goodbyesAnswered(status, 204) }, func(b *bubble) {
			b.dial().Close()
			time.Sleep(time.Hour)
			if got := len(b.seen("disconnect")); got != want {
				t.Errorf("%d: posted %d times, want %d", status, got, want)
			}
		})
	}
}

func TestAGoodbyeWaitsAsLongAsTheBackendAsks(t *testing.T) {
	inBubble(t, func(w *world) {
		var next atomic.Int64
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("ce-type") != "wsbridge.disconnect" {
				return
			}
			if next.Add(1) == 1 {
				w.Header().Set("Retry-After", "600")
				w.WriteHeader(http.StatusTooManyRequests)
			}
		}
	}, func(b *bubble) {
		b.dial().Close()
		time.Sleep(time.Hour)
		if seen := b.seen("disconnect"); len(seen) != 2 || seen[1].at.Sub(seen[0].at) != 10*time.Minute {
			t.Errorf("posted at %v, want the second time 10m later", seen)
		}
	})
}

func TestAGoodbyeThatNobodyTakesIsGivenUpInTheEnd(t *testing.T) {
	var log bytes.Buffer
	inBubble(t, func(w *world) {
		w.answer = goodbyesAnswered(500)
		w.config.GoodbyeFor = 10 * time.Minute
		w.log = slog.New(slog.NewTextHandler(&log, nil))
	}, func(b *bubble) {
		b.dial().Close()
		time.Sleep(9 * time.Minute)
		before := len(b.seen("disconnect"))
		time.Sleep(time.Hour)
		seen := b.seen("disconnect")
		if last := seen[len(seen)-1].at.Sub(seen[0].at); before < 10 || last > 10*time.Minute || last < 9*time.Minute {
			t.Errorf("posted %d times in 9m, the last time after %s, want up to 10m", before, last)
		}
		if lost := b.Drain(time.Minute, false); lost != 1 || strings.Count(log.String(), "disconnect event lost") != 1 {
			t.Errorf("lost = %d, want 1, with a line that says so:\n%s", lost, &log)
		}
	})
}

func TestGoodbyesThatWaitAreBounded(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"count": func(c *Config) { c.GoodbyeMax = 3 },
		"bytes": func(c *Config) {
			c.GoodbyeBytes = 3 * weight(&upstream.Event{Handshake: &upstream.Handshake{Header: make([]upstream.Field, 1)}, Goodbye: &upstream.Goodbye{}})
		},
	} {
		inBubble(t, func(w *world) {
			w.answer = goodbyesAnswered(500)
			change(&w.config)
		}, func(b *bubble) {
			for range 5 {
				b.dial().Close()
				synctest.Wait()
			}
			b.goodbyes.mu.Lock()
			lost := b.goodbyes.lost
			b.goodbyes.mu.Unlock()
			if count := b.goodbyes.count(); lost < 2 || lost+count != 5 || count == 0 {
				t.Errorf("%s: lost %d of 5, with %d waiting", name, lost, count)
			}
		})
	}
}

// files returns what is in the directory.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestGoodbyesThatAreLeftAreKeptForTheNextStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var left []event
	keep := func(w *world) {
		w.config.StateDir = dir
		w.answer = goodbyesAnswered(503)
	}
	inBubble(t, keep, func(b *bubble) {
		for range 3 {
			b.dial(func(_ *websocket.Dialer, h http.Header) { h.Set("Cookie", "session=secret") })
		}
		if lost := b.Drain(10*time.Second, false); lost != 0 {
			t.Errorf("lost = %d, want none", lost)
		}
		left = b.seen("disconnect")
	})
	names := files(t, dir)
	if len(names) != 1 {
		t.Fatalf("files = %q, want one", names)
	}
	if info, err := os.Stat(filepath.Join(dir, names[0])); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600: there are cookies in it", info.Mode(), err)
	}
	// The backend is still away: what was kept stays kept, and what comes is kept as well.
	inBubble(t, keep, func(b *bubble) {
		b.dial()
		time.Sleep(5 * time.Second)
		b.Drain(10*time.Second, false)
	})
	if got := files(t, dir); len(got) != 1 || got[0] == names[0] {
		t.Errorf("files = %q, want one, and a new one", got)
	}
	ids := map[string]int{}
	inBubble(t, func(w *world) { w.config.StateDir = dir }, func(b *bubble) {
		time.Sleep(time.Second)
		for _, e := range b.seen("disconnect") {
			ids[e.id]++
			if e.header.Get("ce-attempt") == "1" || !strings.Contains(e.body, `"code":1001`) || e.header.Get("Cookie") == "" && slices.ContainsFunc(left, func(l event) bool { return l.id == e.id }) {
				t.Errorf("%s: attempt %s, %s, want it as it was", e.id, e.header.Get("ce-attempt"), e.body)
			}
		}
	})
	if len(ids) != 4 {
		t.Errorf("posted at the next start: %v, want four", ids)
	}
	for _, e := range left {
		if ids[e.id] != 1 {
			t.Errorf("%s was posted %d times at the next start, want once", e.id, ids[e.id])
		}
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("files = %q, want none when all were taken", got)
	}
}

// Who dies before the backend has taken them leaves the file as it is.
func TestAFileStaysUntilAllOfItIsTaken(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	event := func(id string) *upstream.Event {
		return &upstream.Event{Type: upstream.Disconnect, ID: id, ConnectionID: id, Attempt: 3, Handshake: &upstream.Handshake{Path: "/ws"}, Goodbye: &upstream.Goodbye{Code: 1001}}
	}
	if err := j.write([]*upstream.Event{event("a"), event("b")}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // each time as another start
		var events []*upstream.Event
		var all []*journalFile
		if err := j.read(func(e *upstream.Event, f *journalFile) { events, all = append(events, e), append(all, f) }); err != nil {
			t.Fatal(err)
		}
		if len(events) != 2 || events[0].ID != "a" || events[1].ID != "b" || events[0].Attempt != 3 || events[0].Goodbye.Code != 1001 || events[0].Handshake.Path != "/ws" {
			t.Fatalf("read %v, want both as they were", events)
		}
		if err := all[0].done(); err != nil || len(files(t, dir)) != 1 {
			t.Errorf("error = %v, files = %q, want the file while one is left", err, files(t, dir))
		}
	}
}

func TestWhatCannotBeReadIsSetAside(t *testing.T) {
	dir := t.TempDir()
	good := `{"version":1,"event":{"Type":"disconnect","ID":"a-1","ConnectionID":"a","Attempt":2,"Handshake":{"Path":"/ws"},"Goodbye":{"code":1001}}}`
	for name, content := range map[string]string{
		"goodbyes-1-a.ndjson": good + "\n" + `{"version":2,"event":{}}` + "\n" + strings.Replace(good, "a-1", "a-2", 1) + "\n" + good[:40],
		"goodbyes-2-b.ndjson": "",
		"goodbyes-3-c.ndjson": strings.Repeat("x", maxEntry+1),
		"goodbyes-4-d.ndjson": strings.Replace(good, "disconnect", "message", 1),
		"other":               "not ours",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	inBubble(t, func(w *world) {
		w.config.StateDir = dir
		w.log = slog.New(slog.NewTextHandler(&log, nil))
	}, func(b *bubble) {
		time.Sleep(time.Second)
		var ids []string
		for _, e := range b.seen("disconnect") {
			ids = append(ids, e.id)
		}
		slices.Sort(ids)
		if !slices.Equal(ids, []string{"a-1", "a-2"}) {
			t.Errorf("posted = %q, want what could be read", ids)
		}
	})
	want := []string{"goodbyes-1-a.ndjson.bad", "goodbyes-3-c.ndjson.bad", "goodbyes-4-d.ndjson.bad", "other"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("files = %q, want %q", got, want)
	}
	for _, part := range []string{"goodbyes-1-a.ndjson, line 2: its version is 2", "goodbyes-1-a.ndjson, line 4", "goodbyes-3-c.ndjson: ", "goodbyes-4-d.ndjson, line 1: it is no disconnect event"} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the log does not say %q:\n%s", part, &log)
		}
	}
}

func TestAStateDirectoryThatCannotBeUsedIsAFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var config upstream.Config
	config.MaxConcurrent = 1
	client, err := upstream.New(config, "test", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := New(Config{StateDir: file}, ratelimit.Config{}, client, slog.New(slog.DiscardHandler), nil, nil); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error = %v, want one that names %s", err, file)
	}
}

// The backend is away for a minute: connections stay, messages wait, and all goes on in order. Who leaves meanwhile has its message posted
// all the same, and is told of behind it.
func TestMessagesAreHeldWhileTheBackendIsAway(t *testing.T) {
	var away atomic.Bool
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if away.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			echo(w, r)
		}
	}, func(b *bubble) {
		stays, leaves, vanishes := b.dial(), b.dial(), b.dial()
		away.Store(true)
		answers := make(chan string, 3)
		go func() { // it reads all the time, or it would answer no ping
			for range 3 {
				_, data, _ := stays.ReadMessage()
				answers <- string(data)
			}
			stays.Close()
		}()
		for i := range 3 {
			send(t, stays, fmt.Sprint("stays ", i))
		}
		send(t, leaves, "leaves")
		send(t, vanishes, "vanishes")
		time.Sleep(10 * time.Second)
		leaves.Close()
		vanishes.UnderlyingConn().Close()
		time.Sleep(50 * time.Second)
		if len(b.seen("disconnect")) != 0 {
			t.Error("a goodbye before the message that is held")
		}
		b.mu.Lock()
		b.events = nil
		b.mu.Unlock()
		away.Store(false)
		for i := range 3 {
			if got, want := <-answers, fmt.Sprint("stays ", i); got != want {
				t.Errorf("got = %q, want %q", got, want)
			}
		}
		time.Sleep(time.Minute)
		order := map[string][]string{}
		for _, e := range b.seen("message disconnect") {
			id := e.header.Get("ce-connectionid")
			order[id] = append(order[id], strings.TrimSuffix(e.kind+" "+e.body, e.body[min(len(e.body), 8):]))
		}
		ended := 0
		for id, kinds := range order {
			if len(kinds) == 2 && strings.HasPrefix(kinds[0], "message") && strings.HasPrefix(kinds[1], "disconnect") {
				ended++
			} else if len(kinds) != 4 {
				t.Errorf("%s: %q", id, kinds)
			}
		}
		if ended != 2 {
			t.Errorf("events = %v, want two that end behind their message", order)
		}
	})
}

func TestAMessageThatIsHeldForTooLongClosesItsConnection(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = on(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	}, func(b *bubble) {
		c := b.dial()
		start := time.Now()
		send(t, c, "one")
		send(t, c, "two")
		code, _ := closing(c)
		if took := time.Since(start); code != 1013 || took != 2*time.Minute {
			t.Errorf("closed with %d after %s, want 1013 after 2m", code, took)
		}
		for _, e := range b.seen("message") {
			if e.body != "one" {
				t.Errorf("%q was posted, though the message before it was given up", e.body)
			}
		}
		if got := len(b.seen("disconnect")); got != 1 {
			t.Errorf("%d disconnect events, want 1", got)
		}
	})
}
