package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Two secrets, as they are while one is replaced by the other.
const (
	newSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

// onEachServer runs a test on all servers side by side. They wait more than they compute, and t.Parallel would let no more of them run than
// there are processors.
func onEachServer(t *testing.T, test func(*testing.T, backendServer)) {
	var all sync.WaitGroup
	for _, server := range backendServers {
		all.Go(func() { t.Run(server.name, func(t *testing.T) { test(t, server) }) })
	}
	all.Wait()
}

// sign returns the headers of a signed event of somebody who has the secret.
func sign(t *testing.T, secret, id string, at time.Time, body string) http.Header {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return http.Header{
		"Ce-Type": {"wsbridge.message"}, "Webhook-Id": {id}, "Webhook-Timestamp": {fmt.Sprint(at.Unix())},
		"Webhook-Signature": {"v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}
}

func TestEachServerIsABackend(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, server backendServer) {
		push := "127.0.0.1:" + freePort(t) // the example is told of it before the sidecar runs
		url := server.start(t, deployment{secret: oldSecret, pushes: push})
		s := serve(t, "WSBRIDGE_BACKEND_URL="+url, "WSBRIDGE_BACKEND_SECRET="+newSecret+","+oldSecret, "WSBRIDGE_PUSH_LISTEN="+push,
			fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", server.turns))

		ada := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/?user=ada", nil)
		ada.hears(t, websocket.TextMessage, "welcome")
		somebody := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/", nil)
		somebody.hears(t, websocket.TextMessage, "welcome")
		var lobby struct{ Connections []struct{ User string } }
		_, list := request(t, "GET", "http://"+push+"/connections?group=lobby", nil, "")
		if err := json.Unmarshal([]byte(list), &lobby); err != nil || len(lobby.Connections) != 2 || lobby.Connections[0].User != "ada" || lobby.Connections[1].User != "" {
			t.Errorf("connections in the lobby: %v %s, want ada and somebody", err, list)
		}

		for _, text := range []string{"hello", "grüße ☃", strings.Repeat("sixty thousand bytes", 3000)} {
			ada.says(t, websocket.TextMessage, text)
			ada.hears(t, websocket.TextMessage, "ada: "+text)
		}
		somebody.says(t, websocket.BinaryMessage, "\x00\x01\r\n\xff")
		somebody.hears(t, websocket.BinaryMessage, "somebody: \x00\x01\r\n\xff") // this is no UTF-8, and no text for that
		ada.says(t, websocket.TextMessage, "push hello")
		ada.hears(t, websocket.TextMessage, "hello")
		ada.says(t, websocket.TextMessage, "the push had no answer")
		ada.hears(t, websocket.TextMessage, "ada: the push had no answer")

		now := time.Now()
		with := func(header http.Header, name, value string) http.Header {
			header.Set(name, value)
			return header
		}
		right := sign(t, oldSecret, "1", now, "forged").Get("Webhook-Signature")
		for name, header := range map[string]http.Header{
			"no signature":             {"Ce-Type": {"wsbridge.message"}},
			"another secret":           sign(t, newSecret, "1", now, "forged"),
			"another body":             sign(t, oldSecret, "1", now, "genuine"),
			"another id":               with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Id", "2"),
			"another time":             with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Timestamp", fmt.Sprint(now.Unix()+1)),
			"no time":                  with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Timestamp", "soon"),
			"six minutes old":          sign(t, oldSecret, "1", now.Add(-6*time.Minute), "forged"),
			"six minutes early":        sign(t, oldSecret, "1", now.Add(6*time.Minute), "forged"),
			"a part of the signature":  with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Signature", right[:len(right)-1]),
			"an unknown version":       with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Signature", strings.Replace(right, "v1", "v2", 1)),
			"a signature beyond ASCII": with(sign(t, oldSecret, "1", now, "forged"), "Webhook-Signature", right[:len(right)-1]+"ü"),
		} {
			if status, body := request(t, "POST", url, header, "forged"); status != http.StatusUnauthorized {
				t.Errorf("an event with %s: %d %q, want 401", name, status, body)
			}
		}
		among := with(sign(t, oldSecret, "1", now, "genuine"), "Webhook-Signature", right+" "+sign(t, oldSecret, "1", now, "genuine").Get("Webhook-Signature"))
		if status, body := request(t, "POST", url, among, "genuine"); status != http.StatusOK || body != "somebody: genuine" {
			t.Errorf("a signed event: %d %q, want 200", status, body) // or the refusals above say nothing
		}

		ada.leaves(t, 1000)
		somebody.leaves(t, 1000)
		s.signal(t, syscall.SIGTERM)
		s.exits(t, 0)
		for _, complaint := range []string{`"level":"WARN"`, `"level":"ERROR"`} {
			if strings.Contains(s.out.String(), complaint) {
				t.Errorf("the sidecar complains:\n%s", &s.out)
			}
		}
	})
}

// Not beside the other tests: it is about milliseconds.
func TestNoMessageFailsOrIsDoubledAtTheIdleLimit(t *testing.T) {
	onEachServer(t, func(t *testing.T, server backendServer) { sweepIdleLimit(t, server, 1, 10) })
}

// sweepIdleLimit sends messages in rounds, so that the server closes its idle connections just when the next round is about to use them.
func sweepIdleLimit(t *testing.T, server backendServer, keepAlive, rounds int) {
	const clients, sweep = 200, 50 * time.Millisecond // before and behind the limit
	record := filepath.Join(publicDir(t), "events")
	write(t, record, "")
	if err := os.Chmod(record, 0o666); err != nil { // PHP-FPM is another user
		t.Fatal(err)
	}
	url := server.start(t, deployment{secret: oldSecret, record: record, keepAlive: keepAlive})
	limit := idleLimit(t, url)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+url, "WSBRIDGE_BACKEND_SECRET="+oldSecret, fmt.Sprintf("WSBRIDGE_BACKEND_MAX_CONCURRENT=%d", server.turns),
		"WSBRIDGE_PING_INTERVAL=1h") // nobody reads, and so answers pings, between the rounds
	all := make([]*client, clients)
	for i := range all {
		all[i] = connect(t, websocket.Dialer{}, "ws://"+s.clients+"/", nil)
		all[i].hears(t, websocket.TextMessage, "welcome")
	}
	for round := range rounds {
		if limit > 0 {
			x := 2*float64(round)/float64(rounds-1) - 1
			time.Sleep(limit + time.Duration(float64(sweep)*x*x*x)) // most of them next to the limit; what is tested is a time
		}
		for i, c := range all {
			c.says(t, websocket.TextMessage, fmt.Sprint(round*clients+i))
		}
		for i, c := range all {
			c.hears(t, websocket.TextMessage, fmt.Sprint("somebody: ", round*clients+i))
		}
	}
	for _, c := range all {
		c.leaves(t, 1000)
	}
	s.signal(t, syscall.SIGTERM)
	s.exits(t, 0)

	events, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]map[string]int{} // how often, by type and id
	retried := 0
	for line := range strings.Lines(string(events)) {
		var kind, id, attempt string
		if n, _ := fmt.Sscan(line, &kind, &id, &attempt); n < 3 || !strings.HasPrefix(kind, "wsbridge.") {
			continue // that was idleLimit
		}
		// A disconnect event may be repeated: that is what it is made for.
		if attempt != "1" && kind != "wsbridge.disconnect" {
			retried++
		}
		if times[kind] == nil {
			times[kind] = map[string]int{}
		}
		times[kind][id]++
	}
	if retried > 0 {
		t.Errorf("%d events came with a second attempt: the server's close was counted as a failure", retried)
	}
	for kind, want := range map[string]int{"wsbridge.connect": clients, "wsbridge.message": rounds * clients, "wsbridge.disconnect": clients} {
		if got := len(times[kind]); got != want {
			t.Errorf("%d %s events, want %d", got, kind, want)
		}
		for id, n := range times[kind] {
			if n > 1 && kind != "wsbridge.disconnect" {
				t.Errorf("%s %s came %d times", kind, id, n)
			}
		}
	}
}
