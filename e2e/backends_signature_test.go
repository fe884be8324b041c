package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

// signedEvent is an event as the verifying programs of testdata read it.
type signedEvent struct {
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"`
}

func TestPublishedLibrariesVerifyTheSignature(t *testing.T) {
	t.Parallel()
	b := newBackend(t, nil)
	s := serve(t, "WSBRIDGE_BACKEND_URL="+b.URL, "WSBRIDGE_BACKEND_SECRET="+newSecret+","+oldSecret)
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	c.says(t, websocket.TextMessage, "grüße ☃")
	c.says(t, websocket.TextMessage, "")
	c.says(t, websocket.BinaryMessage, "\x00\xff")
	var events []signedEvent
	expect := func(kinds ...string) {
		for _, kind := range kinds {
			e := b.expect(t, kind)
			headers := map[string]string{}
			for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
				headers[name] = e.header.Get(name)
			}
			events = append(events, signedEvent{headers, []byte(e.body)})
		}
	}
	expect("connect", "message", "message", "message")
	c.leaves(t, 1000)
	expect("disconnect")

	if _, err := os.Stat("testdata/standardwebhooks-js/node_modules/standardwebhooks"); err != nil {
		t.Fatal("this test needs standardwebhooks of npm: run make tools")
	}
	// npm's library knows bodies of text only.
	text := slices.DeleteFunc(slices.Clone(events), func(e signedEvent) bool { return !utf8.Valid(e.Body) })
	for _, verifier := range []struct {
		name    string
		command func(secret string) *exec.Cmd
		secret  string
		events  []signedEvent
	}{
		{"JavaScript", func(secret string) *exec.Cmd {
			return exec.CommandContext(t.Context(), tool(t, "node", "nodejs"), "testdata/standardwebhooks-js/verify.js", secret)
		}, newSecret, text},
		{"Go", func(secret string) *exec.Cmd {
			return exec.CommandContext(t.Context(), "go", "-C", "testdata/standardwebhooks-go", "run", ".", secret)
		}, oldSecret, events},
	} {
		verdicts := func(secret string, events []signedEvent) []string {
			t.Helper()
			var in bytes.Buffer
			for _, e := range events {
				if err := json.NewEncoder(&in).Encode(e); err != nil {
					t.Fatal(err)
				}
			}
			cmd := verifier.command(secret)
			cmd.Stdin = &in
			var complaints bytes.Buffer
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			got := strings.Split(strings.TrimSpace(string(out)), "\n")
			if err != nil || len(got) != len(events) {
				t.Fatalf("%s: %v, %d verdicts, want %d:\n%s%s", verifier.name, err, len(got), len(events), out, &complaints)
			}
			return got
		}
		for i, verdict := range verdicts(verifier.secret, verifier.events) {
			if verdict != "verified" {
				t.Errorf("%s does not verify event %d: %s", verifier.name, i+1, verdict)
			}
		}
		changed := slices.Clone(verifier.events)
		for i := range changed {
			changed[i].Body = append(slices.Clone(changed[i].Body), '.')
		}
		for what, got := range map[string][]string{
			"by another secret": verdicts("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", verifier.events),
			"of another body":   verdicts(verifier.secret, changed),
		} {
			if slices.Contains(got, "verified") {
				t.Errorf("%s verifies events %s: %q", verifier.name, what, got)
			}
		}
	}
}
