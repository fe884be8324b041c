package bridge

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
)

// joining is a backend that takes every connection into the group room, as the user that its query names.
func joining(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("ce-type") == "wsbridge.connect" {
		w.Header().Set("Ws-Join", "room")
		w.Header().Set("Ws-User", "ada")
	}
}

// listen reads from a client for as long as it lasts, so that it answers pings, and returns what has come so far.
func listen(c *websocket.Conn) func() []string {
	var mu sync.Mutex
	var heard []string
	go func() {
		for {
			_, data, err := c.ReadMessage()
			if err != nil {
				return
			}
			mu.Lock()
			heard = append(heard, string(data))
			mu.Unlock()
		}
	}()
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, heard...)
	}
}

// ids are those of the open connections, oldest first.
func (b *bubble) ids() []string {
	synctest.Wait()
	var all []string
	for _, c := range b.registry.after(target{kind: toAll}, "") {
		all = append(all, c.id)
	}
	return all
}

// timed calls the push side and returns the status and body of the answer, and how long it took.
func (b *bubble) timed(method, target, body string) (int, string, time.Duration) {
	start := time.Now()
	w := b.call(method, target, body)
	return w.Code, strings.TrimSpace(w.Body.String()), time.Since(start)
}

func TestAConfirmedPushHasReachedItsClient(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		heard := listen(b.dial())
		status, body, took := b.timed("POST", "/connections/"+b.ids()[0]+"?confirm=5s", "hello")
		if status != http.StatusOK || body != "" || took != 0 {
			t.Errorf("got = %d %s after %s, want 200 at once", status, body, took)
		}
		if got := heard(); len(got) != 1 || got[0] != "hello" {
			t.Errorf("heard %q", got)
		}
	})
}

func TestAPushToAClientThatDoesNotAnswerIsNotConfirmed(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial() // which reads nothing
		status, body, took := b.timed("POST", "/connections/"+b.ids()[0]+"?confirm=5s", "hello")
		if status != http.StatusGatewayTimeout || took != 5*time.Second || !strings.Contains(body, "not confirmed") {
			t.Errorf("got = %d %s after %s, want 504 after 5s", status, body, took)
		}
		if got := receive(t, c); got != "hello" {
			t.Errorf("heard %q: it was queued all the same", got)
		}
	})
}

func TestAClientThatLeavesMeanwhileConfirmsNothing(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		time.AfterFunc(2*time.Second, func() { c.Close() })
		status, body, took := b.timed("POST", "/connections/"+b.ids()[0]+"?confirm=5s", "hello")
		if status != http.StatusGone || took != 2*time.Second {
			t.Errorf("got = %d %s after %s, want 410 after 2s", status, body, took)
		}
	})
}

func TestAnOpeningConnectionConfirmsNothing(t *testing.T) {
	open := make(chan struct{})
	inBubble(t, func(w *world) {
		open = make(chan struct{})
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("ce-type") == "wsbridge.connect" {
				<-open
			}
		}
	}, func(b *bubble) {
		come := make(chan func() []string)
		go func() { come <- listen(b.dial()) }()
		id := b.ids()[0]
		if status, body, _ := b.timed("POST", "/connections/"+id+"?confirm=5s", "one"); status != http.StatusConflict || !strings.Contains(body, "opening") {
			t.Errorf("got = %d %s, want 409", status, body)
		}
		if status, _, _ := b.timed("POST", "/connections/"+id, "two"); status != http.StatusAccepted {
			t.Errorf("without confirm: %d, want 202", status)
		}
		close(open)
		heard := <-come
		if got := heard(); len(got) != 1 || got[0] != "two" {
			t.Errorf("heard %q, want what was accepted", got)
		}
	})
}

// RFC 6455, 5.5.3: a client that has not yet answered a ping may answer the most recent one alone, a heartbeat's as well.
func TestAPongConfirmsWhatCameBeforeItsPing(t *testing.T) {
	inBubble(t, func(w *world) { w.config.PingInterval, w.config.PongTimeout = 3*time.Second, time.Minute }, func(b *bubble) {
		c := b.dial()
		var pings []string
		c.SetPingHandler(func(payload string) error {
			if pings = append(pings, payload); len(pings) < 3 || payload == "" {
				return nil
			}
			return c.WriteControl(websocket.PongMessage, []byte(payload), time.Now().Add(time.Second))
		})
		listen(c)
		id := b.ids()[0]
		var all sync.WaitGroup
		for i := range 2 {
			all.Go(func() {
				if status, body, _ := b.timed("POST", fmt.Sprintf("/connections/%s?confirm=60s", id), fmt.Sprint(i)); status != http.StatusOK {
					t.Errorf("push %d: %d %s, want 200: the heartbeat behind it was answered", i, status, body)
				}
			})
		}
		all.Wait()
	})
	// A pong that nobody asked for, or that answers an earlier heartbeat, confirms nothing.
	inBubble(t, func(w *world) { w.config.PongTimeout = time.Hour }, func(b *bubble) {
		c := b.dial()
		c.SetPingHandler(func(string) error {
			c.WriteControl(websocket.PongMessage, nil, time.Now().Add(time.Second))
			return c.WriteControl(websocket.PongMessage, []byte("guessing"), time.Now().Add(time.Second))
		})
		listen(c)
		if status, _, took := b.timed("POST", "/connections/"+b.ids()[0]+"?confirm=5s", "x"); status != http.StatusGatewayTimeout || took != 5*time.Second {
			t.Errorf("got = %d after %s, want 504 after 5s", status, took)
		}
	})
}

func TestAPushToManySaysHowManyHaveConfirmed(t *testing.T) {
	inBubble(t, func(w *world) { w.answer = joining }, func(b *bubble) {
		for range 3 {
			listen(b.dial())
		}
		b.dial() // reads nothing
		leaving := b.dial()
		time.AfterFunc(time.Second, func() { leaving.Close() })
		for _, path := range []string{"/groups/room", "/users/ada", "/connections"} {
			status, body, took := b.timed("POST", path+"?confirm=5s", "hello")
			want := `{"matched":5,"queued":5,"dropped":0,"confirmed":3}`
			if path != "/groups/room" {
				want = strings.ReplaceAll(want, "5", "4")
			}
			if status != http.StatusOK || body != want || took != 5*time.Second {
				t.Errorf("%s: got = %d %s after %s, want 200 %s after 5s", path, status, body, took, want)
			}
		}
		if status, body, took := b.timed("POST", "/groups/nobody?confirm=5s", "hello"); status != http.StatusOK || body != `{"matched":0,"queued":0,"dropped":0,"confirmed":0}` || took != 0 {
			t.Errorf("nobody: got = %d %s after %s", status, body, took)
		}
	})
}

// stalled is a client that reads nothing, and whose line is full up to a message that is on its way: what is pushed now waits.
func stalled(t *testing.T, b *bubble) (c *websocket.Conn, path string) {
	t.Helper()
	c = b.dial(b.buffered(1 << 10))
	path = "/connections/" + b.ids()[len(b.ids())-1]
	if status, body, _ := b.timed("POST", path, strings.Repeat("x", 100<<10)); status != http.StatusAccepted {
		t.Fatalf("push: %d %s", status, body)
	}
	synctest.Wait()
	return c, path
}

// drain reads what comes to a stalled client behind the message that was on its way, up to the word.
func drain(t *testing.T, c *websocket.Conn, word string) (heard []string) {
	t.Helper()
	receive(t, c)
	for len(heard) == 0 || heard[len(heard)-1] != word {
		heard = append(heard, receive(t, c))
	}
	return heard
}

func TestAMessageWithATTLIsDroppedBehindIt(t *testing.T) {
	inBubble(t, func(w *world) { w.config.WriteTimeout = time.Minute }, func(b *bubble) {
		c, path := stalled(t, b)
		for _, push := range []string{"?ttl=5s late", "?ttl=30s in-time", " last"} {
			query, message, _ := strings.Cut(push, " ")
			if status, body, _ := b.timed("POST", path+query, message); status != http.StatusAccepted {
				t.Errorf("%s: %d %s", push, status, body)
			}
		}
		confirmed := make(chan string, 1)
		go func() {
			status, _, took := b.timed("POST", path+"?ttl=5s&confirm=60s", "late too")
			confirmed <- fmt.Sprint(status, " ", took)
		}()
		time.Sleep(10 * time.Second)
		if got := fmt.Sprint(drain(t, c, "last")); got != "[in-time last]" {
			t.Errorf("heard %s, want [in-time last]", got)
		}
		if got := <-confirmed; got != "504 10s" {
			t.Errorf("the confirmation of what was dropped = %s, want 504 as soon as it is known", got)
		}
	})
}

// What has expired makes room before a slow client is closed, or loses what has not.
func TestExpiredMessagesMakeRoom(t *testing.T) {
	inBubble(t, func(w *world) { w.config.WriteTimeout, w.config.SendBuffer = time.Minute, 1000 }, func(b *bubble) {
		c, path := stalled(t, b)
		b.timed("POST", path+"?ttl=1s", strings.Repeat("a", 900))
		time.Sleep(2 * time.Second)
		if status, body, _ := b.timed("POST", path, strings.Repeat("b", 900)); status != http.StatusAccepted {
			t.Errorf("got = %d %s, want room for it", status, body)
		}
		if got := drain(t, c, strings.Repeat("b", 900)); len(got) != 1 {
			t.Errorf("heard %d messages, want one", len(got))
		}
	})
}

func TestALaterMessageOfAKeyTakesTheEarliersPlace(t *testing.T) {
	inBubble(t, func(w *world) { w.config.WriteTimeout = time.Minute }, func(b *bubble) {
		c, path := stalled(t, b)
		for _, push := range []string{"?collapse=price 1", "?collapse=price 2", " other", "?collapse=stock 7", "?collapse=price 3", " last"} {
			query, message, _ := strings.Cut(push, " ")
			if status, body, _ := b.timed("POST", path+query, message); status != http.StatusAccepted {
				t.Errorf("%s: %d %s", push, status, body)
			}
		}
		if got := fmt.Sprint(drain(t, c, "last")); got != "[other 7 3 last]" {
			t.Errorf("heard %s, want [other 7 3 last]", got)
		}
		// A client that keeps up gets each.
		for _, message := range []string{"4", "5", "6"} {
			b.timed("POST", path+"?collapse=price", message)
			if got := receive(t, c); got != message {
				t.Errorf("heard %s, want %s", got, message)
			}
		}
	})
}

// However many values of a key a slow client is sent, it is not too slow for the last.
func TestCollapsedMessagesDoNotFillTheQueue(t *testing.T) {
	inBubble(t, func(w *world) { w.config.WriteTimeout, w.config.SendBuffer = time.Minute, 1000 }, func(b *bubble) {
		c, path := stalled(t, b)
		for i := range 1000 {
			if status, body, _ := b.timed("POST", path+"?collapse=price", fmt.Sprintf("%0500d", i)); status != http.StatusAccepted {
				t.Fatalf("push %d: %d %s", i, status, body)
			}
		}
		if got := drain(t, c, fmt.Sprintf("%0500d", 999)); len(got) != 1 {
			t.Errorf("heard %d messages, want the last alone", len(got))
		}
	})
}

func TestAnIdempotencyKeyRepeatsTheVerdict(t *testing.T) {
	inBubble(t, func(w *world) { w.answer = joining }, func(b *bubble) {
		heard := listen(b.dial())
		push := func(path, key, body string) string {
			r, _ := http.NewRequest("POST", path, strings.NewReader(body))
			r.Host = "localhost"
			r.Header.Set("Idempotency-Key", key)
			w := &recorder{header: http.Header{}}
			b.push.ServeHTTP(w, r)
			return fmt.Sprint(w.status, " ", strings.TrimSpace(w.body.String()))
		}
		const sent = `202 {"matched":1,"queued":1,"dropped":0}`
		for range 3 {
			if got := push("/groups/room", "a", "one"); got != sent {
				t.Errorf("got = %s, want %s", got, sent)
			}
		}
		if got := push("/groups/room", "a", "two"); !strings.HasPrefix(got, "422 ") {
			t.Errorf("another message under the key: %s, want 422", got)
		}
		if got := push("/users/ada", "a", "one"); got != sent { // another route
			t.Errorf("got = %s, want %s", got, sent)
		}
		if got := push("/connections/nobody", "b", "one"); !strings.HasPrefix(got, "410 ") {
			t.Errorf("got = %s, want 410", got)
		}
		if got := push("/groups/room", "", "one"); !strings.HasPrefix(got, "400 ") {
			t.Errorf("an empty key: %s, want 400", got)
		}
		if got := heard(); len(got) != 2 {
			t.Errorf("heard %q, want two", got)
		}
		time.Sleep(10 * time.Minute)
		if push("/groups/room", "a", "two"); len(heard()) != 3 {
			t.Errorf("heard %q: want the key forgotten", heard())
		}
		// Many keys push the oldest out.
		for i := range maxRepeats {
			push("/groups/nobody", fmt.Sprint("many ", i), "")
		}
		if push("/groups/room", "a", "three"); len(heard()) != 4 || len(b.repeats.known) > maxRepeats || len(b.repeats.oldest) > maxRepeats {
			t.Errorf("heard %q with %d keys known, want at most %d", heard(), len(b.repeats.known), maxRepeats)
		}
	})
	// The second waits for the first's verdict.
	inBubble(t, nil, func(b *bubble) {
		c := b.dial()
		var sends int
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				v, same := b.repeats.once("key", [32]byte{}, func() verdict {
					sends++
					time.Sleep(time.Second)
					return verdict{status: 299}
				})
				if v.status != 299 || !same {
					t.Errorf("got = %d, %v", v.status, same)
				}
			})
		}
		all.Wait()
		if sends != 1 {
			t.Errorf("sent %d times, want once", sends)
		}
		c.Close()
	})
}

// recorder is a response.
type recorder struct {
	header http.Header
	status int
	body   strings.Builder
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { r.WriteHeader(http.StatusOK); return r.body.Write(p) }
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

func TestEachLineOfABatchHasItsOwnVerdict(t *testing.T) {
	inBubble(t, func(w *world) { w.answer, w.config.PushMaxBody = joining, 100 }, func(b *bubble) {
		heard := listen(b.dial())
		b.dial()
		id := b.ids()[0]
		rows := []struct{ line, want string }{
			{`{"to":"/connections/` + id + `","body":"one \"é\" \u2603"}`, `{"status":202}`},
			{`{"to":"/groups/room","body":"two","except":["` + b.ids()[1] + `"]}`, `{"status":202,"matched":1,"queued":1,"dropped":0}`},
			{`{"to":"/groups/room","body":"three","except":"` + b.ids()[1] + `,x"}`, `{"status":202,"matched":1,"queued":1,"dropped":0}`},
			{`{"to":"/connections/` + id + `","base64":"AP8="}`, `{"status":202}`},
			{`{"to":"/connections/` + id + `","body":"","ttl":"5s","collapse":"k"}`, `{"status":202}`},
			{`{"to":"/connections/` + id + `","body":"four","confirm":"5s"}`, `{"status":200}`},
			{`{"to":"/groups/room","body":"five","confirm":"5s"}`, `{"status":200,"matched":2,"queued":2,"dropped":0,"confirmed":1}`},
			{`{"to":"/connections","body":"six"}`, `{"status":202,"matched":2,"queued":2,"dropped":0}`},
			{`{"to":"/users/nobody","body":"x"}`, `{"status":202,"matched":0,"queued":0,"dropped":0}`},
			{`{"to":"/connections/nobody","body":"x"}`, `{"status":410,`},
			{``, ``}, {`   `, ``}, // lines of NDJSON may be empty
			{`no json`, `{"status":400,`},
			{`{"to":"/connections/` + id + `"}`, `{"status":400,"detail":"a line has either`},
			{`{"to":"/connections/` + id + `","body":"x","base64":"AA=="}`, `{"status":400,`},
			{`{"to":"/connections/` + id + `","base64":"?"}`, `"field":"base64"}`},
			{`{"to":"/connections/` + id + `","body":5}`, `{"status":400,`},
			{`{"to":"/connections/` + id + `","body":"x","tll":"5s"}`, `{"status":400,`},
			{`{"to":"/connections/` + id + `","body":"x","ttl":"soon"}`, `"field":"ttl"}`},
			{`{"to":"/connections/` + id + `","body":"x","confirm":"61s"}`, `"field":"confirm"}`},
			{`{"to":"/connections/` + id + `","body":"x","except":["y"]}`, `"field":"except"}`},
			{`{"to":"/connections/` + id + `","body":"x"} {"to":"/connections","body":"y"}`, `{"status":400,`},
			{`{"to":"/connections/","body":"x"}`, `"field":"to"}`},
			{`{"to":"/groups/a%20b","body":"x"}`, `"field":"to"}`},
			{`{"to":"/elsewhere/x","body":"x"}`, `"field":"to"}`},
			{`{"to":"/users/ada?ttl=5s","body":"x"}`, `"field":"to"}`},
			{"{\"to\":\"/connections\",\"body\":\"\xff\"}", `{"status":400,`},
			{`{"to":"/connections","body":"` + strings.Repeat("x", 101) + `"}`, `{"status":413,`},
			{`{"to":"/connections","body":"` + strings.Repeat("x", 100_000) + `"}`, `{"status":413,`},
			{`{"to":"/connections/` + id + `","body":"seven"}`, `{"status":202}`},
		}
		var lines, want []string
		for _, row := range rows {
			lines = append(lines, row.line)
			if row.want != "" {
				want = append(want, row.want)
			}
		}
		status, body, took := b.timed("POST", "/batch", strings.Join(lines, "\n"))
		got := strings.Split(body, "\n")
		if status != http.StatusOK || len(got) != len(want) || took != 5*time.Second {
			t.Fatalf("got = %d with %d lines after %s, want 200 with %d after 5s:\n%s", status, len(got), took, len(want), body)
		}
		for i := range want {
			if !json.Valid([]byte(got[i])) || !strings.HasPrefix(got[i], want[i]) && !strings.HasSuffix(got[i], want[i]) {
				t.Errorf("line %d: got = %s, want %s", i, got[i], want[i])
			}
		}
		if got := fmt.Sprintf("%q", heard()); got != `["one \"é\" ☃" "two" "three" "\x00\xff" "" "four" "five" "six" "seven"]` {
			t.Errorf("heard %s", got)
		}
	})
}

// What one line is sent does not wait for what another is confirmed.
func TestABatchGoesOnWhileAConfirmationIsWaitedFor(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.dial() // reads nothing
		var batch strings.Builder
		for range 100 {
			fmt.Fprintf(&batch, `{"to":"/connections/%s","body":"x","confirm":"5s"}`+"\n", b.ids()[0])
		}
		status, body, took := b.timed("POST", "/batch", batch.String())
		if status != http.StatusOK || strings.Count(body, `{"status":504,`) != 100 || took != 5*time.Second {
			t.Errorf("got = %d after %s, want a hundred times 504 after 5s:\n%s", status, took, body)
		}
	})
}

// flushed is a response of which only what has been flushed is seen.
type flushed struct {
	recorder
	seen atomic.Value // string
}

func (f *flushed) Flush() { f.seen.Store(f.body.String()) }

// A batch and its answer are streams: what is known of the lines that have come is said before another comes, in their order.
func TestABatchIsAnsweredAsItComes(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.dial() // reads nothing
		id := b.ids()[0]
		body, batch := io.Pipe()
		r := httptest.NewRequest("POST", "/batch", body)
		r.Host = "localhost"
		w := &flushed{recorder: recorder{header: http.Header{}}}
		done := make(chan struct{})
		go func() {
			b.push.ServeHTTP(w, r)
			close(done)
		}()
		plain := fmt.Sprintf(`{"to":"/connections/%s","body":"x"}`+"\n", id)
		confirm := fmt.Sprintf(`{"to":"/connections/%s","body":"x","confirm":"5s"}`+"\n", id)
		says := func(lines string, want ...int) {
			t.Helper()
			io.WriteString(batch, lines)
			synctest.Wait()
			got := []int{}
			seen, _ := w.seen.Load().(string)
			for line := range strings.Lines(seen) {
				var v batchVerdict
				json.Unmarshal([]byte(line), &v)
				got = append(got, v.Status)
			}
			if !slices.Equal(got, want) {
				t.Errorf("answered %v by now, want %v", got, want)
			}
		}
		says(plain, 202)
		says(plain[:10], 202)
		says(plain[10:], 202, 202)
		says(plain+"\n", 202, 202, 202) // an empty line at hand is none that will be answered
		says(plain+confirm, 202, 202, 202, 202)
		says(plain, 202, 202, 202, 202)
		time.Sleep(5 * time.Second)
		says("", 202, 202, 202, 202, 504, 202)

		// Too many that wait stop the reading.
		before := b.sentTo(id)
		io.WriteString(batch, strings.Repeat(confirm, 3*pendingVerdicts))
		synctest.Wait()
		if n := b.sentTo(id) - before; n != 1+pendingVerdicts {
			t.Errorf("%d lines have been sent while the first is waited for, want that and %d", n, pendingVerdicts)
		}
		batch.Close()
		<-done
		if n := b.sentTo(id) - before; n != 3*pendingVerdicts || strings.Count(w.body.String(), `{"status":504,`) != n+1 {
			t.Errorf("%d lines have been sent and %d answered, want %d", n, strings.Count(w.body.String(), `{"status":504,`)-1, 3*pendingVerdicts)
		}
	})
}

// sentTo returns how many messages a connection has been sent, or is to be.
func (b *bubble) sentTo(id string) int {
	var s struct {
		Queue       struct{ Messages int }
		MessagesOut int `json:"messages_out"`
	}
	json.Unmarshal(b.call("GET", "/connections/"+id, "").Body.Bytes(), &s)
	return s.Queue.Messages + s.MessagesOut
}

func TestAnAnswerMayGoToAGroupAUserOrAll(t *testing.T) {
	inBubble(t, func(w *world) {
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			joining(w, r)
			if r.Header.Get("ce-type") == "wsbridge.message" {
				body := make([]byte, 100)
				n, _ := r.Body.Read(body)
				w.Header().Set("Ws-To", strings.ReplaceAll(string(body[:n]), "ME", r.Header.Get("ce-connectionid")))
				fmt.Fprintf(w, "to %s", body[:n])
			}
		}
	}, func(b *bubble) {
		sender := b.dial()
		own, other := listen(sender), listen(b.dial())
		for _, row := range []struct {
			to        string
			own, more int
		}{
			{"/groups/room", 1, 1}, {"/users/ada", 1, 1}, {"/connections", 1, 1}, {"/groups/room?except=ME", 0, 1}, {"/groups/nobody", 0, 0},
			{"/connections/ME", 1, 0}, {"/connections/ME?ttl=5s&collapse=k", 1, 0},
		} {
			ownBefore, otherBefore := len(own()), len(other())
			send(t, sender, row.to)
			synctest.Wait()
			if got, more := len(own())-ownBefore, len(other())-otherBefore; got != row.own || more != row.more {
				t.Errorf("%s: the sender heard %d and the other %d, want %d and %d", row.to, got, more, row.own, row.more)
			}
		}
		for _, wrong := range []string{"/groups/", "/group/x", "/connections/ME?except=x", "/groups/room?ttl=5%", "/connections/ME?confirm=5s", "/groups/a%20b", "/connections/a/b"} {
			c := b.dial()
			send(t, c, wrong)
			if code, _ := closing(c); code != 1011 {
				t.Errorf("%s: closed with %d, want 1011: the answer is invalid", wrong, code)
			}
		}
	})
}

// An option that can't be read is not left out.
func TestAQueryThatCannotBeReadIsRefused(t *testing.T) {
	inBubble(t, func(w *world) { w.answer = joining }, func(b *bubble) {
		heard := listen(b.dial())
		for _, push := range []string{
			"POST /groups/room?collapse=100%", "POST /groups/room?confirm=5s;ttl=5s", "POST /groups/room?ttl=5s&ttl=6s",
			"DELETE /users/ada?reason=100%", "GET /connections?user=%zz", "PUT /groups/x/connections/" + b.ids()[0] + "?%",
		} {
			method, path, _ := strings.Cut(push, " ")
			r, err := http.NewRequest(method, "/", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			r.Host, r.RequestURI = "localhost", path
			if r.URL, err = r.URL.Parse(path); err != nil { // as net/http's server does, which takes any query
				t.Fatalf("%s: %v", path, err)
			}
			w := &recorder{header: http.Header{}}
			if b.push.ServeHTTP(w, r); w.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s, want 400", push, w.status, w.body.String())
			}
		}
		if got := heard(); len(got) != 0 || len(b.ids()) != 1 {
			t.Errorf("heard %q, %d connections are left, want nothing done", got, len(b.ids()))
		}
	})
}

func TestConfirmationsThatNobodyWaitsForDoNotPileUp(t *testing.T) {
	inBubble(t, func(w *world) { w.config.PongTimeout = time.Hour }, func(b *bubble) {
		c := b.dial()
		c.SetPingHandler(func(string) error { return nil }) // it answers none
		listen(c)
		id := b.ids()[0]
		for range 1000 {
			b.timed("POST", "/connections/"+id+"?confirm=1ms", "x")
		}
		conn := b.registry.find(id)
		conn.mu.Lock()
		defer conn.mu.Unlock()
		if got := len(conn.awaited()); got > 1 {
			t.Errorf("%d are kept, want the last alone", got)
		}
	})
}

func TestIDsSortByTimeWithinAMillisecond(t *testing.T) {
	var b Bridge
	now := time.Now()
	last := ""
	for i := range 1000 {
		id := b.newID(now.Add(time.Duration(i%7) * -time.Millisecond)) // a clock may go back
		if id <= last || len(id) != 36 {
			t.Fatalf("id %q behind %q", id, last)
		}
		last = id
	}
}

func TestAPageOfAUserInAGroupEndsWithItsLast(t *testing.T) {
	inBubble(t, func(w *world) { w.answer = joining }, func(b *bubble) {
		for range 4 {
			listen(b.dial())
		}
		ids := b.ids()
		for _, id := range ids[2:] {
			b.timed("DELETE", "/groups/room/connections/"+id, "")
		}
		if _, body, _ := b.timed("GET", "/connections?user=ada&group=room&limit=2", ""); strings.Count(body, `"id":`) != 2 || strings.Contains(body, `"next"`) {
			t.Errorf("got = %s, want two connections and no more", body)
		}
		if _, body, _ := b.timed("GET", "/connections?user=ada&group=room&limit=1", ""); !strings.Contains(body, `"next":"`+ids[0]+`"`) {
			t.Errorf("got = %s, want one connection and where to go on", body)
		}
	})
}

// What was not sent, since the connection was opening, is sent by the next try under the same key.
func TestAKeyIsNotUsedUpWhereNothingWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p repeats
		statuses := []int{http.StatusConflict, http.StatusOK, http.StatusTeapot}
		for i, want := range []int{http.StatusConflict, http.StatusOK, http.StatusOK} {
			v, same := p.once("key", [32]byte{}, func() verdict { return verdict{status: statuses[i]} })
			if v.status != want || !same {
				t.Errorf("try %d: %d, %v, want %d", i, v.status, same, want)
			}
		}
	})
}
